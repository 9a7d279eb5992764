"""Two ways to do one job, timed in turn in one process, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles


class Paired:
    """Calling it runs A, then B. `ratio` is the median over calls of B's time over A's: above 1, A is the faster."""

    def __init__(self, a: Callable[[], object], b: Callable[[], object]) -> None:
        self.a, self.b = a, b
        self.seconds: list[tuple[float, float]] = []

    def __call__(self) -> None:
        self.seconds.append(self.once())

    def once(self) -> tuple[float, float]:
        """Seconds of A and of B, which are not kept."""
        return _timed(self.a), _timed(self.b)

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in self.seconds]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def summary(self, a: str, b: str) -> str:
        """One line: both medians, and the ratio with its quartiles."""
        low, _, high = quantiles(self.ratios, n=4)
        ours, theirs = (1e3 * median(column) for column in zip(*self.seconds, strict=True))
        spread = f"quartiles {low:.2f} to {high:.2f}, {len(self.seconds)} pairs"
        return f"{a} {ours:.0f} ms, {b} {theirs:.0f} ms: {b} takes {self.ratio:.2f} times as long ({spread})"


def compare(benchmark, a: Callable[[], object], b: Callable[[], object], names: tuple[str, str], rounds: int = 9) -> str:
    """Run the pair under pytest-benchmark, whose own figure is that of A and B together: -> the summary."""
    a(), b()  # the first call of either pays for what is made once
    pair = Paired(a, b)
    benchmark.pedantic(pair, rounds=rounds)
    benchmark.extra_info |= {"ratio": pair.ratio, "ratios": pair.ratios, "names": names}
    return pair.summary(*names)


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
