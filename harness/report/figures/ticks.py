"""Labels of ticks: counts are shortened, and there are as many decimals as neighbours need to differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import floor, log10

from matplotlib.ticker import Formatter


class Ticks(Formatter):
    """A formatter of ticks by their spacing: 12k and 3.1M for counts, 0.4995 and 0.5000 for ticks close together."""

    def __call__(self, value: float, position: int | None = None) -> str:
        """The label of one value on its own."""
        return short(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """The labels of all ticks of an axis."""
        step = min((b - a for a, b in pairwise(sorted(values)) if b > a), default=0.0)
        return [short(value, step) for value in values]


def short(value: float, step: float = 0.0) -> str:
    """A number for an axis, as 12k, 3.1M, 4e12 or 0.25, with the decimals that a step between ticks has."""
    for size, letter in ((1e9, ""), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value:.3g}".replace("e+", "e") if size == 1e9 else f"{value / size:.4g}{letter}"
    if not 0 < step < 1:
        return f"{value:.4g}"
    decimals = -floor(log10(1.001 * step))  # the step is a difference of two floats
    decimals += abs(round(step, decimals) - step) > 0.01 * step  # a step of 0.025 has three
    return f"{0.0 if abs(value) < step / 1e3 else value:.{decimals}f}"
