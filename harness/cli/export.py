"""`harness export`: finished records for other tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from harness.core.errors import BenchError, CorruptRecord, EmptySelection, RunFailed, UnknownName, UsageError, one_line
from harness.core.files import replace, writable, writing
from harness.core.text import escaped
from harness.export import events
from harness.export.live import Tracking, exported
from harness.export.trackers import CLASSES, FOLDER, Tracker, opened, required
from harness.records.read import find_runs, holds_records, locate
from harness.records.schema import Problem, Run

from .result import local
from .run import TRACKED_SAMPLES

KINDS = (*CLASSES, "lm-eval-json", "latex")


def export(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="runs: folders of records, ids, or unique prefixes of ids")
    ],
    to: Annotated[str, typer.Option(metavar="KIND", help="format: tensorboard, wandb, mlflow, trackio, lm-eval-json or latex")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            callback=local,
            help="file (latex, lm-eval-json) or folder [default: stdout; of a tracker: RECORDS/trackers]",
        ),
    ] = None,
    records: Annotated[Path, typer.Option(help="folder of records in which ids are looked up")] = Path("results"),
    by: Annotated[
        Literal["run", "method"] | None,
        typer.Option(help="rows of a latex table [default: method, means over seeds, for a folder of several runs; else run]"),
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="give trackers samples too, masked unless --unmask")] = False,
    unmask: Annotated[bool, typer.Option(help="give generated text unmasked; it can be offensive")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="full tracebacks of errors")] = False,
) -> None:
    """Write finished records for another tool: an experiment tracker, lm-evaluation-harness's results, or a LaTeX table.

    A tracker that has a run already, by --track or an earlier export, is given what it lacks. Exit code 4 if a record had to
    be left out.
    """
    if to not in KINDS:
        raise UnknownName("export format", to, KINDS)
    if to not in CLASSES and (samples or unmask):
        raise UsageError(f"--samples and --unmask are for trackers; {to} holds no text of a response; leave them out")
    if to != "latex" and by is not None:
        raise UsageError(f"--by is for a latex table; leave it out with --to {to}")
    if to in CLASSES:
        required(to)
    chosen = selected(runs, records)
    if to in CLASSES:
        _to_tracker(to, chosen.runs, out or records / FOLDER, Tracking((to,), TRACKED_SAMPLES if samples else 0, unmask))
    elif to == "latex":
        _written(latex(chosen, by), out)
    else:
        _lm_eval(chosen.runs, out)
    raise typer.Exit(4 if chosen.problems else 0)


class Chosen(NamedTuple):
    """The finished runs that a command line names, and the records that had to be left out."""

    runs: list[Run]
    problems: list[Problem]
    folders: bool  # whether one name stood for several runs


def selected(names: Sequence[str], records: Path) -> Chosen:
    """The finished runs of some names; raises EmptySelection or CorruptRecord if there is none, and as `locate` does."""
    found: dict[Path, Run] = {}
    problems: list[Problem] = []
    folders = False
    for name in names:
        here, broken = find_runs([Path(name)]) if holds_records(name) else ([locate(name, records)], [])
        folders |= len(here) > 1
        problems += broken
        found |= {run.dir.resolve(): run for run in here}
    problems += [Problem(run.dir, f"it is {run.manifest.status}") for run in found.values() if not events.finished(run)]
    for problem in problems:
        print(escaped(f"warning: {problem.path} is left out: {problem.what}"), file=sys.stderr)
    runs = [run for run in found.values() if events.finished(run)]
    if not runs and problems and not found:
        raise CorruptRecord(f"{problems[0].path}: {problems[0].what}")
    if not runs:
        raise EmptySelection(f"no finished run in {', '.join(names)}; see harness status DIR")
    return Chosen(runs, problems, folders)


def _to_tracker(to: str, runs: list[Run], root: Path, asked: Tracking) -> None:
    writable(root)
    tracker = opened(to, root)
    for run in runs:
        new = _guarded(to, run, partial(_exported, run, tracker, asked))
        print(escaped(f"{run.dir}: {'exported' if new else 'already there'}"))
    print(escaped(tracker.hint), file=sys.stderr)


def _exported(run: Run, tracker: Tracker, asked: Tracking) -> bool:
    return exported(run, tracker, _picture(run), asked)


def _guarded(to: str, run: Run, call: Callable[[], bool]) -> bool:
    """Call a function that uses a tracker's library; raises RunFailed for its errors."""
    try:
        return call()
    except BenchError:
        raise
    except Exception as e:
        raise RunFailed(
            f"{run.dir} cannot be exported to {to}: {type(e).__name__}: {one_line(e)}; "
            f"look at the tracker's settings, or choose another folder with --out"
        ) from e


