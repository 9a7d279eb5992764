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

PRIOR = 3.0
"""Degrees of freedom with which the spread over seeds along the whole curve enters the spread at one point."""

Table = NDArray[np.float64]


class Side(NamedTuple):
    """What the runs at one point of a curve add to a number: the weights of score and KL, and their values by seed.

    rest: [n], the scores less the KL times the slope of the curve there: the spread across the curve, which points share.
    by_prompt: [n, X], weights times terms of each prompt; None if the records do not keep them. plain: its error without.
    """

    weight: float  # of the score
    own: Table  # [n], weights times values of each seed
    rest: Table  # [n]
    by_prompt: Table | None
    plain: float = 0.0  # standard error over prompts, for runs without terms


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
    tables = [side.by_prompt for side in sides]
    known = [table for table in tables if table is not None]
    whole = bool(tables) and len(known) == len(tables)
    prompts = np.sum([t.mean(0) for t in known], axis=0) + (0.0 if fixed is None else fixed) if whole else None
    cells = fsum(map(_cells, known)) if whole else 0.0
    return Linear(value, _over_seeds(sides), prompts, cells, 0.0 if whole else fsum(side.plain for side in sides) ** 2)


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
    """The variance over seeds: that of each point, moderated by that of all (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3).

    Two seeds at a point have one degree of freedom, whose t is 12.7. All points of a curve together have several.
    """
    freedom = np.array([len(side.own) - 1.0 for side in sides])
    total = freedom.sum()
    if total <= 0:
        return ()
    spread = np.array([_spread(side) for side in sides])
    share = np.array([side.weight**2 / len(side.own) for side in sides])
    lent = fsum(share * PRIOR / (PRIOR + freedom)) / total
    parts = (share / (PRIOR + freedom) + lent) * freedom * spread
    variance = float(parts.sum())
    noise = fsum(v * v / df for v, df in zip(parts, freedom, strict=True) if df > 0)
    return ((variance, variance * variance / noise if noise > 0 else float(total)),)


def _spread(side: Side) -> float:
    """Variance over seeds of what one unit of the point's score adds."""
    if len(side.own) < 2:
        return 0.0
    return float(side.own.var(ddof=1)) / side.weight**2 if abs(side.weight) > 1e-6 else float(side.rest.var(ddof=1))


def _cells(table: Table) -> float:
    """Variance of the mean over prompts of a point's terms [n, X] by the noise of single cells; zero for one seed."""
    n, x = table.shape
    if n < 2 or x < 2:
        return 0.0
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float((left**2).sum()) / (n - 1) / (x - 1) / table.size


def _over_prompts(terms: Table | None, cells: float, plain: float) -> list[Part]:
    """What the choice of prompts adds: the variance of the terms' mean beyond the noise of cells, which the seeds hold."""
    if terms is None:
        return [(plain, MANY)] if plain > 0 else []
    more = float(terms.var(ddof=1)) / len(terms) - cells if len(terms) > 1 else 0.0
    return [(more, len(terms) - 1.0)] if more > 0 else []
