"""Rules that select the checkpoint to deploy: fixed before the run, applied to validation prompts and never to test.

last              the policy at the end of the budget
best_validation   the point with the highest judge score on validation prompts
kl<=C             the same among the points whose KL to the base policy on these prompts is at most C nats

The base policy is also a candidate, so a run that only lowers the judge score deploys it. Ties go to the earlier point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from harness.core.types import Metric, metric_record

LAST = "last"
START, KEPT, END = "start", "kept", "end"  # policy of a point: the base policy, saved on disk, the current policy


class Point(NamedTuple):
    """A candidate checkpoint; judge and KL are metric records."""

    place: str
    update: int
    progress: float  # share of the budget spent, in [0, 1]
    judge: dict[str, Any]
    kl: dict[str, Any]


def point(place: str, update: int, progress: float, metrics: dict[str, Metric]) -> Point:
    """Build a candidate from its metrics."""
    return Point(place, update, progress, metric_record(metrics["judge"]), metric_record(metrics["kl"]))


def better(rule: str, candidate: Point, chosen: Point | None) -> bool:
    """Return True if a candidate replaces the chosen point; never without a judge score or above the rule's KL."""
    judge, kl = candidate.judge["value"], candidate.kl["value"]
    if judge is None or (rule.startswith("kl<=") and (kl is None or kl > float(rule.removeprefix("kl<=")))):
        return False
    return chosen is None or judge > chosen.judge["value"]
