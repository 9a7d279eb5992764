"""The one rule of all verdicts.

A claimed difference holds if its 95 % interval excludes zero on the claimed side. It does not hold if the interval lies on the
other side of zero, or excludes any difference of practical size on the claimed side. Else the runs cannot tell. A claimed
equality holds if the interval lies within the practical size of zero, and does not hold if it lies beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.analysis.stats import Difference, detectable

Verdict = Literal["holds", "does not hold", "cannot tell"]
Way = Literal["less", "more", "equal"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """One comparison: the means of both sides, the difference a - b with its error, and what is claimed of it."""

    words: str  # the quantity
    names: tuple[str, str]  # of the sides; the second may be a number that the first is compared with
    means: tuple[float, float]
    difference: Difference
    way: Way
    margin: float  # a difference of practical size, in the unit of the quantity
    seeds: tuple[int, int]
    prompts: int | None = None  # None if the error is over seeds alone
    digits: str = ".3f"

    @property
    def verdict(self) -> Verdict:
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or self.difference.stderr == 0:
            return OPEN  # a single seed, or seeds that do not differ, tell nothing of the error
        return decided(self.way, low, high, self.margin)

    @property
    def reversed(self) -> bool:
        """Whether the interval excludes zero on the side opposite to the claim."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or self.difference.stderr == 0 or self.way == "equal":
            return False
        return low > 0 if self.way == "less" else high < 0

    @property
    def smallest(self) -> float | None:
        """The true difference that four in five studies with this error would show."""
        d = self.difference
        return detectable(d.stderr, d.df) if d.stderr and d.df else None


@dataclass(frozen=True)
class Missing:
    """A comparison without the runs that it needs."""

    words: str
    why: str
    verdict: Verdict = OPEN
    reversed: bool = False


Outcome = Finding | Missing


def decided(way: Way, low: float, high: float, margin: float) -> Verdict:
    """The verdict on a difference with a 95 % interval from low to high."""
    if way == "equal":
        return HOLDS if -margin <= low and high <= margin else FAILS if low > margin or high < -margin else OPEN
    if way == "less":
        low, high = -high, -low
    return HOLDS if low > 0 else FAILS if high < margin else OPEN


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: holds if all do, does not hold if one does not."""
    if not verdicts:
        return OPEN
    return FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else OPEN


def either(outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on a claim that one of several parts holds: does not hold only if each is shown to be the other way."""
    if any(outcome.verdict == HOLDS for outcome in outcomes):
        return HOLDS
    return FAILS if outcomes and all(outcome.reversed for outcome in outcomes) else OPEN
