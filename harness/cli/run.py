"""`harness run` and `harness eval`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness.core.errors import MissingPrerequisite, UsageError
from harness.core.settings import check_seed
from harness.core.text import escaped_lines
from harness.export.live import UNTRACKED, Tracking, tracked
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
    from harness.runs import assemble

    assemble.check(settings, method)
    if dry_run:
        from harness.runs.cost import plan

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
    from harness.runs import assemble

    shared = assemble.parts(settings, task, offline, out)
    cell = assemble.external_cell(settings, shared, policy, task, out, offline, prefix)
    return _run_cell(cell, fresh, progress, as_json, unmask)


def _run_cell(
    cell: Any, fresh: bool, progress: Progress, as_json: bool, unmask: bool, profile: bool = False,
    tracking: Tracking = UNTRACKED,
) -> int:  # fmt: skip
    from harness.runs.session import run

    with tracked(tracking, cell.path, cell.out, progress.say) as live:
        progress.written = live.written
        summary, worked = run(cell, fresh=fresh, progress=progress, profile=profile)
        if not worked:
            progress.say(f"already done: {cell.path} (--fresh runs it again)")
        said = json.dumps(summary.plain(), allow_nan=False) if as_json else shown(cell.path, summary, unmask)
        pictures = draw(cell.path)
        for hint in live.end():
            progress.say(hint)
    where = escaped_lines(f"record   {cell.path}\npicture  {pictures}")
    print(said if as_json else f"{said}\n{where}")
    return 4 if summary.status == "degraded" else 0
