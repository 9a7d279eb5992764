"""What the first table of a report says of each method: numbers along its curve, and which methods are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.core.types import Metric
from harness.records.schema import Frontier, Run, Summary

from ..columns import BY_KEY
from ..groups import competing, counted
from ..stats import Difference, Interval, holm, ranks_of, t_interval
from ..terms import PromptTerms, Terms
from .along import Least, Line, Scores, line
from .knobs import Curve
from .linear import Linear, difference

SHARES = (0.25, 0.5, 1.0)
"""Of the task's KL cap, where scores are read."""
TARGET = 80.0
"""Percent of the habit whose least KL is read."""
SCORES = ("removed", "judge", "reward")
RANGES = {"removed": (-inf, 100.0), "judge": (0.0, 1.0), "reward": (0.0, 1.0)}
TERMS = ("kl", "removed", "judge", "reward", "base_judge", "base_reward")
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Reading:
    """The numbers of one curve; lines by score and of the gain in reward over the base, those without a value left out."""

    curve: Curve
    lines: dict[str, Line]
    cap: float | None
    optimum: float  # area of the judged frontier, percent times nats; 0 if it is not known

    @property
    def name(self) -> str:
        return self.curve.name

    @property
    def reach(self) -> float | None:
        """The largest KL of a point, nats; None if nothing was measured."""
        return self.lines["removed"].reach if "removed" in self.lines else None

    def within(self, score: str, share: float) -> Linear | None:
        """A score at a share of the KL cap; None if the curve does not reach there."""
        found = self.lines.get(score)
        return found.at(share * self.cap) if found is not None and self.cap else None

    def interval(self, score: str, share: float) -> Interval | None:
        """The same with its 95 % interval."""
        found = self.within(score, share)
        return None if found is None else found.interval(RANGES[score])

    @cached_property
    def least(self) -> Least | None:
        """The least KL that removes TARGET percent of the habit; None if nothing was measured."""
        found = self.lines.get("removed")
        return None if found is None else found.least(TARGET, RANGES["removed"])

    @cached_property
    def area(self) -> Linear | None:
        """The area under the best judge score within each KL up to the cap, over the base's, as a share of the frontier's."""
        found = self.lines.get("removed")
        if found is None or not self.cap or self.optimum <= 0:
            return None
        whole = found.area(self.cap)
        return whole.scaled(1 / self.optimum, whole.value / self.optimum)

    def cost(self, key: str) -> Interval | None:
        """A cost of a run, over all values of the knob and all seeds."""
        known = [
            v for point in self.curve.points for run in counted(point.entry) if (v := BY_KEY[key].of(run).value) is not None
        ]
        return t_interval(known) if known else None


class Beyond(NamedTuple):
    """How much more KL than the first method another one needs for TARGET percent, and its p adjusted for all such tests."""

    more: Difference
    adjusted: float


@dataclass(frozen=True, eq=False)
class Readings:
    """The curves of a group in the order of the first table, and how they compare."""

    rows: list[Reading]
    frontier: Frontier | None
    base: dict[str, float]

    @property
    def cap(self) -> float | None:
        return self.frontier.kl_cap if self.frontier else None

    @cached_property
    def optimal(self) -> Line | None:
        """Percent removed along the frontier: the judge's score of the policies that are optimal for the reward."""
        return _optimal(self.frontier, self.base)

    @cached_property
    def ways(self) -> list[Reading]:
        """The rows that are compared: not those of a method that sees the judge, beside others."""
        return competing(self.rows, lambda reading: reading.curve.method)

    @cached_property
    def ranked(self) -> list[Reading]:
        """The rows whose areas are tested and ranked: with an error over seeds, if any has one; others could have any rank."""
        known = [(reading, area) for reading in self.ways if (area := reading.area) is not None]
        return [reading for reading, area in known if area.seeds] or [reading for reading, _ in known]

    @cached_property
    def beyond(self) -> dict[str, Beyond]:
        """For each method that reaches TARGET percent, but the first, how much more KL it needs than the first."""
        reached = [(r.name, r.least.linear) for r in self.ways if r.least and r.least.linear]
        if not reached:
            return {}
        (_, first), *others = reached
        found = {name: difference(other, first) for name, other in others}
        tested = {name: d.p for name, d in found.items() if d.p is not None}  # one without an error is no test to correct for
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        return {name: Beyond(d, adjusted.get(name, 1.0)) for name, d in found.items()}

    @cached_property
    def pairs(self) -> tuple[int, int]:
        """How many pairs of methods differ in their area beyond error (Holm over all pairs, 5 %), and the number of pairs."""
        tests = self._tests
        adjusted = holm([p for _, p in tests.values()])
        return sum(p <= ALPHA for p in adjusted), len(tests)

    @cached_property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """The set of ranks of each method by its area, as of `stats.rank_sets`."""
        names = [r.name for r in self.ranked]
        tests = {**self._tests, **{(b, a): (-gain, p) for (a, b), (gain, p) in self._tests.items()}}
        return {name: ranks_of([tests[name, other] for other in names if other != name], ALPHA) for name in names}

    @cached_property
    def _tests(self) -> dict[tuple[str, str], tuple[float, float]]:
        """How much larger the area of the first of two methods is, and p."""
        known = [(r.name, r.area) for r in self.ranked if r.area is not None]
        found = {(a, b): difference(x, y) for (a, x), (b, y) in combinations(known, 2)}
        return {pair: (d.mean, 1.0 if d.p is None else d.p) for pair, d in found.items()}


