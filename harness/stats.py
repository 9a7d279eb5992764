"""Intervals over seeds, as pure functions of a few numbers; the seed is the unit of replication."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, fsum, pi, sin, sqrt, tan
from typing import NamedTuple

from .errors import EmptySelection

CONFIDENCE = 0.95
Z95 = 1.959963984540054  # half-width of a 95% interval in standard errors, where the errors are known well


class Interval(NamedTuple):
    """A mean with its confidence interval; low and high are None where one value tells nothing of the spread."""

    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of the values, a seed a value, with its Student-t interval; raises EmptySelection without values."""
    n = len(values)
    if n == 0:
        raise EmptySelection("an interval needs at least one value, found none")
    mean = fsum(values) / n
    if n == 1:
        return Interval(mean, None, None)
    variance = fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile(n - 1, confidence) * sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for df degrees of freedom, by bisection over the angle atan(t / sqrt(df))."""
    low, high = 0.0, pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if _t_mass(middle, df) < confidence:
            low = middle
        else:
            high = middle
    return sqrt(df) * tan((low + high) / 2)


def _t_mass(angle: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan(angle)): a finite sum for a whole df (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = df % 2
    term, total = (cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, df, 2):
        total += term
        term *= cos(angle) ** 2 * k / (k + 1)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals share a value; an interval that one seed cannot give is as wide as can be."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high
