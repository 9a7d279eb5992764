"""`harness sweep` and `harness study`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import BenchError
from harness.core.text import escaped, escaped_lines
from harness.runs.progress import Progress, loading

from .result import archived, draw

if TYPE_CHECKING:
    from harness.runs.sweep.plan import Planned, Result, Sweep
    from harness.runs.sweep.study import StudySpec


def sweep_command(spec: Sweep, workers: int, out: Path, *, dry_run: bool, offline: bool, as_json: bool) -> int:
    """Run every cell of a sweep; exit code 1 if one failed, 4 if one is degraded, 130 if interrupted."""
    from harness.core.settings import parse_seeds
    from harness.runs.sweep.plan import plan

    seeds = parse_seeds(spec.seeds if isinstance(spec.seeds, str) else ",".join(map(str, spec.seeds)))
    progress = loading(f"{len(spec.methods)} methods, {len(spec.tasks)} tasks, preset {spec.preset}")
    cells = plan(spec, seeds, out, offline)
    return listed(cells, as_json) if dry_run else run_cells(cells, workers, out, progress, offline=offline, as_json=as_json)


def study_command(spec: StudySpec, workers: int, out: Path, *, dry_run: bool, offline: bool, as_json: bool) -> int:
    """Run every cell of a study; exit code as of a sweep."""
    from harness.runs.sweep.study import plan_study

    progress = loading(f"{len(spec.methods)} methods at the values of their knobs, {len(spec.tasks)} tasks, {spec.preset}")
    cells = plan_study(spec, out, offline)
    return listed(cells, as_json) if dry_run else run_cells(cells, workers, out, progress, offline=offline, as_json=as_json)


def listed(cells: list[Planned], as_json: bool) -> int:
    """Print the cells with their states; exit code 0."""
    from harness.runs.sweep.plan import state_of

    print(_cells([(cell, state_of(cell), "") for cell in cells], as_json))
    return 0


def run_cells(cells: list[Planned], workers: int, out: Path, progress: Progress, *, offline: bool, as_json: bool) -> int:
    """Run cells that are not finished, and print what became of each; exit code as of a sweep."""
    from harness.core.files import writable
    from harness.runs.sweep.board import Board
    from harness.runs.sweep.launcher import Launcher, exit_code

    writable(out)  # before the first process starts, not in each of them
    progress.say(f"{len(cells)} cells, {workers} at once")
    results = Launcher(cells, workers, Board(len(cells)), offline, each=_draw_new).run()
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
    """The finished cells as a table of trials."""
    from harness.analysis.study import Study
    from harness.records.read import read_run
    from harness.report.trials import page
    from harness.runs.sweep.plan import state_of

    # a damaged cell is among those that failed, with what is wrong with it
    finished = [read_run(cell.path) for cell in cells if state_of(cell) in ("done", "degraded")]
    return page(Study(finished)) if finished else "no cell has finished"


def _draw_new(result: Result) -> None:
    """Draw a cell that this sweep has just run, while the others run; `_draw_missing` tries again and reports what fails."""
    if result.state in ("done", "degraded") and result.seconds is not None:
        with suppress(BenchError):
            draw(result.cell.path)


def _draw_missing(results: list[Result]) -> int:
    """Draw the pictures that are missing; 1 if one cannot be drawn, else 0."""
    code = 0
    for path in (r.cell.path for r in results if r.state in ("done", "degraded")):
        try:
            if not archived(path):
                draw(path)
        except BenchError as e:
            print(escaped(f"warning: no picture of {path}: {e}"), file=sys.stderr)
            code = 1
    return code


def _sum_up(results: list[Result]) -> None:
    counts = Counter(r.state for r in results)
    print(f"{len(results)} cells: {', '.join(f'{n} {state}' for state, n in counts.items())}", file=sys.stderr)
    for r in results:
        if r.state == "failed":
            print(escaped(f"failed: {r.cell.task} {r.cell.label}: {r.why}"), file=sys.stderr)
    if counts["interrupted"] or counts["not run"]:
        print("interrupted: the same command goes on from here", file=sys.stderr)
