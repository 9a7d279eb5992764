"""The state of each cell of a benchmark: a method on a task, with its seeds. Plain records in, plain data out.

A seed is `done`; `degraded` (too much unscored); `running`; `partial` (begun, to resume); `failed`; `stale` (of an older
method, task, evaluation, world or scorer than the code has now); or `missing` (another method of the task has it).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.core.hashing import canonical
from harness.core.text import plain
from harness.records.schema import Run

from .groups import Entry, Group, method_of

STATES = ("done", "degraded", "running", "partial", "failed", "stale", "missing")
WORST = ("failed", "running", "stale", "degraded", "partial")  # which of its seeds' states a cell shows first


class Cell(NamedTuple):
    """One method, with one choice of settings, on one task."""

    method: str
    task: str
    preset: str
    name: str  # of the entry, as the report calls it: the method, and what sets this choice of settings apart
    group: int  # the place of its group, from 0
    state: str
    seeds: dict[int, str]  # the state of each seed, in order, those that are missing too
    reasons: dict[int, str]  # of each seed that is not done, why
    runs: list[Run]
    beside: Sequence[Run] = ()  # of a cell without runs: those of other methods in its world, whose settings it shares


def cells(groups: Sequence[Group], outdated: Mapping[Path, Sequence[str]], dead: Collection[Path]) -> list[Cell]:
    """The cells of all groups in the order of the report, then the missing ones.

    `outdated`: of a run's folder, the parts older than the code (`harness.records.stale.outdated`); `dead` are the folders
    of runs that say `running` while no process holds them (`harness.core.files.held`).
    """
    recorded = [
        _cell(group, i, entry, seeds, outdated, dead)
        for i, group in enumerate(groups)
        for entry, seeds in zip(group.entries, expected(group), strict=True)
    ]
    return [*recorded, *_absent(groups, recorded)]


def expected(group: Group) -> list[set[int]]:
    """The seeds that each entry of a group should have: none of a policy trained elsewhere.

    The entry with the most seeds of each method should have all seeds of the group. The other choices of settings of a
    method, such as the further values of a knob in a study, should have those that such choices of half of the methods have:
    a few methods may have been given more.
    """
    leading: dict[str, tuple[int, Entry]] = {}
    for entry in group.entries:
        method, n = method_of(entry), len(_seeds(entry.runs))
        if method not in leading or n > leading[method][0]:
            leading[method] = n, entry
    first = {id(entry) for _, entry in leading.values()}
    every, fewer = _seeds(group.runs), _usual([entry for entry in group.entries if id(entry) not in first])
    wanted = [every if id(entry) in first else fewer for entry in group.entries]
    return [set() if external(entry.runs) else seeds for entry, seeds in zip(group.entries, wanted, strict=True)]


def _usual(entries: Sequence[Entry]) -> set[int]:
    """The seeds that at least half of the methods of some entries have."""
    by_method: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        by_method[method_of(entry)] |= _seeds(entry.runs)
    found = Counter(seed for seeds in by_method.values() for seed in seeds)
    return {seed for seed, n in found.items() if 2 * n >= len(by_method)}


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {run.manifest.seed for run in runs}


def counts(cell: Cell) -> dict[str, int]:
    """The number of a cell's seeds in each state; states without seeds are left out."""
    states = list(cell.seeds.values())
    return {state: states.count(state) for state in STATES if state in states}


def progress(run: Run) -> float | None:
    """The share of the budget spent at a run's last evaluation, in [0, 1]; None if not recorded."""
    budget = run.manifest.identity.get("budget")
    cost = run.trajectory[-1].cost if run.trajectory else None
    if not isinstance(budget, dict) or cost is None:
        return None
    shares = [spent / limit for key, limit in budget.items() if limit and (spent := cost.get(key)) is not None]
    return min(1.0, max(shares)) if shares else None


