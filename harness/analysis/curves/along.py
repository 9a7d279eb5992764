"""Numbers along a curve: a score within a KL, the least KL for a score, and the area, each with its error.

A curve begins at the base policy, goes through the means of its points by their KL, and is straight between two of them: a
policy that draws a share of its responses from one and the rest from the other has a score on that line at no more KL, since
KL is convex. Beyond its last point it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stats import Interval
from .linear import Linear, Side, Table, linear

CLOSE = 0.02  # of the KL cap; points closer than that are one, as the slope between them would be noise
STEPS = 240  # of the KL axis up to the cap, for areas and for the ends of an interval of the least KL


class Scores(NamedTuple):
    """The runs at one point of a curve: KL and score of each seed, [n], and of each prompt, [n, X] or None.

    The errors over prompts, [n], are used where there are no terms by prompt.
    """

    kl: Table
    score: Table
    kl_by_prompt: Table | None
    score_by_prompt: Table | None
    kl_error: Table
    score_error: Table


class Least(NamedTuple):
    """The least KL at which a score is reached, None if it is not, with its interval, open (inf) if that ends beyond the curve."""

    value: float | None
    interval: Interval | None
    linear: Linear | None  # for differences; None where the curve is level
    most: float  # the highest score on the curve


@dataclass(frozen=True, eq=False)
class Line:
    """A score against KL along one curve: the base's score, its terms by prompt [X], and the points by increasing KL."""

    base: float
    base_by_prompt: Table | None
    points: list[Scores]

    @cached_property
    def kl(self) -> NDArray[np.float64]:
        """Mean KL of the base policy (0) and of each point: [V + 1]."""
        return np.array([0.0, *(point.kl.mean() for point in self.points)])

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """Mean score of the base policy and of each point: [V + 1]."""
        return np.array([self.base, *(point.score.mean() for point in self.points)])

    @property
    def reach(self) -> float:
        """The KL of the last point, nats; 0 for a curve without points."""
        return float(self.kl[-1])

    def at(self, kl: float) -> Linear | None:
        """The score at a KL of so many nats, None beyond the last point."""
        if not 0 <= kl <= self.reach or len(self.kl) < 2:
            return None
        after = max(1, int(np.searchsorted(self.kl, kl)))
        width = self.kl[after] - self.kl[after - 1]
        share = (kl - self.kl[after - 1]) / width if width > 0 else 1.0
        slope = (self.score[after] - self.score[after - 1]) / width if width > 0 else 0.0
        weights = np.zeros(len(self.kl))
        weights[after - 1 : after + 1] = 1 - share, share
        return self.linear(float(weights @ self.score), weights, -slope * weights)

    def linear(self, value: float, scores: Table, kls: Table) -> Linear:
        """A number with its derivatives to the scores and the KLs of base and points, [V + 1] each."""
        slopes = np.gradient(self.score, np.maximum.accumulate(self.kl + 1e-9 * np.arange(len(self.kl))))
        used = [i for i in range(1, len(self.kl)) if scores[i] or kls[i] or len(self.points[i - 1].kl) > 1]
        sides = [_side(self.points[i - 1], scores[i], kls[i], slopes[i]) for i in used]
        fixed = None if self.base_by_prompt is None else scores[0] * self.base_by_prompt
        return linear(value, sides, fixed)

    def least(self, target: float, within: tuple[float, float] = (-inf, inf)) -> Least:
        """The least KL at which the score is reached, and the KLs at which its interval does: first its upper, then its lower end."""
        most = float(self.score.max())
        found = self._crossing(target)
        if found is None:
            return Least(None, None, None, most)
        kl, slope = found
        at = self.at(kl)
        ends = self._ends(target, within) if at is not None and at.seeds else None
        interval = Interval(kl, *(ends or (None, None)))
        return Least(kl, interval, at.scaled(-1 / slope, kl) if at is not None and slope > 0 else None, most)

    def _crossing(self, target: float) -> tuple[float, float] | None:
        """The KL at which the line first reaches a score, and its slope there."""
        if self.base >= target:
            return 0.0, 0.0
        for i in np.flatnonzero(self.score[1:] >= target)[:1]:
            rise, width = self.score[i + 1] - self.score[i], self.kl[i + 1] - self.kl[i]
            return float(self.kl[i] + (target - self.score[i]) / rise * width), float(rise / max(width, 1e-9))
        return None

    def _ends(self, target: float, within: tuple[float, float]) -> tuple[float, float]:
        """The first KL at which the upper, and the lower, end of the score's interval reaches a target; inf where none does."""
        at = np.linspace(0.0, self.reach, STEPS)
        bands = [(k, found.interval(within)) for k in at if (found := self.at(float(k))) is not None]
        low = next((k for k, band in bands if band.high is not None and band.high >= target), inf)
        high = next((k for k, band in bands if band.low is not None and band.low >= target), inf)
        return float(low), float(high)

    def area(self, cap: float) -> Linear:
        """The area of the best score reached within each KL over the base's, from 0 to the cap, level beyond the last point.

        The point that is best is chosen by one half of the seeds and its score taken from the other half, and the reverse, so
        that noise adds nothing: of a method without an effect the area is 0 on average.
        """
        halves = [np.array([self.base, *(_half(point.score, side) for point in self.points)]) for side in (0, 1)]
        both = [_best(self.kl, *pair, cap) for pair in (halves, halves[::-1])]
        weights = np.mean([scores for _, scores in both], axis=0)
        value = float(np.mean([value for value, _ in both]))
        moved = np.array([self._moved(i, halves, cap) for i in range(len(self.kl))])
        return self.linear(value - cap * self.base, weights - np.eye(len(self.kl))[0] * cap, moved)

    def plain_area(self, cap: float) -> float:
        """The same area without an error, each score chosen by itself."""
        return _best(self.kl, self.score, self.score, cap)[0] - cap * self.base

    def _moved(self, i: int, halves: list[Table], cap: float) -> float:
        """The derivative of the area to the KL of a point."""
        if i == 0 or self.kl[i] <= 0:
            return 0.0
        step = min(0.02 * cap, 0.5 * self.kl[i])
        areas = []
        for sign in (1, -1):
            kl = self.kl + sign * step * np.eye(len(self.kl))[i]
            areas.append(np.mean([_best(kl, *pair, cap)[0] for pair in (halves, halves[::-1])]))
        return float((areas[0] - areas[1]) / (2 * step))


