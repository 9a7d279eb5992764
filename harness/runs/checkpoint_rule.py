"""Rules that select the checkpoint to deploy: fixed before the run, applied to validation prompts and never to test.

last              the policy at the end of the budget
best_validation   the point with the highest judge score on validation prompts
kl<=C             the same among the points whose KL to the base policy on these prompts is at most C nats

The base policy is also a candidate, so a run that only lowers the judge score deploys it. Ties go to the earlier point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness.core.types import Metric
from harness.records.schema import MetricRecord

LAST = "last"
START, KEPT, END = "start", "kept", "end"  # policy of a point: the base policy, saved on disk, the current policy


class Point(NamedTuple):
    """A candidate checkpoint."""

    place: str
    update: int
    progress: float  # share of the budget spent, in [0, 1]
    judge: MetricRecord
    kl: MetricRecord

    def state(self) -> list[Any]:
        """The candidate as plain data for a checkpoint."""
        return [self.place, self.update, self.progress, self.judge.plain(), self.kl.plain()]

    @classmethod
    def of(cls, state: Sequence[Any]) -> Point:
        """The candidate of a checkpoint; raises ValueError or TypeError if it is not one."""
        place, update, progress, *metrics = state
        return cls(place, update, progress, *map(MetricRecord.model_validate, metrics))


def point(place: str, update: int, progress: float, metrics: dict[str, Metric]) -> Point:
    """Build a candidate from its metrics."""
    return Point(place, update, progress, MetricRecord.of(metrics["judge"]), MetricRecord.of(metrics["kl"]))


def better(rule: str, candidate: Point, chosen: Point | None) -> bool:
    """Return True if a candidate replaces the chosen point; never without a judge score or above the rule's KL."""
    judge, kl = candidate.judge.value, candidate.kl.value
    if judge is None or (rule.startswith("kl<=") and (kl is None or kl > float(rule.removeprefix("kl<=")))):
        return False
    return chosen is None or chosen.judge.value is None or judge > chosen.judge.value
