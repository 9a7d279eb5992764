"""Selection of runs by an argument of `harness compare`: those of one method with one choice of settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import BadSetting, EmptySelection, UnknownName
from harness.core.settings import parse_override
from harness.core.text import plain, shorten
from harness.records.read import by_id, find_runs, holds_records
from harness.records.schema import Problem, Run
from harness.records.tables.lean import Lean

from .groups import DIGITS, HASH, groups, leaves, unlike
from .ranking import above_frontier


class Side(NamedTuple):
    """The runs selected by one argument, all of one method with one choice of settings."""

    text: str
    runs: list[Run]  # done, and possible
    left_out: list[str]
    problems: list[Problem]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.manifest.seed for run in self.runs})


Records = tuple[list[Run], list[Problem]]


def select(texts: Sequence[str], out: Path) -> list[Side]:
    """Select the runs of each argument: a folder of a run or of runs, METHOD[:key=value,...] or a run's id within `out`.

    Raises EmptySelection where nothing is done, UnknownName for a name, BadSetting where the runs are not of one
    method with one choice of settings in one world.
    """

    @cache
    def everything() -> Records:  # read once, and only if an argument names a method
        return find_runs([out], kept=Lean()) if holds_records(str(out)) else ([], [])

    return [_side(text, out, everything) for text in texts]


def _side(text: str, out: Path, everything: Callable[[], Records]) -> Side:
    found, problems = find_runs([Path(text)], kept=Lean()) if holds_records(text) else _named(text, out, everything)
    if not found:
        why = f"; {len(problems)} could not be read, first {problems[0].path}: {problems[0].what}" if problems else ""
        raise EmptySelection(f"{text!r} selects no run{why}")
    _one_choice(text, found)
    faults = [(run, _fault(run)) for run in found]
    sound, left_out = [run for run, fault in faults if not fault], [fault for _, fault in faults if fault]
    if not sound:
        raise EmptySelection(f"{text!r} selects no run that can be compared: {', '.join(left_out)}")
    return Side(text, sound, left_out, problems)


def _fault(run: Run) -> str | None:
    """The reason to leave a run out, if there is one."""
    if run.manifest.status != "done":
        return f"seed {run.manifest.seed} is {run.manifest.status}"
    if above_frontier(run) is not None:
        return f"seed {run.manifest.seed} lies above the frontier beyond its error, a suspected fault of the suite"
    return None


def _named(text: str, out: Path, everything: Callable[[], Records]) -> Records:
    """Runs of an id, or of METHOD[:key=value,...]: a key is a method setting, task, preset, seed or a path in the identity."""
    if os.sep in text.partition(":")[0]:
        raise EmptySelection(f"no folder {text!r}; give a folder, METHOD[:key=value,...], or the id of a run")
    runs, problems = everything()
    if not runs:
        raise EmptySelection(f"no folder {text!r}, and no records in {out}; choose them with --out, or give folders")
    name, _, rest = text.partition(":")
    same = [run for run in runs if _normalised(run.manifest.method) == _normalised(name)]
    unread = [p for p in problems if _normalised(p.path.parent.name) == _normalised(name)]
    if not same and unread:
        return [], unread
    if not same and (one := by_id(text, runs)) is not None:
        return [one], []
    if not same:
        known = [*{r.manifest.method for r in runs}, *(r.manifest.run_id for r in runs)]
        raise UnknownName("method or run", name, known, f"those with records in {out}")
    found = _filtered(same, text, rest)
    dirs = {run.dir for run in found}
    return found, [p for p in problems if p.path in dirs or p in unread]


def _normalised(name: str) -> str:
    return name.replace("-", "_")


def _filtered(runs: list[Run], text: str, rest: str) -> list[Run]:
    for item in re.split(r",(?=[\w.]+=)", rest) if rest else []:
        if "=" not in item:
            raise BadSetting(f"a selection is METHOD:key=value,key=value; found {item!r} in {text!r}")
        key, wanted = parse_override(item)
        known = {k for run in runs for k in _keys(run)}
        if key not in known:
            raise UnknownName("setting", key, known, f"of the runs that {text!r} starts from")
        digits = item.partition("=")[2].strip().strip('"')
        runs = [run for run in runs if _same(found := _keys(run).get(key), wanted) or _is_hash(found, digits)]
    return runs


def _is_hash(found: Any, digits: str) -> bool:
    """Whether a value is a hash that begins with these digits, as labels show it."""
    return len(digits) >= DIGITS and isinstance(found, str) and bool(HASH.fullmatch(found)) and found.startswith(digits)


def _keys(run: Run) -> dict[str, Any]:
    """Every key that a selection can use."""
    m = run.manifest
    method = m.identity.get("method")
    own = method.get("settings", {}) if isinstance(method, dict) else {}
    whole = {".".join(path): value for path, value in leaves(m.identity).items()}
    return {**whole, **{k: getattr(m, k) for k in ("preset", "task", "seed", "run_id")}, **own}


def _same(found: Any, wanted: Any) -> bool:
    """Whether two values are equal: numbers by value, anything else as text."""
    if isinstance(found, (int, float)) and isinstance(wanted, (int, float)) and not isinstance(found, bool):
        return found == wanted
    return str(found).lower() == str(wanted).lower()


def _one_choice(text: str, runs: list[Run]) -> None:
    found = groups(runs)
    tasks = sorted({group.task for group in found})
    if len(tasks) > 1:
        listed = ", ".join(map(plain, tasks))
        raise BadSetting(f"{text!r} holds runs of the tasks {listed}; {_narrower(text, 'task', tasks)}")
    if len(found) > 1:
        how = _narrower(text, *_telling([group.runs[0] for group in found]))
        raise BadSetting(f"{text!r} holds runs of {len(found)} worlds, unlike in {unlike(found)}; {how}")
    names = [shorten(entry.name, 80) for entry in found[0].entries]
    if len(names) > 1:
        how = _narrower(text, *_telling([entry.runs[0] for entry in found[0].entries]))
        raise BadSetting(f"{text!r} holds {len(names)} methods or settings: {'; '.join(names)}; {how}")


def _telling(runs: list[Run]) -> tuple[str, list[str]]:
    """The shortest key that has another value in each of several runs, and its values; empty if there is none."""
    own = [{k: v for k, v in _keys(run).items() if k not in ("seed", "run_id")} for run in runs]
    keys = [k for k in own[0] if len({str(keys.get(k)) for keys in own}) == len(own)]
    key = min(keys, key=lambda k: (len(k.split(".")), k), default="")
    return key, [_short(keys.get(key)) for keys in own]


def _short(value: Any) -> str:
    return value[:DIGITS] if isinstance(value, str) and HASH.fullmatch(value) else str(value)


def _narrower(text: str, key: str, values: list[str]) -> str:
    """What narrows a selection to one of several values of a key."""
    if holds_records(text) or not key:
        return "give the folder or the id of one"
    return f"narrow it, as by {text}{',' if ':' in text else ':'}{key}={plain(values[0])}"
