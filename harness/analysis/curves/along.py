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
from .linear import Linear, Moments, Side, Table, linear, moments

CLOSE = 0.02  # of the KL cap; points closer than that are one, as the slope between them would be noise
STEPS = 240  # of the KL axis up to the cap, for areas
ENDS = 60  # KLs at which the ends of the interval of the least KL are looked for; straight between two of them


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
    """The least KL at which a score is reached, None if it is not, with its interval; an end beyond the curve is inf."""

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

    @cached_property
    def slopes(self) -> NDArray[np.float64]:
        """The slope of the line at the base policy and at each point, the mean of both sides: [V + 1]."""
        steps = np.diff(self.score) / np.maximum(np.diff(self.kl), 1e-9)
        return np.array([steps[0], *(steps[1:] + steps[:-1]) / 2, steps[-1]]) if len(steps) else np.zeros(1)

    @cached_property
    def moments(self) -> list[Moments]:
        """The spread of KL and score at each point."""
        return [_moments(point) for point in self.points]

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
        weights = np.zeros(len(self.kl))
        weights[after - 1 : after + 1] = 1 - share, share
        slope = (self.score[after] - self.score[after - 1]) / max(width, 1e-9)
        return self.linear(float(weights @ self.score), weights, -slope * weights)

    def linear(self, value: float, scores: Table, kls: Table) -> Linear:
        """A number with its derivatives to the scores and the KLs of base and points, [V + 1] each."""
        used = [i for i in range(1, len(self.kl)) if scores[i] or kls[i] or self.moments[i - 1].n > 1]
        sides = [Side(np.array([kls[i], scores[i]]), self.moments[i - 1], self.slopes[i]) for i in used]
        fixed = None if self.base_by_prompt is None else scores[0] * self.base_by_prompt
        return linear(value, sides, fixed)

    def least(self, target: float, within: tuple[float, float] = (-inf, inf)) -> Least:
        """The least KL at which the score is reached; its interval is where the score's interval holds it."""
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
        kls = np.unique([*np.linspace(0.0, self.reach, ENDS), *self.kl])
        bands = [found.interval(within) for kl in kls if (found := self.at(min(float(kl), self.reach))) is not None]
        low, high = ([inf if end is None else end for end in ends] for ends in zip(*(b[1:] for b in bands), strict=True))
        return _reached(kls, high, target), _reached(kls, low, target)

    def area(self, cap: float) -> Linear:
        """The area between the line and the base's score from 0 to the cap, level beyond the last point.

        A point that lies below an earlier one beyond error counts as the earlier one, at which a user of the method would stop.
        The maximum of all points within each KL would hold their noise, and give a method without an effect an area.
        """
        weights, moved = self._under(self.kl, cap), np.zeros(len(self.kl))
        for i in np.flatnonzero(self.kl > 0):
            step = min(0.02 * cap, 0.5 * self.kl[i]) * np.eye(len(self.kl))[i]
            sides = [float(self._under(self.kl + sign * step, cap) @ self.score) for sign in (1, -1)]
            moved[i] = (sides[0] - sides[1]) / (2 * step[i])
        return self.linear(self.area_value(cap), weights - np.eye(len(self.kl))[0] * cap, moved)

    def area_value(self, cap: float) -> float:
        """The same area without its error."""
        return float(self._under(self.kl, cap) @ self.score) - cap * self.base

    def _under(self, kl: Table, cap: float) -> Table:
        """The weights of the scores in the area under the line: [V + 1]."""
        at = (np.arange(STEPS) + 0.5) * cap / STEPS
        order = np.argsort(kl, kind="stable")
        on_line = [np.interp(at, kl[order], unit[order]).sum() * cap / STEPS for unit in np.eye(len(kl))]
        return np.bincount(self.counts_as, weights=on_line, minlength=len(kl)).astype(float)

    @cached_property
    def counts_as(self) -> list[int]:
        """The place of the point that each counts as: itself, or the best one before it if it lies below that beyond error."""
        found = [0]
        for i in range(1, len(self.kl)):
            best = max(found, key=lambda j: self.score[j])
            found.append(best if self._below(i, best) else i)
        return found

    def _below(self, i: int, best: int) -> bool:
        if self.score[i] >= self.score[best]:
            return False
        fall = np.eye(len(self.kl))[best] - np.eye(len(self.kl))[i]
        low = self.linear(float(fall @ self.score), fall, np.zeros(len(self.kl))).interval().low
        return low is not None and low > 0


def _reached(kls: Table, scores: Sequence[float], target: float) -> float:
    """The KL at which scores at ascending KLs first reach a target; inf if they do not."""
    i = next((i for i, score in enumerate(scores) if score >= target), None)
    if not i:
        return inf if i is None else float(kls[0])
    share = (target - scores[i - 1]) / (scores[i] - scores[i - 1])
    return float(kls[i - 1] + share * (kls[i] - kls[i - 1]))


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


def _moments(point: Scores) -> Moments:
    tables = None
    if point.kl_by_prompt is not None and point.score_by_prompt is not None:
        tables = np.stack([point.kl_by_prompt, point.score_by_prompt])
    return moments(np.stack([point.kl, point.score]), tables, np.stack([point.kl_error, point.score_error]))
