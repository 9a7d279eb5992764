"""`harness run`, `harness eval` and `harness probe`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from harness.core.errors import MissingPrerequisite, UsageError
from harness.core.process import flush_output, follows, started_by_torchrun
from harness.core.settings import check_seed
from harness.core.text import escaped, escaped_lines
from harness.export.live import UNTRACKED, Live, Tracking, tracked
from harness.export.trackers import names, required
from harness.runs import named
from harness.runs.progress import Progress, loading

from .result import draw, shown

TRACKED_SAMPLES = 10  # as many as `harness samples` shows


def tracking(track: str | None, samples: bool = False, unmask: bool = False) -> Tracking:
    """The trackers of a command line, each of which can be opened; raises UsageError or MissingPrerequisite."""
    if track is None and samples:
        raise UsageError("--track-samples gives samples to trackers; name them with --track, or leave it out")
    chosen = tuple(names(track)) if track is not None else ()
    for name in chosen:
        required(name)
    return Tracking(chosen, TRACKED_SAMPLES if samples else 0, unmask)


def run_command(
    method: str, task: str, preset: str, seeds: list[int], overrides: list[str], flags: dict[str, Any], out: Path,
    *, fresh: bool, dry_run: bool, offline: bool, profile: bool, as_json: bool, unmask: bool, tracking: Tracking = UNTRACKED,
) -> int:  # fmt: skip
    """Run one method on one task for each seed; exit code 4 if a run is degraded."""
    from harness.core import registry

    started = time.monotonic()
    for seed in seeds:
        check_seed(seed)
    task, method = registry.given("task", task), registry.given("method", method)
    settings = named.settings(preset, method, task, overrides, **flags)
    if not dry_run:
        progress = loading(f"{method} × {task}, preset {preset}, seed {', '.join(map(str, seeds))}")
    from harness.policy.models import processes
    from harness.runs import assemble

    assemble.check(settings, method)
    if dry_run:
        from harness.runs.cost.estimate import plan

        if follows():
            return 0
        planned = plan(settings, method, task, seeds, out)
        print(json.dumps(planned, indent=1))
        lost = [need for need in planned["needs"] if need["local"] and not need["there"]]
        if lost:
            raise MissingPrerequisite(f"this run cannot begin: {'; '.join(map(_lost, lost))}")
        return 0
    processes.join()
    shared = assemble.parts(settings, task, offline, out)
    codes = []
    for seed in seeds:
        cell = assemble.cell(settings, shared, method, task, seed, out)
        cell.loading = time.monotonic() - started
        codes.append(_run_cell(cell, fresh, progress, as_json, unmask, profile, tracking))
        started = time.monotonic()
    return max(codes)


def _lost(need: dict[str, Any]) -> str:
    return f"{need['what']!r} is not there (looked in {need['where']!r}); {need['how']}"


def eval_command(
    policy: str, task: str, preset: str, overrides: list[str], flags: dict[str, Any], out: Path,
    *, prefix: str | None, fresh: bool, offline: bool, as_json: bool, unmask: bool,
) -> int:  # fmt: skip
    """Measure a policy that was trained elsewhere; it reads `prefix` before each prompt."""
    from harness.core import registry

    task = registry.given("task", task)
    settings = named.settings(preset, "eval", task, overrides, **flags)
    progress = loading(f"{policy} on {task}, preset {preset}")
    from harness.policy.models import processes
    from harness.runs import assemble
    from harness.runs.finished import external

    processes.join()
    shared = assemble.parts(settings, task, offline, out)
    cell = external.external_cell(settings, shared, policy, task, out, offline, prefix)
    return _run_cell(cell, fresh, progress, as_json, unmask)


def probe_command(
    names: list[str], probes: list[str], settings: list[str], seed: int, out: Path, files: tuple[str | None, str | None],
    *, offline: bool, as_json: bool,
) -> int:  # fmt: skip
    """Probe the policies of runs, whose task and preset may be `files`.

    The exit code is 4 if one of several could not be probed; of a single one its error is raised.
    """
    from harness.core.errors import BenchError
    from harness.runs.finished.probe import planned, probe
    from harness.runs.finished.rescore import Named

    asked, trusted = planned(probes, settings, check_seed(seed))
    runs, broken = _runs(names, out)
    progress, told = (
        loading(f"{len(runs)} run{'s' * (len(runs) != 1)}, probes {', '.join(each.name for each in asked)}"),
        Named(trusted, *files),
    )
    found: dict[str, list[Any]] = {}
    failed = len(broken)
    for problem in broken:
        print(escaped(f"warning: not probed: {problem.path}: {problem.what}"), file=sys.stderr)
    for run in runs:
        try:
            found[str(run.dir)] = probe(run, asked, told, out, offline, progress)
        except BenchError as error:
            if len(runs) == 1 and not broken:
                raise
            failed += 1
            print(escaped(f"warning: not probed: {error}"), file=sys.stderr)
    plain = {name: [result.plain() for result in results] for name, results in found.items()}
    print(json.dumps({"probes": plain}, allow_nan=False) if as_json else escaped_lines(probe_table(found)))
    return 4 if failed else 0


def _runs(names: list[str], out: Path) -> tuple[list[Any], list[Any]]:
    """The finished runs that names stand for, in a folder of many all of them, and the problems of broken records there.

    Raises EmptySelection if there are none.
    """
    from harness.core.errors import EmptySelection
    from harness.records.read import find_runs, locate

    found: dict[Path, Any] = {}
    problems: list[Any] = []
    for name in names:
        many = os.path.isdir(name) and not os.path.lexists(os.path.join(name, "manifest.json"))
        runs, broken = find_runs([Path(name)]) if many else ([locate(name, out)], [])
        problems += broken
        found |= {run.dir: run for run in runs if run.summary is not None or not many}
    if not found:
        raise EmptySelection(f"no finished runs below {', '.join(names)}; see harness list runs --out DIR")
    return list(found.values()), problems


def probe_table(found: dict[str, list[Any]]) -> str:
    """What each probe found: a line of readings of the judge, and the number that they become."""
    lines = []
    for name, results in found.items():
        lines.append(name)
        for result in results:
            value = "-" if result.value is None else f"{result.value:.3f}"
            lines.append(f"  {result.probe:15} {result.number} judge {value}   {'  '.join(map(_reading, result.readings))}")
    return "\n".join(lines)


def _reading(reading: Any) -> str:
    judge = reading.metrics["judge"].value if "judge" in reading.metrics else None
    return f"{reading.label or format(reading.at, 'g')}: {'-' if judge is None else format(judge, '.3f')}"


def _run_cell(
    cell: Any, fresh: bool, progress: Progress, as_json: bool, unmask: bool, profile: bool = False,
    tracking: Tracking = UNTRACKED,
) -> int:  # fmt: skip
    from harness.policy.models import processes
    from harness.runs.finished.probe import probe_cell
    from harness.runs.session import run

    watched = tracking if processes.rank() == 0 else UNTRACKED  # of several processes one writes
    with tracked(watched, cell.path, cell.out, progress.say) as live:
        progress.written = live.written
        summary, worked = run(cell, fresh=fresh, progress=progress, profile=profile)
        if not worked:
            progress.say(f"already done: {cell.path} (--fresh runs it again)")
        probe_cell(cell, progress)
        # torchrun ends all once one has ended badly
        processes.first(lambda: _show(cell, summary, as_json, unmask, live, progress))
    return 4 if summary.status == "degraded" else 0


def _show(cell: Any, summary: Any, as_json: bool, unmask: bool, live: Live, progress: Progress) -> None:
    said = json.dumps(summary.plain(), allow_nan=False) if as_json else shown(cell.path, summary, unmask)
    pictures = draw(cell.path)
    for hint in live.end():
        progress.say(hint)
    where = escaped_lines(f"record   {cell.path}\npicture  {pictures}")
    print(said if as_json else f"{said}\n{where}")
    if started_by_torchrun():
        flush_output()
