"""`harness status`: methods by tasks; for each cell that is not done, the reason and the command that finishes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.analysis.cells import STATES, Cell, counts, external, progress
from harness.analysis.groups import worlds
from harness.analysis.study import Study, read_states
from harness.core import registry
from harness.core.errors import BadSetting, EmptySelection, UnknownName
from harness.core.settings import flat, overrides, preset_names, resolve
from harness.core.text import escaped_lines, plain
from harness.records.read import settings_of
from harness.records.schema import Run
from harness.runs import named

SIGNS = {"degraded": "!", "running": ">", "partial": "~", "failed": "x", "stale": "s", "missing": "-"}
WORDS = {
    "degraded": "degraded: too much could not be scored", "running": "running", "partial": "partial: begun, to resume",
    "failed": "failed", "stale": "stale: made with older code", "missing": "missing: other methods of the task have this seed",
}  # fmt: skip
Worlds = dict[int, tuple[int, str]]  # of each group whose task has several worlds: its number, and what tells it apart


def status(dirs: list[Path]) -> Study:
    """The study of all records below some folders; raises EmptySelection if there is none."""
    study = read_states(dirs)
    if not study.runs:
        why = f" ({study.problems[0].path}: {study.problems[0].what})" if study.problems else ""
        raise EmptySelection(f"no record below {', '.join(map(str, dirs))} that can be read{why}; make one with harness run")
    return study


def done(study: Study) -> bool:
    """Whether every cell is done and every record can be read."""
    return not study.problems and all(cell.state == "done" for cell in study.cells)


def text(study: Study, out: Path) -> str:
    """The matrix of each preset, its legend, and the cells that are not done."""
    presets = sorted({cell.preset for cell in study.cells})
    numbered = {i: own for i, own in enumerate(worlds(study.groups)) if own}
    parts = [_matrix(preset, [c for c in study.cells if c.preset == preset], numbered) for preset in presets]
    parts += [_legend(study.cells), *(_details(c, out, numbered) for c in study.cells if c.state != "done")]
    if study.problems:
        parts.append("\n".join(["not read:", *(f"  {plain(p.path)}: {plain(p.what)}" for p in study.problems)]))
    return "\n\n".join(part for part in parts if part)


def data(study: Study, out: Path) -> dict[str, Any]:
    """The same as plain data; seeds are text, since JSON keys are."""
    rows = [c._asdict() | {"runs": [str(run.dir) for run in c.runs], "commands": commands(c, out)} for c in study.cells]
    for row in rows:
        del row["beside"]  # the runs of other cells
    return {"cells": rows, "problems": [{"path": str(p.path), "what": p.what} for p in study.problems]}


def commands(cell: Cell, out: Path) -> list[str]:
    """The commands that finish a cell, none if all is done or running; a cell without a record goes to `out`."""
    waiting = [seed for seed, state in cell.seeds.items() if state in ("partial", "failed", "stale", "missing")]
    damaged = {m.seed for m in (run.manifest for run in cell.runs) if m.error and m.error.type == "CorruptRecord"}
    anew = [seed for seed in cell.seeds if cell.seeds[seed] == "degraded" or (seed in waiting and seed in damaged)]
    waiting = [seed for seed in waiting if seed not in anew]
    words = [["--seeds", short(waiting)]] if waiting else []
    words += [["--seeds", short(anew), "--fresh"]] if anew else []
    if cell.runs and external(cell.runs):
        return [shlex.join(_eval(cell)) for _ in words[:1]]
    return [shlex.join(["harness", "run", *_run_arguments(cell, out), *more]) for more in words]


def short(seeds: Iterable[int]) -> str:
    """Seeds as --seeds takes them: 0-2,5."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


def settings_apart(settings: dict[str, Any], method: str, task: str) -> list[str]:
    """The `--set` arguments that turn the preset into a record's settings; raises BadSetting if the preset is gone."""
    # a task of another package is not in the preset; what a record names is never opened as a file
    here = named.settings if task in registry.table("task") and settings["preset"] in preset_names() else resolve
    preset = flat(here(settings["preset"], method, task).model_dump())
    changed = {k: v for k, v in flat(settings).items() if v is not None and (k not in preset or preset[k] != v)}
    return overrides({key.removeprefix("method."): value for key, value in changed.items()})


def _run_arguments(cell: Cell, out: Path) -> list[str]:
    """The arguments of `harness run` before the seeds."""
    runs = cell.runs or cell.beside
    settings = next((s for run in runs if (s := settings_of(run))), None)
    method, task = _plugin(cell.runs, "method", cell.method), _plugin(runs, "task", cell.task)
    preset = cell.preset if cell.preset in preset_names() else _argument(runs, "--preset") or f"./{cell.preset}.toml"
    words = ["--method", method, "--task", task, "--preset", preset]
    set_before = _arguments(runs, "--set")
    if not cell.runs:  # everything but the other method's own: its section, and bare keys
        settings = settings and {key: value for key, value in settings.items() if key != "method"}
        set_before = [item for item in set_before if "." in item.partition("=")[0]]
    try:
        apart = settings_apart(settings, cell.method, cell.task) if settings else []
    except (BadSetting, UnknownName, KeyError):  # of a preset or a task that is not installed: the user's own file, or gone
        apart = set_before
    apart = [_scorer_file(item, set_before) for item in apart]
    return [*words, *(word for item in apart for word in ("--set", item)), "--out", str(_out(cell, out))]


