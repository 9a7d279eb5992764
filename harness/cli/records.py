"""The commands that read records: `report`, `compare`, `verify`, `samples`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from harness.core.errors import CorruptRecord, Mismatch, UsageError
from harness.core.text import count, escaped, escaped_lines, lines
from harness.records.checks import Check
from harness.records.read import find_runs, locate
from harness.records.samples import SCORES, Wanted, choose, read, shown
from harness.records.schema import Run, Sample
from harness.records.tables.layout import is_study, study_above
from harness.records.verify import verify


def report_command(records: list[Path], out: Path) -> int:
    """Build the page; the exit code is 4 where a cell is not done or a record incomplete, 5 where a run cannot be."""
    from harness.analysis.study import read_study
    from harness.report.build import build

    study = read_study(records)
    result = build(study, out)
    for problem in result.problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    for state in result.unfinished:
        print(escaped(f"warning: {state}"), file=sys.stderr)
    print(escaped(f"{count(len(study.runs), 'run')} -> {out / 'index.html'}"))
    return result.exit_code


def compare_command(a: str, b: str, metrics: list[str], regress_if: list[str], out: Path, as_json: bool) -> int:
    """Compare two selections; exit code 4 where something was left out; raises Mismatch where a regression holds."""
    from harness.analysis import compare
    from harness.analysis.select import select
    from harness.core.errors import Mismatch

    conditions = [compare.parse_condition(text) for text in regress_if]
    sides = select([a, b], out)
    found = compare.compare(sides[0], sides[1], metrics, conditions)
    print(json.dumps(compare.record(found), allow_nan=False) if as_json else escaped_lines(compare.text(found)))
    for problem in dict.fromkeys(p for side in sides for p in side.problems):
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    for text in found.undecided:
        print(escaped(f"warning: cannot judge {text}"), file=sys.stderr)
    if found.regressions:
        raise Mismatch(f"regression beyond its error: {'; '.join(found.regressions)}")
    return 4 if found.undecided or any(side.left_out or side.problems for side in sides) else 0


def text(rows: list[Sample], unmask: bool, width: int) -> str:
    """The samples for reading, no longer than the terminal is wide."""
    return "\n\n".join(_sample(shown(row, unmask), width) for row in rows)


def _sample(row: dict[str, Any], width: int) -> str:
    scores = "  ".join(f"{key} {'-' if row[key] is None else format(row[key], '.3f')}" for key in SCORES if key in row)
    found = [f"prompt {row['prompt_id']}, {escaped(row['kind'])}  {scores}"]
    for name in ("prompt", "response"):
        first, *rest = lines(row[name], max(20, width - 12))
        found += [f"  {name:10}{first}", *(" " * 12 + line for line in rest)]
    return "\n".join(line.rstrip() for line in found)


def samples_command(name: str, out: Path, of: str, wanted: Wanted, unmask: bool, as_json: bool) -> int:
    """Show some of a run's samples."""
    run = locate(name, out)
    rows = read(run, of)
    chosen = choose(rows, wanted)
    if as_json:
        found = {"run_id": run.manifest.run_id, "of": of, "n_samples": len(rows), "unmasked": unmask}
        print(json.dumps(found | {"samples": [shown(row, unmask) for row in chosen]}, allow_nan=False))
        return 0
    note = "" if unmask else "; texts are hidden, --unmask shows them, and they can be offensive"
    print(f"{escaped(run.dir)}, {escaped(of)}: {len(chosen)} of {count(len(rows), 'sample')}{note}\n")
    print(text(chosen, unmask, get_terminal_size().columns))
    return 0


def verify_command(
    names: list[str], out: Path, rescore: bool, offline: bool, as_json: bool, overrides: Sequence[str] = (),
    task: str | None = None, preset: str | None = None,
) -> int:  # fmt: skip
    """Check some runs, a line a mismatch; raises Mismatch where there is one."""
    named = {"--set": overrides, "--task": task, "--preset": preset}
    if not rescore and (used := next((option for option, value in named.items() if value), None)):
        raise UsageError(f"{used} says what --rescore may load; give --rescore too, or leave it out")
    runs: dict[str, Run | None] = {}
    for name in names:
        runs |= _in_study(name) or {name: None}
    found = {name: _all(run or name, out, rescore, offline, (overrides, task, preset)) for name, run in runs.items()}
    if as_json:
        print(json.dumps({"runs": {name: [c._asdict() for c in checks] for name, checks in found.items()}}, allow_nan=False))
    else:
        print("\n".join(line for name, checks in found.items() for line in _lines(name, checks)))
    broken = sum(check.held is False for checks in found.values() for check in checks)
    if broken:
        all_of = count(sum(map(len, found.values())), "check")
        raise Mismatch(f"{broken} of {all_of} {'does' if broken == 1 else 'do'} not match what the records say")
    return 0


def _in_study(name: str) -> dict[str, Run | None]:
    """The runs that a name stands for in a study, by their names, None for one that cannot be read; nothing for any other."""
    if not is_study(Path(name)) and study_above(Path(name)) is None:
        return {}
    found, problems = find_runs([Path(name)])
    return {str(run.dir): run for run in found} | {str(problem.path): None for problem in problems}


def _all(
    named: str | Run,
    out: Path,
    rescore: bool,
    offline: bool,
    told: tuple[Sequence[str], str | None, str | None] = ((), None, None),
) -> list[Check]:
    try:
        run = named if isinstance(named, Run) else locate(named, out)
    except CorruptRecord as error:  # of one among several, which are looked at all the same
        return [Check("record", False, "one that can be read", str(error))]
    checks = verify(run)
    if not rescore:
        return checks
    from harness.runs.finished.rescore import Named, rescored

    again = rescored(run, offline, Named(*told))
    replaced = {check.what for check in again}
    return [check for check in checks if check.held is not None or check.what not in replaced] + again


def _lines(name: str, checks: list[Check]) -> list[str]:
    """What does not match, what was not checked and why, and the count."""
    broken = [c for c in checks if c.held is False]
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if check.held is None:
            reasons.setdefault(check.found, []).append(check.what)
    for what in reasons.values():  # a metric stands for itself by kind
        what[:] = [name for name in what if name.partition("@")[0] not in what or "@" not in name]
    found = [f"MISMATCH  {c.what}: expected {c.expected}, found {c.found}" for c in broken]
    found += [f"not checked  {', '.join(what)}: {why}" for why, what in reasons.items()]
    held = sum(c.held is True for c in checks)
    return [escaped(line) for line in [*found, f"{name}: {count(held, 'check')} held, {len(broken)} did not"]]
