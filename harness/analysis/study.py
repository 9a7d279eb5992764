"""A study: records that were read together, and what the pages compute from them, each number once and on first use."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from harness.records.read import find_runs
from harness.records.schema import Problem, Run

from . import cells as states
from . import groups as grouping
from .columns import BY_KEY, Column, kind_columns
from .curves.falls import Fall, falls
from .curves.knobs import Curve, curves
from .curves.probes import Probing, probings
from .curves.table import Readings, readings
from .groups import MOST_DRAWN, Entry, Estimate, Group, competing, difference, estimate, method_of
from .ranking import Above, Ranked, above_frontier, least_shown, ranking
from .stats import Difference
from .terms import PromptTerms

MOST_GROUPS = 16  # with a section of a report of their own
MOST_METHODS = 120  # of a group in its section
MOST_DRAWN_IN_ALL = 3000  # of all groups of a report
MACHINES = "the runs were made on different machines, so their times do not compare"


@dataclass(frozen=True, eq=False)
class StudyGroup(Group):
    """A group with its ranks, estimates and runs above the frontier; `part` holds the curves of a part of a group."""

    part: list[Curve] | None = field(default=None, repr=False)
    _estimates: dict[tuple[Entry, str], Estimate] = field(default_factory=dict, init=False, repr=False)
    _tests: dict[tuple[Entry, Entry], Difference] = field(default_factory=dict, init=False, repr=False)
    _prompts: PromptTerms = field(default_factory=PromptTerms, init=False, repr=False)

    def estimate(self, entry: Entry, column: Column) -> Estimate:
        """Mean of a column over the seeds of an entry with its interval; a key stands for one column in all tables."""
        if column.key == "seconds" and not self.one_machine:
            return Estimate(None, [], (MACHINES,))
        place = (entry, column.key)
        if place not in self._estimates:
            self._estimates[place] = estimate(entry, column.of, column.key, self._prompts)
        return self._estimates[place]

    @cached_property
    def one_machine(self) -> bool:
        """Whether all runs say that they ran on the same kind of machine and device, so that their times compare."""
        return len({(run.manifest.provenance.platform, run.manifest.provenance.device) for run in self.runs}) < 2

    @cached_property
    def above(self) -> list[tuple[Run, Above]]:
        """The runs above the optimal frontier, which no policy can exceed, and their distance to it."""
        found = [(run, above_frontier(run)) for run in self.runs]
        return [(run, above) for run, above in found if above is not None]

    @cached_property
    def ranks(self) -> list[Ranked]:
        """The methods by the share of the habit removed, highest first.

        Not ranked is one with a run above the frontier, and one that sees the judge, beside others that do not.
        """
        suspects = {id(run) for run, _ in self.above}
        sound = competing([entry for entry in self.entries if suspects.isdisjoint(map(id, entry.runs))], method_of)
        return ranking([(entry, self.estimate(entry, BY_KEY["removed"])) for entry in sound], self.removed_more)

    @cached_property
    def least_shown(self) -> float | None:
        """The difference in percent removed that the typical pair of ranked methods shows four times in five."""
        return least_shown([self.removed_more(a.entry, b.entry) for a, b in combinations(self.ranks, 2)])

    def removed_more(self, a: Entry, b: Entry) -> Difference:
        """What a removes less what b removes, in percent, with the error over seeds, prompts and responses."""
        key = (a, b)
        if key not in self._tests:
            self._tests[key] = difference((a, b), BY_KEY["removed"].of, "removed", self._prompts)
        return self._tests[key]

    @cached_property
    def curves(self) -> list[Curve]:
        """The curve of each method over the values of its knob; nothing where no method has enough values."""
        return curves(self) if self.part is None else self.part

    @cached_property
    def readings(self) -> Readings:
        """The numbers along the curves, in the order of the first table."""
        return readings(self.curves, self._prompts, self.reference)

    @cached_property
    def falls(self) -> list[Fall]:
        """Where a method's judge falls as its reward rises along its knob, first those beyond error."""
        return falls(self.curves, self._prompts)

    @cached_property
    def at_middle(self) -> StudyGroup:
        """This group with one choice of settings a method, that at the middle value of its knob; itself without curves."""
        if not self.curves:
            return self
        return StudyGroup(self.preset, self.task, [Entry(c.name, c.middle.runs) for c in self.curves], self.most)

    def first(self, methods: int) -> StudyGroup:
        """The group with so many methods at most, itself if it has no more: the best choices of settings of each, in turn."""
        if len(self.curves or self.entries) <= methods:
            return self
        if self.curves:
            order = {reading.name: i for i, reading in enumerate(self.readings.rows)}
            chosen = _in_turn(self.curves, methods, lambda curve: (curve.method, order[curve.name]))
            entries = {id(point.entry) for curve in chosen for point in curve.points}
        else:
            chosen = []
            entries = set(map(id, _in_turn(self.entries, methods, self._place)))
        return StudyGroup(self.preset, self.task, [e for e in self.entries if id(e) in entries], self.most, chosen)

    def _place(self, entry: Entry) -> tuple[str, float]:
        """A method, and how little of the habit a choice of its settings removes."""
        found = self.estimate(entry, BY_KEY["removed"]).interval
        return entry.runs[0].manifest.method, inf if found is None else -found.mean

    @cached_property
    def world(self) -> dict[str, Any]:
        """The identity that all runs of the group share, which makes them comparable."""
        return grouping.world(self)

    @cached_property
    def kinds(self) -> list[Column]:
        """One column of undesired score for each kind of prompt."""
        return kind_columns(self)

    @cached_property
    def probings(self) -> tuple[list[Probing], list[Problem]]:
        """What probes found of every method, and the records whose probes cannot be read."""
        return probings(self)


