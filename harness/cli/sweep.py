"""`harness sweep` and `harness study`: their flags, and what they print."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from harness.core.errors import BenchError
from harness.core.files import LEASE, LONGEST_LEASE
from harness.core.text import count, escaped, escaped_lines
from harness.runs.progress import Progress, loading

from .result import archived, draw, local
from .run import tracking

if TYPE_CHECKING:
    from harness.runs.sweep.plan import Planned, Result, Sweep
    from harness.runs.sweep.study import StudySpec

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="number of cells run at once [default: 1; with slurm and ray what the cluster takes]"),
]
EngineName = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="engine of the cells: local, slurm (by submitit) or ray")
]
Slurm = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="options of a Slurm job: partition=gpu,gpus=1,time=2:00:00; cluster=local for this machine",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS|KEY=VALUE,...", help="cluster of Ray, and what a cell needs: address=auto,num_gpus=1"),
]
Retries = Annotated[
    int, typer.Option(min=0, help="attempts after the first at a cell whose process died; its own errors are not retried")
]
Lease = Annotated[
    float,
    typer.Option(
        min=1,
        max=LONGEST_LEASE,
        metavar="SECONDS",
        help="time without a sign of life after which another host takes a cell over",
    ),
]
Track = Annotated[
    str | None, typer.Option(metavar="A,B", help="trackers that follow each cell: tensorboard, wandb, mlflow, trackio")
]
Out = Annotated[Path, typer.Option(help="folder of records", callback=local)]
DryRun = Annotated[bool, typer.Option(help="list the cells and their states, run nothing")]
Offline = Annotated[bool, typer.Option(help="use local files and caches only")]
Json = Annotated[bool, typer.Option("--json", help="cells as one JSON object on the last line of stdout")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="full tracebacks of errors")]


class Where(NamedTuple):
    """Where the cells run, and how what dies is dealt with."""

    engine: str = "local"
    workers: int | None = None
    slurm: str | None = None
    ray: str | None = None
    retries: int = 0
    lease: float = LEASE
    track: tuple[str, ...] = ()


def sweep(
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="methods: names (harness list methods) or files")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="tasks: names (harness list tasks) or files")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0-4", help="seeds: 0-4 or 0,2,5 [default: 0]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="setting of every method that has it; quark.kl_coef=0.1 for one method"
        ),
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="values of a setting; several grids form their product")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="read the sweep from a TOML file; flags override it")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="preset: a name or a file [default: micro]")] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    slurm: Slurm = None,
    ray: Ray = None,
    retries: Retries = 0,
    lease: Lease = LEASE,
    track: Track = None,
    out: Out = Path("results"),
    dry_run: DryRun = False,
    offline: Offline = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run every combination of methods, tasks, settings and seeds, each as `harness run` does.

    The same command again resumes. A failed cell does not stop the others. A TOML file takes the same keys:

    \b
    methods = ["base", "quark"]
    tasks = ["toxicity"]
    seeds = "0-2"
    [set]
    evaluation.split = "validation"
    [grid]
    quark.kl_coef = [0.1, 0.3]
    """
    from harness.runs.sweep.plan import told

    spec = told(file, methods, tasks, seeds, preset, settings or [], grid or [])
    where = Where(engine, workers, slurm, ray, retries, lease, tracking(track).names)
    raise typer.Exit(sweep_command(spec, where, out, dry_run=dry_run, offline=offline, as_json=as_json))


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="file of the study")],
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="some of its methods [default: all]")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="some of its tasks [default: all]")] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    slurm: Slurm = None,
    ray: Ray = None,
    retries: Retries = 0,
    lease: Lease = LEASE,
    track: Track = None,
    out: Out = Path("results"),
    dry_run: DryRun = False,
    offline: Offline = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run every method at the values of its knob, the setting that trades reward for drift, each as `harness run` does.

    The same command again resumes. Cells run seed by seed, in a seed first the middle values of all methods, so an
    interrupted study has fewer seeds, not fewer methods. The file:

    \b
    methods = ["base", "quark", "ppo"]
    tasks = ["toxicity"]
    seeds = "0-4"          # at the middle value of each knob, and of a method without one
    other_seeds = "0-1"    # at the other values
    """
    from harness.runs.sweep.study import read_study

    where = Where(engine, workers, slurm, ray, retries, lease, tracking(track).names)
    spec = read_study(file, methods, tasks)
    raise typer.Exit(study_command(spec, where, out, dry_run=dry_run, offline=offline, as_json=as_json))


def sweep_command(spec: Sweep, where: Where, out: Path, *, dry_run: bool, offline: bool, as_json: bool) -> int:
    """Run every cell of a sweep; exit code 1 if one failed, 4 if one is degraded, 130 if interrupted."""
    from harness.core.settings import parse_seeds
    from harness.runs.sweep.engines.choose import check
    from harness.runs.sweep.plan import plan

    check(out, where.engine, where.slurm, where.ray)
    seeds = parse_seeds(spec.seeds if isinstance(spec.seeds, str) else ",".join(map(str, spec.seeds)))
    progress = loading(f"{count(len(spec.methods), 'method')}, {count(len(spec.tasks), 'task')}, preset {spec.preset}")
    cells = plan(spec, seeds, out, offline)
    return listed(cells, as_json) if dry_run else run_cells(cells, where, out, progress, offline=offline, as_json=as_json)


def study_command(spec: StudySpec, where: Where, out: Path, *, dry_run: bool, offline: bool, as_json: bool) -> int:
    """Run every cell of a study; exit code as of a sweep."""
    from harness.runs.sweep.engines.choose import check
    from harness.runs.sweep.study import plan_study

    check(out, where.engine, where.slurm, where.ray)
    what = f"{count(len(spec.methods), 'method')} at all values of the knob"
    progress = loading(f"{what}, {count(len(spec.tasks), 'task')}, {spec.preset}")
    cells = plan_study(spec, out, offline)
    return listed(cells, as_json) if dry_run else run_cells(cells, where, out, progress, offline=offline, as_json=as_json)


def listed(cells: list[Planned], as_json: bool) -> int:
    """Print the cells with their states; exit code 0."""
    from harness.runs.sweep.plan import state_of

    print(_cells([(cell, state_of(cell), "") for cell in cells], as_json))
    return 0


def run_cells(cells: list[Planned], where: Where, out: Path, progress: Progress, *, offline: bool, as_json: bool) -> int:
    """Run cells that are not finished, and print what became of each; exit code as of a sweep."""
    from harness.core.files import writable
    from harness.runs.sweep.board import Board
    from harness.runs.sweep.engines.choose import engine
    from harness.runs.sweep.engines.contract import Terms
    from harness.runs.sweep.launcher import Launcher, exit_code

    writable(out)  # before the first process starts, not in each of them
    chosen = engine(where.engine, where.workers, out, Terms(offline, where.lease, where.track), where.slurm, where.ray)
    progress.say(f"{count(len(cells), 'cell')}, {chosen.about}")
    results = Launcher(cells, chosen, Board(len(cells)), each=_draw_new, retries=where.retries).run()
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
    print(f"{count(len(results), 'cell')}: {', '.join(f'{n} {state}' for state, n in counts.items())}", file=sys.stderr)
    for r in results:
        if r.state == "failed":
            print(escaped(f"failed: {r.cell.task} {r.cell.label}: {r.why}"), file=sys.stderr)
    if counts["interrupted"] or counts["not run"]:
        print("interrupted: the same command goes on from here", file=sys.stderr)
