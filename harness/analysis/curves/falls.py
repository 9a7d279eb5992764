"""Over-optimisation along a knob: from one of its values to the weakest, the reward rises and the judge's score falls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from harness.core.errors import EmptySelection

from ..columns import BY_KEY
from ..groups import Entry, difference
from ..stats import Difference, holm
from ..terms import PromptTerms
from .knobs import Curve
from .table import ALPHA


class Fall(NamedTuple):
    """How reward and judge change from a value of a method's knob to its weakest, and p of both, adjusted for all tests."""

    name: str
    knob: str
    value: Any
    weakest: Any
    reward: Difference
    judge: Difference
    p: float

    @property
    def shown(self) -> bool:
        """Whether the reward rises and the judge's score falls, both beyond error."""
        return self.p <= ALPHA


def falls(curves: Sequence[Curve], prompts: PromptTerms) -> list[Fall]:
    """Of each curve the fall with the least p, first those that are shown; curves whose judge does not fall are left out.

    Every value of a knob is tested against the weakest, so that no test is chosen by its outcome; p is the larger one of the
    two differences, corrected over all these tests (Holm).
    """
    tests = [test for curve in curves for test in _tests(curve, prompts)]
    adjusted = [test._replace(p=p) for test, p in zip(tests, holm([test.p for test in tests]), strict=True)]
    best: dict[str, Fall] = {}
    for test in sorted(adjusted, key=lambda test: (test.p, test.judge.mean)):
        if test.judge.mean < 0 < test.reward.mean:
            best.setdefault(test.name, test)
    return list(best.values())


def _tests(curve: Curve, prompts: PromptTerms) -> Iterator[Fall]:
    *points, last = curve.points
    for point in points:
        found = [_change(last.entry, point.entry, key, prompts) for key in ("reward", "judge")]
        if found[0] is not None and found[1] is not None:
            reward, judge = found[0], found[1]
            both = max(1.0 if d.p is None else d.p for d in (reward, judge))
            p = both if judge.mean < 0 < reward.mean else 1.0
            yield Fall(curve.name, curve.knob or "", point.value, last.value, reward, judge, p)


def _change(to: Entry, since: Entry, key: str, prompts: PromptTerms) -> Difference | None:
    """The change of a score between two values of a knob; None if one of them has none."""
    try:
        return difference((to, since), BY_KEY[key].of, key, prompts)
    except EmptySelection:
        return None
