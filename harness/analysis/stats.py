"""Intervals, tests and curves over seeds, as pure functions of a few numbers; the seed is the unit of replication.

A difference is a - b throughout. A test on n seeds a side is Student's or Welch's t: with three a side an exact
permutation test cannot go below p = 0.1, so it can never reach 0.05 (`permutation_p`, `sign_flip_p` say so by their value).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import ceil, comb, fsum, inf, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.core.errors import EmptySelection

if TYPE_CHECKING:
    from numpy.random import Generator

CONFIDENCE = 0.95
Z95 = 1.959963984540054  # half-width of a 95% interval in standard errors, where the errors are known well
EXACT_FLIPS = 16  # differences; beyond, 2^n sign patterns are too many to try all
EXACT_LABELS = 20_000  # ways to hand out the labels; beyond, they are drawn
DRAWS = 20_000
MANY = 1e6  # degrees of freedom of a variance that is known well
ROUNDING = 1e-12  # of the values; a spread or a difference below it is rounding


class Interval(NamedTuple):
    """A mean with its confidence interval; low and high are None for a single value."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A mean difference a - b with its standard error, degrees of freedom, 95 % interval and two-sided p.

    All but the mean are None where a single seed tells nothing of the spread. Where the error has two parts, df is the
    one whose t gives this interval.
    """

    mean: float
    stderr: float | None
    df: float | None
    low: float | None
    high: float | None
    p: float | None


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE, within: tuple[float, float] = (-inf, inf)) -> Interval:
    """Mean over seeds with its Student-t interval; raises EmptySelection without values.

    The interval is cut to `within`, the least and the most that the true mean can be: it covers it no less often. A mean
    that lies beyond an end is left the whole of that side.
    """
    n = len(values)
    if n == 0:
        raise EmptySelection("an interval needs at least one value, found none")
    mean = fsum(values) / n
    if n == 1:
        return Interval(mean, None, None)
    variance = fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile(n - 1, confidence) * sqrt(variance / n)
    least, most = within
    return Interval(
        mean,
        max(mean - half, least) if mean >= least else mean - half,
        min(mean + half, most) if mean <= most else mean + half,
    )


def crossed_interval(terms: ArrayLike, within: tuple[float, float] = (-inf, inf), mean: float | None = None) -> Interval:
    """Mean of a metric over seeds with the interval that holds the error over seeds, prompts and responses: terms [n, X].

    A term is what a prompt adds to a seed's value: its mean over the prompts is the value, for a ratio by linearisation. Seeds
    are independent, every seed answers the same prompts, and each cell is a mean over its own responses. The variance of the
    mean is therefore a/n + b/X + c/(nX), of seeds, of prompts, and of cells with their responses. Its unbiased estimate is
    V_seed + (V_prompt - V_cell): the variance of the seed means over n holds a/n + c/(nX), that of the prompt means over X
    holds b/X + c/(nX). `_half` has the interval. `mean`, if given, is the value that the terms are linearised about. A
    single seed has no interval. Raises ValueError on shapes or NaN.
    """
    table = _table(terms)
    return interval_of(float(table.mean()) if mean is None else mean, _crossed_parts(table), within)


def nested_interval(
    values: Sequence[float], stderrs: Sequence[float | None], within: tuple[float, float] = (-inf, inf)
) -> Interval:
    """The same from the value and the standard error over prompts of each seed alone, so too long rather than too short.

    That error holds the prompt part and a seed's cell part, of which the variance over seeds has 1/n already: it cannot be
    taken out without the terms. Without any standard error the interval is over seeds alone.
    """
    found = _values(values)
    errors = [e * e for e in stderrs if e is not None]
    parts = _over_seeds([found])
    return interval_of(float(found.mean()), [*parts, (fsum(errors) / len(errors), MANY)] if errors and parts else parts, within)


def _crossed_parts(table: NDArray) -> list[Part]:
    seeds = _over_seeds([table.mean(1)])
    return seeds + _over_prompts(table.mean(0), [table]) if seeds else []


def interval_of(mean: float, parts: list[Part], within: tuple[float, float] = (-inf, inf)) -> Interval:
    """A mean with the interval of its parts of variance, cut to `within`; without any part it has none."""
    if not parts:
        return Interval(mean, None, None)
    half, (least, most) = _half(parts, 1 - CONFIDENCE), within
    low, high = mean - half, mean + half
    return Interval(mean, max(low, least) if mean >= least else low, min(high, most) if mean <= most else high)


def _special() -> Any:
    """scipy.special, whose import takes longer than all else that `harness status` does."""
    from scipy import special

    return special


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for df degrees of freedom, whole or not."""
    return float(_special().stdtrit(df, (1 + confidence) / 2))