def _picture(run: Run) -> bytes:
    """The picture of a run: the one beside its record, or drawn."""
    found = events.picture(run)
    if found is None:
        from harness.report.figures.pareto import run_picture
        from harness.report.figures.style import save

        found = save(run_picture(run), "png")
    return found


def _lm_eval(runs: list[Run], out: Path | None) -> None:
    from harness.export.lm_eval import file_of, results

    single = out is None or out.suffix == ".json"
    if single and len(runs) > 1:
        raise UsageError(f"{len(runs)} runs are as many files of results; give a folder for them with --out")
    for run in runs:
        text = json.dumps(results(run), indent=1, allow_nan=False) + "\n"
        _written(text, out if single or out is None else out / file_of(run))


def _written(text: str, path: Path | None) -> None:
    """Print a text, or write it to a file and print its path; raises Unwritable, CannotWrite."""
    if path is None:
        print(text, end="")
        return
    writable(path.parent)
    with writing(path):
        if path.exists() and not path.is_file():  # a device or a pipe stays what it is
            path.write_bytes(text.encode())
        else:
            replace(path, text.encode())
    print(escaped(path))


def latex(chosen: Chosen, by: str | None) -> str:
    """The chosen runs as LaTeX: a table for each group that can be compared, or one with a row for each run."""
    from harness.export.latex import table

    if (by or ("method" if chosen.folders else "run")) == "run":
        header, rows = _run_rows(chosen.runs)
        return table(header, rows, ["± half of the 95 % interval over prompts."], texts=header.index("Seed") + 1)
    from harness.analysis.study import Study
    from harness.report.tables import method_table

    study = Study(chosen.runs, chosen.problems)
    tables = [method_table(group) for group in study.groups]
    named = zip(study.headings, tables, strict=True)
    return "\n".join(f"% {_comment(heading)}\n{table(t.header, t.rows, t.notes)}" for heading, t in named)


def _comment(text: str) -> str:
    from harness.core.text import plain

    return plain(text).encode("ascii", "replace").decode()


def _run_rows(runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    """The table of runs: method, value of its knob, seed, final metrics; with the task and preset where they differ."""
    from harness.analysis.columns import BY_KEY, bound_sign
    from harness.analysis.curves.knobs import knob_of
    from harness.analysis.stats import Z95
    from harness.core.text import shorten
    from harness.export.latex import rounded

    columns = [BY_KEY[key] for key in ("undesired", "reward", "kl", "efficiency", "ppl", "distinct_2")]
    places = {(run.manifest.preset, run.manifest.task) for run in runs}
    rows = []
    for run in runs:
        m, knob = run.manifest, knob_of(run.manifest)
        strength = m.identity.get("method", {}).get("settings", {}).get(knob) if knob is not None else None
        cells = [f"{m.preset} {m.task}"] if len(places) > 1 else []
        cells += [shorten(m.method), "" if strength is None else f"{shorten(knob)} = {shorten(strength)}", str(m.seed)]
        for column in columns:
            found = column.of(run)
            sign = bound_sign(column.key, [found.reason] if found.reason else [])
            half = None if found.stderr is None else Z95 * found.stderr
            cells.append(f"{sign} {rounded(found.value, half)}".strip())
        rows.append(cells)
    head = ["Task"] if len(places) > 1 else []
    return [*head, "Method", "Knob", "Seed", *(column.title for column in columns)], rows