def _cell(
    group: Group, number: int, entry: Entry, wanted: set[int], outdated: Mapping[Path, Sequence[str]], dead: Collection[Path]
) -> Cell:
    by_seed: dict[int, tuple[str, str]] = {}
    for run in entry.runs:
        seed, found = run.manifest.seed, _state(run, outdated.get(run.dir, ()), run.dir in dead)
        by_seed[seed] = min(by_seed.get(seed, found), found, key=lambda pair: STATES.index(pair[0]))  # the best of doubles
    for seed in wanted - set(by_seed):
        by_seed[seed] = ("missing", "no record, and another method of the task has this seed")
    seeds = {seed: by_seed[seed][0] for seed in sorted(by_seed)}
    reasons = {seed: by_seed[seed][1] for seed in seeds if seeds[seed] != "done"}
    return Cell(method_of(entry), group.task, group.preset, entry.name, number, _cell_state(seeds), seeds, reasons, entry.runs)


def external(runs: list[Run]) -> bool:
    """Whether an entry is a policy trained elsewhere, which is measured once and has no seeds."""
    method = runs[0].manifest.identity.get("method")
    return isinstance(method, dict) and method.get("name") == "eval"


def _cell_state(seeds: Mapping[int, str]) -> str:
    states = set(seeds.values())
    if len(states) == 1:
        return states.pop()
    return next((state for state in WORST if state in states), "partial")  # done and missing


def _state(run: Run, outdated: Sequence[str], dead: bool) -> tuple[str, str]:
    """The state of one record, and the reason if it is not done."""
    status = run.manifest.status
    if outdated:
        return "stale", plain("; ".join(outdated))
    if status == "degraded":
        return "degraded", _degraded(run)
    if status == "failed":
        return "failed", _error(run)
    if status == "interrupted" or (status == "running" and dead):
        how = "interrupted" if status == "interrupted" else "its process is gone"
        return "partial", plain(f"{how}{_share(run)}; the same command goes on from there")
    if status == "running":
        return "running", f"at work{_share(run)}"
    return "done", ""


def _share(run: Run) -> str:
    share = progress(run)
    return "" if share is None else f", {share:.0%} of the budget at its last evaluation"


def _error(run: Run) -> str:
    error = run.manifest.error
    if error is None:
        return plain("no reason recorded")
    words = ": ".join(word for word in (error.type, error.message) if word)
    return plain(words or canonical(error.plain()))


def _degraded(run: Run) -> str:
    metrics, cost = (run.summary.final, run.summary.cost) if run.summary is not None else ({}, {})
    final = sum(metric.n_unscored for name, metric in metrics.items() if "@" not in name)
    training = cost.get("unscored") or 0
    return f"{final} scores missing at the end, {training:g} in training; left out of rankings"


def _absent(groups: Sequence[Group], recorded: list[Cell]) -> list[Cell]:
    """A missing cell for each method that has runs on another task of the preset but none on this one."""
    absent = []
    first: dict[tuple[str, str], int] = {}  # one of several worlds of a task stands for all
    methods: dict[str, set[str]] = defaultdict(set)  # by preset
    here: dict[tuple[str, str], set[str]] = defaultdict(set)
    for c in recorded:
        first[c.preset, c.task] = min(first.get((c.preset, c.task), c.group), c.group)
        here[c.preset, c.task].add(c.method)
        methods[c.preset] |= set() if external(c.runs) else {c.method}
    for (preset, task), number in sorted(first.items(), key=lambda item: item[1]):
        group = groups[number]
        elsewhere = sorted(methods[preset] - here[preset, task])
        seeds = sorted({run.manifest.seed for run in group.runs})
        why = "no record of this method on this task"
        for m in elsewhere:
            states, reasons = dict.fromkeys(seeds, "missing"), dict.fromkeys(seeds, why)
            absent.append(Cell(m, group.task, group.preset, plain(m), number, "missing", states, reasons, [], group.runs))
    return absent