def line(base: float, base_by_prompt: Table | None, points: Sequence[Scores], cap: float) -> Line:
    """The line through points in any order; points closer in KL than CLOSE caps are joined, seeds and all."""
    joined: list[Scores] = []
    for point in sorted(points, key=lambda p: p.kl.mean()):
        if joined and point.kl.mean() - joined[-1].kl.mean() < CLOSE * cap:
            joined[-1] = _joined(joined[-1], point)
        else:
            joined.append(point)
    return Line(base, base_by_prompt, joined)


def _joined(a: Scores, b: Scores) -> Scores:
    columns = [None if x is None or y is None else np.concatenate([x, y]) for x, y in zip(a, b, strict=True)]
    return Scores(*columns)  # type: ignore[arg-type]


def _side(point: Scores, score: float, kl: float, slope: float) -> Side:
    own = score * point.score + kl * point.kl
    table = None
    if point.score_by_prompt is not None and point.kl_by_prompt is not None:
        table = score * point.score_by_prompt + kl * point.kl_by_prompt
    plain = float(abs(score) * point.score_error.mean() + abs(kl) * point.kl_error.mean())
    return Side(float(score), own, point.score - slope * point.kl, table, plain)


def _half(values: Table, side: int) -> float:
    """Mean of every second seed, of the only one where there is one."""
    return float(values[side::2].mean()) if len(values) > 1 else float(values.mean())


def _best(kl: Table, chosen_by: Table, score: Table, cap: float) -> tuple[float, Table]:
    """Integral from 0 to the cap of the score where `chosen_by` is the highest within each KL, and its weights: [V + 1]."""
    v = len(kl)
    at = (np.arange(STEPS) + 0.5) * cap / STEPS
    order = np.argsort(kl, kind="stable")
    on_line = np.stack([np.interp(at, kl[order], np.eye(v)[i][order]) for i in range(v)], axis=1)  # [STEPS, V + 1]
    ways = np.concatenate([np.broadcast_to(np.eye(v), (STEPS, v, v)), on_line[:, None]], axis=1)  # a point so far, or the line
    within = np.concatenate([kl[None] <= at[:, None], np.ones((STEPS, 1), bool)], axis=1)
    best = np.where(within, ways @ chosen_by, -np.inf).argmax(1)
    weights = ways[np.arange(STEPS), best].sum(0) * cap / STEPS
    return float(weights @ score), weights