@dataclass(frozen=True, eq=False)
class Study:
    """Records of runs with the problems of reading them, their groups, headings and cells."""

    runs: Sequence[Run]
    problems: Sequence[Problem] = ()
    outdated: Mapping[Path, Sequence[str]] = field(default_factory=dict)  # by folder of a run: its parts older than the code
    dead: Collection[Path] = ()  # folders of runs that say `running` while no process holds them

    @cached_property
    def groups(self) -> list[StudyGroup]:
        """The runs, split where they cannot be compared, the largest group first."""
        found = grouping.groups(list(self.runs))
        most = min(MOST_DRAWN, MOST_DRAWN_IN_ALL // max(1, min(len(found), MOST_GROUPS)))
        return [StudyGroup(group.preset, group.task, group.entries, most) for group in found]

    @cached_property
    def shown(self) -> list[StudyGroup]:
        """What a page can show: of the first groups so many methods each."""
        return [group.first(MOST_METHODS) for group in self.groups[:MOST_GROUPS]]

    @cached_property
    def headings(self) -> list[str]:
        """A name for each group: task, preset and, where these are not unique, the difference of the worlds."""
        return grouping.headings(self.groups)

    @cached_property
    def cells(self) -> list[states.Cell]:
        """The cells in the order of the report, missing ones last; `Cell.group` is the place of its group in `groups`."""
        return states.cells(self.groups, self.outdated, self.dead)


Item = TypeVar("Item")


def _in_turn(items: Sequence[Item], most: int, place: Callable[[Item], tuple[str, float]]) -> list[Item]:
    """The first of each method by their places, then the second of each, up to so many in all; in the order given."""
    if len(items) <= most:
        return list(items)
    places, seen = [place(item) for item in items], Counter[str]()
    turns = []
    for i in sorted(range(len(items)), key=lambda i: (places[i][1], i)):
        turns.append((seen[places[i][0]], places[i][1], i))
        seen[places[i][0]] += 1
    return [items[i] for i in sorted(i for _, _, i in sorted(turns)[:most])]


def read_study(dirs: Iterable[Path]) -> Study:
    """Read the records below some folders, and find those that are older than the code or whose process has ended.

    No more is held of each than a report shows (`harness.records.tables.lean`).
    """
    from harness.records.tables.lean import Lean

    with _uncollected():
        return _study(*find_runs(dirs, kept=Lean()))


def read_states(dirs: Iterable[Path]) -> Study:
    """The same with no more of each record than its state needs: of many in one folder through an index, which this writes."""
    from harness.records.read import read_run
    from harness.records.tables.index import Index, States

    dirs = [Path(dir) for dir in dirs]
    states = States(read_run)
    with _uncollected():
        if len(dirs) != 1:
            return _study(*find_runs(dirs, states))
        index = Index(dirs[0], states)
        found = _study(*find_runs(dirs, index))
        index.save()
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles, of which records have none, and which passes over all of them again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _study(runs: list[Run], problems: list[Problem]) -> Study:
    from harness.core.files import held
    from harness.records.stale import outdated

    dead = {run.dir for run in runs if run.manifest.status == "running" and not held(run.dir)}
    return Study(runs, problems, outdated(runs), dead)