def _plugin(runs: Sequence[Run], kind: str, name: str) -> str:
    """The name of a method or a task, or its file where it is not installed."""
    known = name in registry.table(kind)
    return name if known else _argument(runs, f"--{kind}", f"-{kind[0]}") or f"./{name}.py"


def _scorer_file(item: str, set_before: list[str]) -> str:
    """A setting that names a scorer's file, of which a record knows the stem alone, as the command had it."""
    key, _, value = item.partition("=")
    name = value.strip('"')
    if key not in ("task.reward", "task.judge") or name in registry.table("scorer"):
        return item
    return next((before for before in set_before if before.startswith(f"{key}=")), f"{key}=./{name}.py")


def _eval(cell: Cell) -> list[str]:
    policy = _argument(cell.runs, "--policy") or cell.method.removeprefix("eval-")
    return ["harness", "eval", "--policy", policy, "--task", cell.task, "--preset", cell.preset, "--fresh"]


def _argument(runs: Sequence[Run], *names: str) -> str | None:
    """The value of an option in the command that made a record."""
    return next(iter(_arguments(runs, *names)), None)


def _arguments(runs: Sequence[Run], *names: str) -> list[str]:
    """All values of a repeatable option in the command that made a record."""
    for run in runs:
        found = [after for word, after in pairwise(run.manifest.provenance.argv) if word in names]
        if found:
            return found
    return []


def _out(cell: Cell, out: Path) -> Path:
    """The folder that the records of a cell lie in, as --out means it."""
    first = next(iter(cell.runs or cell.beside), None)
    if first is None:
        return out
    by_layout = (cell.preset, cell.task, first.manifest.method)
    return first.dir.parents[3] if first.dir.parts[-4:-1] == by_layout else out


def _matrix(preset: str, found: list[Cell], told: Worlds) -> str:
    """One row per method and settings, one column per task (or per world of a task), and what tells these worlds apart."""
    columns = {cell.group: _task(cell, told) for cell in sorted(found, key=lambda c: (c.task, c.group))}
    heads = list(columns.values())
    shown = {(cell.name, cell.group): sign(cell) for cell in found}
    names = sorted({cell.name for cell in found})
    rows = [["preset " + plain(preset), *heads], *([name, *(shown.get((name, g), "") for g in columns)] for name in names)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    apart = [f"  {head}: {told[g][1]}" for head, g in zip(heads, columns, strict=True) if g in told]
    return "\n".join([*lines, *(["worlds, whose runs cannot be compared:", *apart] if apart else [])])


def _task(cell: Cell, told: Worlds) -> str:
    """The task of a cell, with the number of its world where it has several."""
    return plain(cell.task) + (f" ({told[cell.group][0]})" if cell.group in told else "")


def sign(cell: Cell) -> str:
    """A cell in a few characters: seeds done and wanted, then the number in each other state."""
    states = counts(cell)
    others = [f"{SIGNS[state]}{n}" for state, n in states.items() if state in SIGNS]
    shares = [f"{p:.0%}" for run in cell.runs if _at_work(cell, run) and (p := progress(run)) is not None]
    return " ".join([f"{states.get('done', 0)}/{len(cell.seeds)}", *others, *shares])


def _at_work(cell: Cell, run: Run) -> bool:
    return run.manifest.status == "running" and cell.seeds[run.manifest.seed] == "running"


def _legend(found: list[Cell]) -> str:
    seen = {state for cell in found for state in cell.seeds.values()}
    lines = [f"  {SIGNS[state]}  {WORDS[state]}" for state in STATES if state in seen and state in SIGNS]
    return "\n".join(["n/m  seeds done, of those that any method of the task has", *lines]) if found else ""


def _details(cell: Cell, out: Path, told: Worlds) -> str:
    by_reason: dict[tuple[str, str], list[int]] = {}
    for seed, why in cell.reasons.items():
        by_reason.setdefault((cell.seeds[seed], why), []).append(seed)
    lines = [f"{cell.name}, {_task(cell, told)}, preset {plain(cell.preset)}"]
    for (state, why), seeds in by_reason.items():
        lines.append(f"  seed{'s' if len(seeds) > 1 else ''} {short(seeds)}: {state}: {why}")
    return "\n".join([*lines, *(f"    {plain(command)}" for command in commands(cell, out))])


def status_command(dirs: list[Path], out: Path, as_json: bool) -> int:
    """Print the state of the records; exit code 4 if a cell is not done or a record cannot be read."""
    study = status(dirs)
    out = _records_folder(study, out)
    print(json.dumps(data(study, out), allow_nan=False) if as_json else escaped_lines(text(study, out)))
    return 0 if done(study) else 4


def _records_folder(study: Study, out: Path) -> Path:
    """The folder of the existing records of a cell."""
    return next((_out(cell, out) for cell in study.cells if cell.runs), out)