def paired_interval(a: ArrayLike, b: ArrayLike) -> Interval:
    """Mean of a - b, seeds paired by position, with its 95 % Student-t interval; raises ValueError on unequal lengths."""
    return _interval(paired_test(a, b))


def welch_interval(a: ArrayLike, b: ArrayLike) -> Interval:
    """mean(a) - mean(b) of independent seeds with its 95 % interval (Welch 1947, Biometrika 34)."""
    return _interval(welch_test(a, b))


def paired_test(a: ArrayLike, b: ArrayLike) -> Difference:
    """Student's t test of a - b over n seeds paired by position, n - 1 degrees of freedom; raises ValueError."""
    x, y = _values(a), _values(b)
    if len(x) != len(y):
        raise ValueError(f"pairs need as many values on both sides; found {len(x)} and {len(y)}")
    parts = [((x - y).var(ddof=1) / len(x), len(x) - 1.0)] if len(x) > 1 else []
    return difference_of((x - y).mean(), parts, _scale(x, y))


def welch_test(a: ArrayLike, b: ArrayLike) -> Difference:
    """Welch's t test of mean(a) - mean(b), degrees of freedom by Satterthwaite (1946, Biometrics Bulletin 2)."""
    x, y = _values(a), _values(b)
    return difference_of(x.mean() - y.mean(), _over_seeds([x, y]), _scale(x, y))