def readings(curves: Sequence[Curve], prompts: PromptTerms, reference: Summary | None) -> Readings:
    """The numbers of each curve: first those that remove TARGET percent, by the least KL, then the others by their area."""
    terms = prompts.aligned([run for curve in curves for run in curve.runs if run.manifest.status == "done"], TERMS)
    frontier = reference.frontier if reference else None
    cap = frontier.kl_cap if frontier else None
    base = _base(reference)
    optimal = _optimal(frontier, base)
    optimum = optimal.area_value(cap) if optimal is not None and cap else 0.0
    rows = [Reading(curve, _lines(curve, terms, base, cap or 0.0), cap, optimum) for curve in curves]
    return Readings(sorted(rows, key=_order), frontier, base)


def _order(reading: Reading) -> tuple[bool, float, str]:
    least, area = reading.least, reading.area
    if least is not None and least.value is not None:
        return False, least.value, reading.name
    return True, -area.value if area is not None else inf, reading.name


def _base(reference: Summary | None) -> dict[str, float]:
    """Scores of the base policy; it removes nothing."""
    found = {key: m.value for key in ("judge", "reward", "ppl") if reference and (m := reference.base.get(key))}
    return {"removed": 0.0} | {key: value for key, value in found.items() if value is not None}


def _optimal(frontier: Frontier | None, base: dict[str, float]) -> Line | None:
    along = frontier.judge_at if frontier else None
    undesired = 1 - base.get("judge", 1.0)
    known = [(kl, judge) for kl, judge in zip(along.kl, along.judge, strict=True) if judge is not None] if along else []
    if undesired <= 0 or len(known) < 2:
        return None
    none = np.zeros(1)
    points = [
        Scores(np.array([kl]), np.array([100 * (1 - (1 - judge) / undesired)]), None, None, none, none)
        for kl, judge in sorted(known)
        if kl > 0
    ]
    return Line(0.0, None, points)


def _lines(curve: Curve, terms: dict[Path, dict[str, Terms]], base: dict[str, float], cap: float) -> dict[str, Line]:
    """The lines of a curve by score."""
    made = {}
    for score in SCORES:
        points = [p for point in curve.points if (p := _scores(counted(point.entry), score, terms)) is not None]
        if points and score in base:
            made[score] = line(base[score], _base_terms(curve, score, terms), points, cap)
    if "reward" in made:
        made["gain"] = _gain(made["reward"])
    return made


def _gain(reward: Line) -> Line:
    """The reward over that of the base policy on the same prompts."""
    base, terms = reward.base, reward.base_by_prompt
    paired = [
        p._replace(score=p.score - base, score_by_prompt=p.score_by_prompt - terms)
        if p.score_by_prompt is not None and terms is not None
        else p._replace(score=p.score - base)
        for p in reward.points
    ]
    return Line(0.0, None, paired)


def _base_terms(curve: Curve, score: str, terms: dict[Path, dict[str, Terms]]) -> Terms | None:
    known = next((terms[run.dir] for run in curve.runs if run.dir in terms), None)
    return None if known is None or score == "removed" else known[f"base_{score}"]


def _scores(runs: Sequence[Run], score: str, terms: dict[Path, dict[str, Terms]]) -> Scores | None:
    """KL and score of the runs at one point, those without either left out; None without any."""
    found = [(run, BY_KEY["kl"].of(run), BY_KEY[score].of(run)) for run in runs]
    known = [(run, kl, y) for run, kl, y in found if kl.value is not None and y.value is not None]
    if not known:
        return None
    whole = all(run.dir in terms for run, _, _ in known)
    kl_terms, terms_of = (np.array([terms[run.dir][key] for run, _, _ in known]) if whole else None for key in ("kl", score))
    kls, scores = [kl for _, kl, _ in known], [y for _, _, y in known]
    return Scores(_values(kls), _values(scores), kl_terms, terms_of, _errors(kls), _errors(scores))


def _values(found: Sequence[Metric]) -> Terms:
    return np.array([metric.value for metric in found], dtype=float)


def _errors(found: Sequence[Metric]) -> Terms:
    return np.array([metric.stderr or 0.0 for metric in found], dtype=float)
