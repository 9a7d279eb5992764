"""The error of a number that is linear in the scores of several groups of runs, such as a score between two knob values.

Each point of a curve has its own seeds, few of them, and all points answer the same prompts. So a number along the curve, a
sum of w_i mean(Y_i) + v_i mean(K_i) over its points i, has a seed part from each point and one prompt part in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stats import MANY, Difference, Interval, Part, difference_of, interval_of

PRIOR = 4.0
"""Degrees of freedom with which the spread over seeds along the whole curve enters the spread at one point."""

Table = NDArray[np.float64]


class Moments(NamedTuple):
    """The spread of KL and score, in this order, at one point of a curve with n seeds.

    seeds: [2, 2], their covariance over seeds; cells: [2, 2], that of their means by the noise of single cells of a seed and a
    prompt; by_prompt: [2, X], their means over seeds for each prompt, None if the records do not keep them; plain: [2], their
    standard errors over prompts, for records that do not.
    """

    n: int
    seeds: Table
    cells: Table
    by_prompt: Table | None
    plain: Table


def moments(values: Table, by_prompt: Table | None, errors: Table) -> Moments:
    """From KL and score of each seed, [2, n], of each prompt, [2, n, X] or None, and their errors over prompts, [2, n]."""
    n = values.shape[1]
    seeds = np.cov(values) if n > 1 else np.zeros((2, 2))
    means = None if by_prompt is None else by_prompt.mean(1)
    return Moments(n, seeds, np.zeros((2, 2)) if by_prompt is None else _cells(by_prompt), means, errors.mean(1))


def _cells(table: Table) -> Table:
    """Covariance of the means over seeds and prompts that the noise of single cells explains: [2, n, X] -> [2, 2]."""
    _, n, x = table.shape
    if n < 2 or x < 2:
        return np.zeros((2, 2))
    left = table - table.mean(2, keepdims=True) - table.mean(1, keepdims=True) + table.mean((1, 2), keepdims=True)
    flat = left.reshape(2, -1)
    return flat @ flat.T / ((n - 1) * (x - 1) * n * x)


class Side(NamedTuple):
    """What one point of a curve adds to a number: the weights of its KL and score, [2], and the slope of the curve there."""

    weights: Table
    moments: Moments
    slope: float


class Linear(NamedTuple):
    """A number along a curve, with the parts of its error.

    seeds: its variance over seeds, with degrees of freedom; none without a second seed anywhere. prompts: [X], its terms by
    prompt; cells: the variance of their mean that the noise of single cells explains; plain: that over prompts, without terms.
    """

    value: float
    seeds: tuple[Part, ...]
    prompts: Table | None
    cells: float
    plain: float

    def parts(self) -> list[Part]:
        """The variances of the value, with their degrees of freedom; none without an error over seeds."""
        return [*self.seeds, *_over_prompts(self.prompts, self.cells, self.plain)] if self.seeds else []

    def interval(self, within: tuple[float, float] = (-inf, inf)) -> Interval:
        """The value with its 95 % interval over seeds, prompts and responses."""
        return interval_of(self.value, self.parts(), within)

    def scaled(self, factor: float, value: float) -> Linear:
        """The number whose error is `factor` times this one's."""
        square, prompts = factor * factor, None if self.prompts is None else factor * self.prompts
        seeds = tuple((square * v, df) for v, df in self.seeds)
        return Linear(value, seeds, prompts, square * self.cells, square * self.plain)


def linear(value: float, sides: Sequence[Side], fixed: Table | None = None) -> Linear:
    """A number from its value, the points that it depends on, and what the base policy adds to each prompt, [X]."""
    known = [side.weights @ side.moments.by_prompt for side in sides if side.moments.by_prompt is not None]
    if len(known) < len(sides) or not sides:
        plain = fsum(float(abs(side.weights) @ side.moments.plain) for side in sides) ** 2
        return Linear(value, _over_seeds(sides), None, 0.0, plain)
    prompts = np.sum(known, axis=0) + (0.0 if fixed is None else fixed)
    cells = fsum(float(side.weights @ side.moments.cells @ side.weights) for side in sides)
    return Linear(value, _over_seeds(sides), prompts, cells, 0.0)


def difference(a: Linear, b: Linear) -> Difference:
    """a - b with its interval and p: prompts are paired where both have terms of the same prompts, seeds are independent."""
    parts: list[Part] = []
    if a.seeds and b.seeds:
        variances = [*a.seeds, *b.seeds]
        total, noise = fsum(v for v, _ in variances), fsum(v * v / df for v, df in variances)
        parts = [(total, total * total / noise if noise > 0 else MANY)]
        if a.prompts is not None and b.prompts is not None and a.prompts.shape == b.prompts.shape:
            parts += _over_prompts(a.prompts - b.prompts, a.cells + b.cells, a.plain + b.plain)
        else:
            parts += [*_over_prompts(a.prompts, a.cells, a.plain), *_over_prompts(b.prompts, b.cells, b.plain)]
    return difference_of(a.value - b.value, parts, max(abs(a.value), abs(b.value)))


def _over_seeds(sides: Sequence[Side]) -> tuple[Part, ...]:
    """The variance over seeds, moderated by that along the whole curve (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3).

    Two seeds at a point have one degree of freedom, whose t is 12.7; all points of a curve have several. They share the
    variance over seeds as a multiple of that by the noise of cells, which is known well and differs from point to point.
    """
    n = np.array([side.moments.n for side in sides], dtype=float)
    freedom, total = n - 1, float(n.sum() - len(n))
    if total <= 0:
        return ()
    spread, noise = (np.array(column) for column in zip(*map(_spread, sides), strict=True))
    noise = np.where(freedom > 0, noise, float(noise @ freedom) / total)
    noise = noise if noise.min() > 0 else np.ones(len(sides))
    share = np.array([side.weights[1] ** 2 for side in sides]) / n
    lent = float((share * noise * PRIOR / (PRIOR + freedom)).sum()) / total
    parts = (share / (PRIOR + freedom) + lent / noise) * freedom * spread
    variance = float(parts.sum())
    error = fsum(v * v / df for v, df in zip(parts, freedom, strict=True) if df > 0)
    return ((variance, variance * variance / error if error > 0 else total),)


def _spread(side: Side) -> tuple[float, float]:
    """Variance over seeds of what one unit of the point's score adds, across the curve where the number does not use it.

    And the part of it that is noise of single cells and their responses.
    """
    score = side.weights[1]
    unit = side.weights / score if abs(score) > 1e-6 else np.array([-side.slope, 1.0])
    found = side.moments
    return float(unit @ found.seeds @ unit), float(unit @ found.cells @ unit) * found.n


def _over_prompts(terms: Table | None, cells: float, plain: float) -> list[Part]:
    """What the choice of prompts adds: the variance of the terms' mean beyond the noise of cells, which the seeds hold."""
    if terms is None:
        return [(plain, MANY)] if plain > 0 else []
    more = float(terms.var(ddof=1)) / len(terms) - cells if len(terms) > 1 else 0.0
    return [(more, len(terms) - 1.0)] if more > 0 else []