def clustered(values: Sequence[float], clusters: Sequence[object]) -> tuple[float, float | None]:
    """Mean over clusters of their means, each cluster counting once, and its standard error over clusters.

    NaN is left out. The error is None with one cluster. Raises EmptySelection without a value, ValueError on unequal lengths.
    """
    if len(values) != len(clusters):
        raise ValueError(f"each value needs its cluster; found {len(values)} values and {len(clusters)} clusters")
    found: dict[object, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if value == value:
            found.setdefault(cluster, []).append(value)
    means = _values([fsum(members) / len(members) for members in found.values()])
    return float(means.mean()), float(means.std(ddof=1) / sqrt(len(means))) if len(means) > 1 else None


def paired_by_prompt(a: ArrayLike, b: ArrayLike, seeds_paired: bool = False) -> Difference:
    """Mean difference of a and b, [seeds, X] each on the same X prompts, generalising to new seeds and new prompts.

    Seeds and prompts are crossed: each seed answers every prompt. Var = V_seed + max(V_prompt - V_cell, 0): that of the
    seed means, that of the prompt differences, and the noise of single cells, which both contain (Cameron, Gelbach, Miller
    2011, J. Bus. Econ. Stat. 29, section 2), with n - 1 or Welch's, and X - 1 degrees of freedom; `_half` has the interval.
    With `seeds_paired` row s of a and of b are of one seed. Raises ValueError on shapes or NaN.
    """
    x, y = _table(a), _table(b)
    if x.shape[1] != y.shape[1] or (seeds_paired and len(x) != len(y)):
        raise ValueError(f"expected the same prompts{' and seeds' * seeds_paired}; found {x.shape} and {y.shape}")
    sides = [x - y] if seeds_paired else [x, y]
    seeds = _over_seeds([side.mean(1) for side in sides])
    parts = seeds + _over_prompts(x.mean(0) - y.mean(0), sides) if seeds else []
    return difference_of(x.mean() - y.mean(), parts, _scale(x, y))


Part = tuple[float, float]
"""A variance that is estimated, and its degrees of freedom."""


def _over_seeds(sides: list[NDArray]) -> list[Part]:
    """Variance of the difference of means over seeds, [n] each; zero if a side has one seed."""
    if min(map(len, sides)) < 2:
        return []
    parts = [(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in sides]
    total, noise = fsum(v for v, _ in parts), fsum(v * v / df for v, df in parts)
    return [(total, total * total / noise if noise > 0 else float(min(df for _, df in parts)))]


def _over_prompts(differences: NDArray, sides: list[NDArray]) -> list[Part]:
    """Variance added by the choice of prompts [X]; zero if the noise of cells [seeds, X] explains it."""
    x = len(differences)
    if x < 2:
        return []
    cells = fsum(float((_residuals(s) ** 2).sum()) / (len(s) - 1) / (x - 1) / s.size for s in sides)
    more = float(differences.var(ddof=1)) / x - cells
    return [(more, x - 1.0)] if more > 0 else []


def _residuals(table: NDArray) -> NDArray:
    """Residuals after row and column means."""
    return table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()


def difference_of(mean: float, parts: list[Part], scale: float) -> Difference:
    """A difference with its error; `scale` is the magnitude of the values, below whose rounding a spread is zero."""
    mean = float(mean)
    if not parts:
        return Difference(mean, None, None, None, None, None)
    stderr, half = sqrt(fsum(v for v, _ in parts)), _half(parts, 1 - CONFIDENCE)
    if stderr <= ROUNDING * scale:  # seeds that decide nothing: the values differ, or they do not
        return Difference(mean, 0.0, parts[0][1], mean, mean, float(abs(mean) <= ROUNDING * scale))
    if len(parts) == 1:
        df, p = parts[0][1], float(2 * _special().stdtr(parts[0][1], -abs(mean) / stderr))
    else:
        lowest, highest = min(df for _, df in parts), max(df for _, df in parts)
        df = _bisect(lambda df: t_quantile(df) * stderr < half, lowest, highest)
        p = 10 ** _bisect(lambda exponent: _half(parts, 10**exponent) < abs(mean), -300.0, 0.0)
    return Difference(mean, stderr, df, mean - half, mean + half, p)


def _half(parts: list[Part], p: float) -> float:
    """Half-width of the interval whose two tails have total mass p, from variances with their degrees of freedom.

    The mean of two that err in opposite directions: each part with the t of its own degrees of freedom (Banerjee 1960,
    Sankhya 22), too long by up to 2.7 points of coverage at 3 seeds, and one t with Satterthwaite's (1946), too short by up
    to 2.8. With a part of 2 degrees of freedom and one that is known it covers 94.2 to 96.7 %, whatever their ratio.
    """
    total = fsum(v for v, _ in parts)
    noise = fsum(v * v / df for v, df in parts)
    if total <= 0:
        return 0.0
    own = sqrt(fsum(float(_special().stdtrit(df, p / 2)) ** 2 * v for v, df in parts))
    together = -float(_special().stdtrit(total * total / noise, p / 2)) * sqrt(total)
    return (own + together) / 2


def _bisect(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """The point at which `beyond` turns from False to True; an end of the range if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


def sign_flip_p(differences: ArrayLike, rng: Generator | None = None) -> float:
    """Two-sided p of the paired permutation test: the share of sign patterns whose mean is as far from 0.

    Exact over all 2^n patterns up to n = 16, so never below 2 / 2^n (0.25 at n = 3); above that 20,000 patterns drawn
    from `rng`, the observed one counted in. Raises EmptySelection, and ValueError where draws are needed and rng is None.
    """
    d = _values(differences)
    if len(d) <= EXACT_FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1)
        return _share(signs @ d, d.sum(), np.abs(d).sum())
    signs = 1 - 2 * _needed(rng).integers(0, 2, (DRAWS, len(d)))
    return _share(np.append(signs @ d, d.sum()), d.sum(), np.abs(d).sum())


def permutation_p(a: ArrayLike, b: ArrayLike, rng: Generator | None = None) -> float:
    """Two-sided p of the permutation test on mean(a) - mean(b): the share of label assignments with a gap as wide.

    Exact up to 20,000 assignments, so never below 2 / C(2n, n) (0.1 at n = 3 a side); above that 20,000 drawn from
    `rng`, the observed one counted in. Raises EmptySelection, and ValueError where draws are needed and rng is None.
    """
    x, y = _values(a), _values(b)
    both, n = np.concatenate([x, y]), len(x)
    if comb(len(both), n) <= EXACT_LABELS:
        chosen = np.array(list(combinations(range(len(both)), n)))
        sums = both[chosen].sum(1)
    else:
        drawn = _needed(rng).permuted(np.tile(both, (DRAWS, 1)), axis=1)
        sums = np.append(drawn[:, :n].sum(1), x.sum())
    middle = both.sum() * n / len(both)  # the sum of a is as far from here as the means are from each other
    return _share(sums - middle, x.sum() - middle, np.abs(both).sum())


def _share(found: NDArray, observed: float, scale: float) -> float:
    """Share of values at least as far from 0 as the observed one, up to rounding of the sums."""
    return float((np.abs(found) >= abs(observed) - ROUNDING * scale).mean())


def _needed(rng: Generator | None) -> Generator:
    if rng is None:
        raise ValueError("too many permutations to try all; hand in a numpy Generator to draw them from")
    return rng


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values in the same order (Holm 1979, Scand. J. Stat. 6); raises ValueError outside [0, 1]."""
    if not all(0 <= x <= 1 for x in p):
        raise ValueError(f"p values lie in [0, 1]; found {list(p)}")
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def rank_sets(
    values: Mapping[str, Sequence[float]],
    higher_is_better: bool = True,
    alpha: float = 0.05,
    test: Callable[[str, str], Difference] | None = None,
) -> dict[str, tuple[int, int]]:
    """Set of ranks of each name as (best, worst), 1 is best; each name has its own seeds [n].

    A name is tested against every other, by Welch's t unless another test is given, Holm-corrected over these tests: its
    set holds its rank with 1 - alpha confidence (marginal sets of Mogstad et al. 2024, Rev. Econ. Stud. 91, doi
    10.1093/restud/rdad006), and the names whose best rank is 1 hold the best of all with it. Correcting over the pairs of
    all names would cover all sets at once, at the price of ranks that say nothing. (Exact permutation could never separate
    names at n = 3: its least p is 0.1.) A name of one seed shares its ranks with all. Raises EmptySelection.
    """
    tests: dict[tuple[str, str], tuple[float, float]] = {}  # how much better the first is, and p
    for a, b in combinations(values, 2):
        found = test(a, b) if test else welch_test(values[a], values[b])
        gain, p = found.mean if higher_is_better else -found.mean, 1.0 if found.p is None else found.p
        tests[a, b], tests[b, a] = (gain, p), (-gain, p)
    return {name: ranks_of([tests[name, other] for other in values if other != name], alpha) for name in values}


def ranks_of(tests: list[tuple[float, float]], alpha: float) -> tuple[int, int]:
    """Best and worst rank of a name, from its mean differences to the others and their p."""
    adjusted = holm([p for _, p in tests])
    shown = [gain for (gain, _), p in zip(tests, adjusted, strict=True) if p <= alpha]
    return 1 + sum(gain < 0 for gain in shown), 1 + len(tests) - sum(gain > 0 for gain in shown)


def detectable(stderr: float, df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided t test with this standard error finds with the given power.

    By the noncentral t distribution, not the normal one: at df = 4 that makes it a third wider.
    """
    critical = t_quantile(df, 1 - alpha)

    def found(shift: float) -> float:
        nctdtr = _special().nctdtr
        return float(1 - nctdtr(df, shift, critical) + nctdtr(df, shift, -critical))

    enough = 1.0
    while found(enough) < power:
        enough *= 2
    return stderr * _bisect(lambda shift: found(shift) >= power, 0.0, enough)


def hypervolume(points: ArrayLike, reference: Sequence[float], maximise: Sequence[bool] = (False, True)) -> float:
    """Area that the points [n, 2] (KL in nats, reward) dominate up to the reference point, declared by the task.

    A point that is not better than the reference in both adds nothing; no point at all is 0. Raises ValueError on NaN.
    (Zitzler and Thiele 1998, PPSN V.)
    """
    import moocore

    found = _points(points, len(reference))
    return float(moocore.hypervolume(found, ref=np.asarray(reference, float), maximise=list(maximise))) if len(found) else 0.0


def attainment(fronts: Sequence[ArrayLike], quantile: float, maximise: Sequence[bool] = (False, True)) -> NDArray:
    """The corners, by the first objective, of what a share of the fronts attains: fronts [n, 2] (KL, reward), one a seed.

    Quantile 0 is the worst: attained by every front; 1 by at least one; 0.5 by at least half. Between corners the curve is a
    step. Raises EmptySelection where a front has no point, ValueError on NaN or a quantile outside [0, 1].
    (Grunert da Fonseca, Fonseca, Hall 2001, EMO.)
    """
    import moocore

    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile lies in [0, 1]; found {quantile}")
    found = [_points(front, len(maximise)) for front in fronts]
    if not found or not all(map(len, found)):
        raise EmptySelection(f"attainment needs fronts with points; found {[len(f) for f in found]} points")
    sign = np.where(maximise, -1.0, 1.0)
    least = max(1, ceil((1 - quantile) * len(found) - ROUNDING))  # fronts that must attain a point
    corners = moocore.eaf(np.concatenate(found) * sign, np.repeat(np.arange(len(found)), list(map(len, found))))
    level = np.rint(corners[:, -1] * len(found) / 100)
    curve = corners[level == least, :-1] * sign
    return curve[np.argsort(curve[:, 0])]


def _interval(d: Difference) -> Interval:
    return Interval(d.mean, d.low, d.high)


def _values(values: ArrayLike) -> NDArray:
    """Values as an array; raises EmptySelection without values, ValueError on NaN (the caller leaves out missing values)."""
    found = np.asarray(values, float)
    if found.size == 0:
        raise EmptySelection("a test needs at least one value on each side, found none")
    if not np.isfinite(found).all():
        raise ValueError(f"values must be finite; found {found[~np.isfinite(found)][0]}")
    return found


def _table(values: ArrayLike) -> NDArray:
    found = _values(values)
    if found.ndim != 2:
        raise ValueError(f"expected an array of seeds and prompts; found {found.ndim} dimensions")
    return found


def _points(points: ArrayLike, width: int) -> NDArray:
    found = np.asarray(points, float).reshape(-1, width)
    if not np.isfinite(found).all():
        raise ValueError("points must be finite; leave out what was not measured, and say so")
    return found


def _scale(a: NDArray, b: NDArray) -> float:
    return float(max(np.abs(a).max(), np.abs(b).max()))
