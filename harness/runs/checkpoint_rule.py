"""Which point of a run is deployed: a rule fixed before the run, read on validation prompts and never on test.

last              the policy at the end of the budget
best_validation   the point with the highest judge on validation prompts
kl<=C             the same among the points whose KL to the base policy is at most C nats there

The untrained policy is a point too, so that a run that only harms deploys nothing. Of equal points the earlier stays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from harness.core.types import Metric, metric_record

LAST = "last"
START, KEPT, END = "start", "kept", "end"  # where the policy of a point is: the base policy, on disk, the one at hand


class Point(NamedTuple):
    """A point that a rule may choose; judge and KL are records of metrics."""

    place: str
    update: int
    progress: float  # the share of the budget that was spent
    judge: dict[str, Any]
    kl: dict[str, Any]


def point(place: str, update: int, progress: float, metrics: dict[str, Metric]) -> Point:
    """A measured point."""
    return Point(place, update, progress, metric_record(metrics["judge"]), metric_record(metrics["kl"]))


def better(rule: str, candidate: Point, chosen: Point | None) -> bool:
    """Whether a point takes the place of the one chosen so far; one without a judge or above the rule's KL never does."""
    judge, kl = candidate.judge["value"], candidate.kl["value"]
    if judge is None or (rule.startswith("kl<=") and (kl is None or kl > float(rule.removeprefix("kl<=")))):
        return False
    return chosen is None or judge > chosen.judge["value"]
