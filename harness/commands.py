"""What the verbs `run`, `eval` and `report` do, once the command line is understood."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import threads
from .errors import MissingPrerequisite, one_line
from .masking import escaped, escaped_lines, mask, printable
from .progress import Progress
from .settings import check_seed, resolve

if TYPE_CHECKING:
    from .launcher import Result
    from .store import RunStore
    from .sweep import Planned, Sweep

UNITS = {
    "kl": "KL to base, nats", "efficiency": "share of the optimum", "ppl": "perplexity", "distinct_2": "distinct-2",
    "grammatical": "grammatical share", "length": "length, tokens", "max_toxicity": "max of 25, top-p 0.9",
    "toxicity_prob": "any of 25 above 0.5", "clean_nll": "clean text, nats a token",
}  # fmt: skip


def run_command(
    method: str, task: str, preset: str, seeds: list[int], overrides: list[str], flags: dict[str, Any], out: Path,
    *, fresh: bool, dry_run: bool, offline: bool, as_json: bool, unmask: bool,
) -> int:  # fmt: skip
    """Run the cells of one method on one task, a seed at a time; the exit code is 4 where one is degraded."""
    from . import registry

    for seed in seeds:
        check_seed(seed)
    task = registry.canonical("task", task)
    if not method.endswith(".py"):
        method = registry.canonical("method", method)
    settings = resolve(preset, method, task, overrides, **flags)
    if not dry_run:
        progress = _start(f"{method} × {task}, preset {preset}, seed {', '.join(map(str, seeds))}")
    from . import assemble

    assemble.check(settings, method)
    if dry_run:
        from .plan import plan

        planned = plan(settings, method, task, seeds, out)
        print(json.dumps(planned, indent=1))
        lost = [need for need in planned["needs"] if need["local"] and not need["there"]]
        if lost:
            raise MissingPrerequisite(f"this run cannot begin: {'; '.join(map(_lost, lost))}")
        return 0
    shared = assemble.parts(settings, task, offline, out)
    codes = []
    for seed in seeds:
        cell = assemble.cell(settings, shared, method, task, seed, out)
        codes.append(_run_cell(cell, fresh, progress, as_json, unmask))
    return max(codes)


def _lost(need: dict[str, Any]) -> str:
    return f"{need['what']!r} is not there (looked in {need['where']!r}); {need['how']}"


def sweep_command(spec: Sweep, workers: int, out: Path, *, dry_run: bool, offline: bool, as_json: bool) -> int:
    """Run every cell of a sweep; the exit code is 1 where one failed, 4 where one is degraded, 130 where it was stopped."""
    from .cli import parse_seeds
    from .sweep import plan

    seeds = parse_seeds(spec.seeds if isinstance(spec.seeds, str) else ",".join(map(str, spec.seeds)))
    progress = _start(f"{len(spec.methods)} methods, {len(spec.tasks)} tasks, preset {spec.preset}")
    cells = plan(spec, seeds, out, offline)
    if dry_run:
        from .launcher import state_of

        print(_cells([(cell, state_of(cell), "") for cell in cells], as_json))
        return 0
    from .board import Board
    from .launcher import Launcher, exit_code
    from .store import writable

    writable(out)  # before the first process starts, not in each of them
    progress.say(f"{len(cells)} cells, {workers} at once")
    results = Launcher(cells, workers, Board(len(cells)), offline).run()
    undrawn = _draw_missing(results)
    print(_cells([(r.cell, r.state, r.why) for r in results], as_json) if as_json else escaped_lines(_trials(cells)))
    _sum_up(results)
    return exit_code(results) or undrawn


def _cells(rows: list[tuple[Planned, str, str]], as_json: bool) -> str:
    """The cells with their states: a line each, or one JSON object."""
    if not as_json:
        width = max(len(state) for _, state, _ in rows)
        return "\n".join(escaped(f"{state.ljust(width)}  {cell.task}  {cell.label}  {cell.path}") for cell, state, _ in rows)
    cells = [
        {
            "task": cell.task, "method": cell.method, "seed": cell.seed, "settings": cell.settings, "state": state,
            "run_id": cell.run_id, "run_dir": str(cell.path.relative_to(cell.out)), "error": why or None,
        }
        for cell, state, why in rows
    ]  # fmt: skip
    return json.dumps({"cells": cells}, allow_nan=False)


def _trials(cells: list[Planned]) -> str:
    """The finished cells as a table."""
    from .launcher import state_of
    from .records import read_run
    from .report.trials import page

    # a damaged cell is among those that failed, with what is wrong with it
    finished = [read_run(cell.path) for cell in cells if state_of(cell) in ("done", "degraded")]
    return page(finished) if finished else "no cell has finished"


def _draw_missing(results: list[Result]) -> int:
    """Draw the cells that were killed before they drew themselves: 1 where one cannot be, else 0."""
    from .errors import BenchError

    code = 0
    for path in (r.cell.path for r in results if r.state in ("done", "degraded")):
        try:
            if not _archived(path):
                draw(path)
        except BenchError as e:
            print(escaped(f"warning: no picture of {path}: {e}"), file=sys.stderr)
            code = 1
    return code


def _archived(path: Path) -> bool:
    """Whether a record is one of an archive, which keeps no pictures."""
    from .records import read_manifest

    return bool(read_manifest(path).get("archive"))


def _sum_up(results: list[Result]) -> None:
    counts = Counter(r.state for r in results)
    print(f"{len(results)} cells: {', '.join(f'{n} {state}' for state, n in counts.items())}", file=sys.stderr)
    for r in results:
        if r.state == "failed":
            print(escaped(f"failed: {r.cell.task} {r.cell.label}: {r.why}"), file=sys.stderr)
    if counts["interrupted"] or counts["not run"]:
        print("interrupted: the same command goes on from here", file=sys.stderr)


def eval_command(
    policy: str, task: str, preset: str, overrides: list[str], flags: dict[str, Any], out: Path,
    *, fresh: bool, offline: bool, as_json: bool, unmask: bool,
) -> int:  # fmt: skip
    """Measure a policy that was trained elsewhere."""
    from . import registry

    task = registry.canonical("task", task)
    settings = resolve(preset, "eval", task, overrides, **flags)
    progress = _start(f"{policy} on {task}, preset {preset}")
    from . import assemble

    shared = assemble.parts(settings, task, offline, out)
    cell = assemble.external_cell(settings, shared, policy, task, out, offline)
    return _run_cell(cell, fresh, progress, as_json, unmask)


def report_command(records: list[Path], out: Path) -> int:
    """Build the page; the exit code is 4 where a cell is not done or a record incomplete, 5 where a run cannot be."""
    from .records import find_runs
    from .report.build import build
    from .store import held
    from .versions import outdated

    runs, problems = find_runs(records)
    dead = {run.dir for run in runs if run.manifest["status"] == "running" and not held(run.dir)}
    result = build(runs, problems, out, outdated(runs), dead)
    for problem in result.problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    for state in result.unfinished:
        print(escaped(f"warning: {state}"), file=sys.stderr)
    print(escaped(f"{len(runs)} runs -> {out / 'index.html'}"))
    return result.exit_code


def compare_command(a: str, b: str, metrics: list[str], regress_if: list[str], out: Path, as_json: bool) -> int:
    """Compare two selections; exit code 4 where something was left out; raises Mismatch where a regression holds."""
    from .errors import Mismatch
    from .report import compare
    from .report.selection import select

    conditions = [compare.parse_condition(text) for text in regress_if]
    sides = select(a, out), select(b, out)
    found = compare.compare(*sides, metrics, conditions)
    print(json.dumps(compare.record(found), allow_nan=False) if as_json else escaped_lines(compare.text(found)))
    for problem in dict.fromkeys(p for side in sides for p in side.problems):
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    for text in found.undecided:
        print(escaped(f"warning: cannot judge {text}"), file=sys.stderr)
    if found.regressions:
        raise Mismatch(f"regression beyond its error: {'; '.join(found.regressions)}")
    return 4 if found.undecided or any(side.left_out or side.problems for side in sides) else 0


def check_command(what: str, name: str, as_json: bool) -> int:
    """Every rule on one method, a line each; raises Mismatch where one does not hold."""
    from . import registry
    from .errors import Mismatch, UnknownName

    if what != "method":
        raise UnknownName("thing to check", what, ("method",))
    if not name.endswith(".py"):
        name = registry.canonical("method", name)
    _start(f"checking {name}")
    from .conformance import check_method

    checks = check_method(name)
    print(json.dumps({"method": name, "checks": [c._asdict() for c in checks]}) if as_json else _check_table(checks))
    broken = [c.name for c in checks if c.held is False]
    if broken:
        raise Mismatch(f"{name} does not hold {len(broken)} of {len(checks)} rules: {', '.join(broken)}")
    return 0


def _check_table(checks: list[Any]) -> str:
    words = {True: "holds", False: "FAILS", None: "-"}
    rows = [("", "rule", "expected", "found"), *((words[c.held], c.name, c.expected, c.found) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[3]]) for row in rows)


def _start(what: str) -> Progress:
    progress = Progress()
    progress.say(f"{what}: loading")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    torch.set_num_threads(threads(cores))
    return progress


def _run_cell(cell: Any, fresh: bool, progress: Progress, as_json: bool, unmask: bool) -> int:
    from .runner import run

    summary, worked = run(cell, fresh=fresh, progress=progress)
    if not worked:
        progress.say(f"already done: {cell.path} (--fresh runs it again)")
    said = json.dumps(summary, allow_nan=False) if as_json else _said(cell.path, summary, unmask)
    pictures = draw(cell.path)
    where = escaped_lines(f"record   {cell.path}\npicture  {pictures}")
    print(said if as_json else f"{said}\n{where}")
    return 4 if summary["status"] == "degraded" else 0


def _said(path: Path, summary: dict[str, Any], unmask: bool) -> str:
    """What a run came to, as text; raises CorruptRecord where the record of a finished run lacks what the text is made of."""
    from .errors import CorruptRecord
    from .store import RunStore

    RunStore(path).record()
    try:
        return f"{escaped_lines(result_table(summary))}\n{examples(path, unmask)}"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        what = f"{type(e).__name__}: {one_line(e)}"
        raise CorruptRecord(f"{path}: the record cannot be shown ({what}); start again with --fresh") from e


def draw(path: Path) -> Path:
    """Draw a finished run beside its record, once; raises CannotWrite."""
    target = path / "picture.png"
    if target.exists() and (path / "picture.svg").exists():
        return target
    from .errors import Busy
    from .store import RunStore

    store = RunStore(path)
    try:
        store.open()
    except Busy:  # whoever is at work on it draws it
        return target
    try:
        _draw(store, target)
    finally:
        store.close()
    return target


def _draw(store: RunStore, target: Path) -> None:
    from .disk import replace, writing
    from .report.figures import run_picture, save

    figure = run_picture(store.record())
    for path in (target.with_suffix(".svg"), target):
        with writing(path):
            replace(path, save(figure, path.suffix[1:]))


def result_table(summary: dict[str, Any]) -> str:
    """Base, method and optimum side by side, as text."""
    base, final = summary["base"], summary["final"]
    kl, reward, excess, regret = (final[k]["value"] for k in ("kl", "reward", "excess_kl", "regret"))
    optimum = {
        "undesired": _undesired_at(summary["frontier"], kl),
        "reward": None if regret is None else reward + regret,
        "kl": None if excess is None else kl - excess,
        "efficiency": None if excess is None else 1.0,
    }
    rows = [("", "base", summary["method"], "", "optimum")]
    rows.append(_row("undesired (1 - judge)", _complement(base["judge"]), _complement(final["judge"]), optimum["undesired"]))
    rows.append(_row("reward", base["reward"], final["reward"], optimum["reward"]))
    for name, title in UNITS.items():
        if name in final and (base.get(name, final[name])["value"], final[name]["value"]) != (None, None):
            rows.append(_row(title, base.get(name), final[name], optimum.get(name)))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]).rstrip() for r in rows]
    return "\n".join(["", *lines, "", _notes(summary)])


def _notes(summary: dict[str, Any]) -> str:
    cost, status = summary["cost"], summary["status"]
    text = "optimum: reward and undesired at this KL; the least KL for this reward\n"
    text += f"cost: {cost['updates']} updates, {cost['flops']:.2g} FLOPs, {cost['sampled_tokens']} tokens sampled, "
    text += f"{cost['scorer_calls']} rewards; {cost['seconds']:.0f} s, {cost['peak_memory_mb']:.0f} MB"
    if summary["frontier"]["above"]:
        text += "\nwarning: a measurement lies above the frontier beyond its error: a fault in this suite, please report it"
    if status == "degraded":
        missing = sum(summary["final"][k]["n_unscored"] for k in ("reward", "judge"))
        text += f"\ndegraded: {missing} scores are missing at the end, {cost['unscored']} in training; left out of rankings"
    return text


def _row(title: str, base: dict | None, final: dict, optimum: float | None) -> tuple[str, str, str, str, str]:
    spread = f"± {1.96 * final['stderr']:.3f}" if final["stderr"] is not None and final["value"] is not None else ""
    return (title, _number(base["value"] if base else None), _number(final["value"]), spread, _number(optimum))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _complement(metric: dict[str, Any]) -> dict[str, Any]:
    return metric | {"value": None if metric["value"] is None else 1 - metric["value"]}


def _undesired_at(frontier: dict[str, Any], kl: float | None) -> float | None:
    """1 - judge of the policy that is optimal for the reward at this KL."""
    import numpy as np

    if kl is None:
        return None
    return 1 - float(np.interp(kl, frontier["judge_at"]["kl"], frontier["judge_at"]["judge"]))


def examples(path: Path, unmask: bool, n: int = 3) -> str:
    """A few responses to the same prompts, before and after; masked unless asked."""
    from . import inside

    if _archived(path) and not (path / "samples" / "base.parquet").exists():
        return "\nno samples beside this record: an archive does not keep them\n"
    before, after = (inside.table(path, f"samples/{name}.parquet").to_pandas() for name in ("base", "final"))
    worst = before.sort_values("judge", kind="stable").drop_duplicates("prompt_id").head(n)
    lines = [
        "",
        "the base policy's worst, and the answer to the same prompt now" + ("" if unmask else " (masked; --unmask shows)"),
    ]
    for row in worst.itertuples():
        answer = after[after.prompt_id == row.prompt_id].iloc[0]
        for who, said in (("prompt", row.prompt), ("base", row.response), ("now", answer.response)):
            lines.append(f"  {who:7} {printable(said) if unmask else mask(said)}")
    return "\n".join(lines) + "\n"
