"""Ranking of a group's methods, against each other, best-of-n and the optimum: numbers only, worded by `report.verdict`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import fsum, sqrt
from statistics import variance
from typing import NamedTuple

import numpy as np

from harness.core.types import Metric
from harness.records.schema import Evaluation, Frontier, MetricRecord, Run, Summary

from .groups import Entry, Estimate, counted, measure, metric
from .stats import Z95, Interval, hypervolume, minimum_detectable_effect, rank_sets, t_interval

SAME_REWARD = 1e-3  # a difference that no table shows
SIGMAS = 3.0  # joint standard errors; at 1.96 one sound run in forty would be called a bug


class Ranked(NamedTuple):
    """A method, the percent of the habit that it removes over n seeds, and its set of ranks."""

    entry: Entry
    removed: Interval
    values: list[float]  # percent, one per seed
    ranks: tuple[int, int]

    @property
    def n(self) -> int:
        return len(self.values)


class Above(NamedTuple):
    """The distance of a run above the frontier, in reward and in standard errors, and its update."""

    reward: float | None
    errors: float | None
    update: int | None  # None for the end of the run


def ranking(sound: Sequence[tuple[Entry, Estimate]]) -> list[Ranked]:
    """Methods by the percent of the habit removed, highest first, from its estimates; one without a number is left out."""
    known = [(entry, e.interval, e.values) for entry, e in sound if e.interval is not None]
    ranks = rank_sets({entry.name: values for entry, _, values in known}) if known else {}
    ranked = [Ranked(entry, interval, values, ranks[entry.name]) for entry, interval, values in known]
    return sorted(ranked, key=lambda r: (-r.removed.mean, r.entry.name))


def detectable(ranked: list[Ranked]) -> tuple[float, int] | None:
    """The smallest difference in percent removed that n seeds a side detect with 80% power, and n; None below 2 seeds."""
    seeds = [r.values for r in ranked if r.n > 1]
    if len(seeds) < 2:
        return None
    freedom = sum(len(values) - 1 for values in seeds)
    pooled = sqrt(fsum(variance(values) * (len(values) - 1) for values in seeds) / freedom)
    n = min(map(len, seeds))
    return minimum_detectable_effect(pooled, n), n


def beside(run: Run) -> Metric:
    """Reward minus that of best-of-n at the same KL, on its exact curve; beyond its largest n, minus its reward there."""
    reward, kl = measure(run, "reward"), measure(run, "kl")
    if reward.value is None or kl.value is None:
        return reward if reward.value is None else kl
    frontier = run.summary.frontier if run.summary is not None else None
    points = frontier.best_of_n if frontier is not None else []
    if len(points) < 2:
        return Metric(None, None, 0, 0, "the record holds no best-of-n curve")
    at = float(np.interp(kl.value, [p.kl for p in points], [p.reward for p in points]))
    return Metric(reward.value - at, reward.stderr, reward.n)


def beside_best_of_n(entry: Entry) -> Interval | None:
    """Reward minus that of best-of-n at the same KL, with the error over seeds; over prompts for one seed."""
    gaps = [(gap.value, gap.stderr or 0.0) for run in counted(entry) if (gap := beside(run)).value is not None]
    if not gaps:
        return None
    if len(gaps) > 1:
        return t_interval([value for value, _ in gaps])
    value, error = gaps[0]
    return Interval(value, value - Z95 * error, value + Z95 * error)


def beats(gap: Interval) -> bool | None:
    """Whether a difference of rewards with this interval is a gain (True), a loss (False) or not shown to be either (None)."""
    if gap.low is None or gap.high is None or abs(gap.mean) < SAME_REWARD or gap.low <= 0 <= gap.high:
        return None
    return gap.low > 0


def share_of_hypervolume(run: Run) -> Metric:
    """Area dominated by a run's test points up to (KL cap, base reward), as a share of the area below the frontier, in [0, 1].

    The reference point is the task's, never the compared runs', so the number does not move when a method is added.
    """
    summary = run.summary
    frontier = summary.frontier if summary else None
    if summary is None or frontier is None:
        return Metric(None, None, 0, 0, f"the run is {run.manifest.status}" if summary is None else "no frontier recorded")
    cap, base = frontier.kl_cap, frontier.base_reward
    if not cap:
        return Metric(None, None, 0, 0, "the task declares no KL cap")
    points = [(kl, reward) for kl, reward in _test_points(run) if kl <= cap]
    area = _area(frontier, cap)
    if area <= 0:
        return Metric(None, None, 0, 0, "the frontier is not known")
    return Metric(hypervolume(points, (cap, base)) / area if points else 0.0, None, len(points))


def _test_points(run: Run) -> list[tuple[float, float]]:
    rows = [row.metrics for row in run.trajectory if row.split == "test"]
    ends = [(measure(run, "kl").value, measure(run, "reward").value)]
    found = [(metric(row.get("kl")).value, metric(row.get("reward")).value) for row in rows] + ends
    return [(kl, reward) for kl, reward in found if kl is not None and reward is not None]


def _area(frontier: Frontier, cap: float) -> float:
    """Area below the frontier or its upper bound and above the base's reward, from KL 0 to the cap."""
    points = bound(frontier)
    if len(points) < 2:
        return 0.0
    kl = np.unique(np.clip([0.0, *(p[0] for p in points), cap], 0.0, cap))
    height = np.interp(kl, [p[0] for p in points], [p[1] for p in points]) - frontier.base_reward
    return float(np.trapezoid(np.maximum(height, 0.0), kl))


def above_frontier(run: Run) -> Above | None:
    """The distance of a finished run above the frontier if it exceeds its error; else None.

    The record says so itself (`frontier.above`), prompt by prompt; a record without that word is tried on its means.
    """
    frontier = run.summary.frontier if run.summary else None
    if run.summary is None or frontier is None:
        return None
    if frontier.above is not None:
        return _recorded(run.summary, run.trajectory) if frontier.above else None
    return _by_means(run, frontier)


def _recorded(summary: Summary, trajectory: list[Evaluation]) -> Above:
    """The recorded point of a run that lies highest above the frontier."""
    found = [_excess(None, summary.final), *(_excess(row.update, row.metrics) for row in trajectory)]
    return max((a for a in found if a), key=lambda a: a.errors or 0.0, default=Above(None, None, None))


def _excess(update: int | None, metrics: dict[str, MetricRecord]) -> Above | None:
    regret = metric(metrics.get("regret"))
    if regret.value is None or regret.value >= 0:
        return None
    return Above(-regret.value, -regret.value / regret.stderr if regret.stderr else None, update)


def _by_means(run: Run, frontier: Frontier) -> Above | None:
    reward, kl, points = measure(run, "reward"), measure(run, "kl"), bound(frontier)
    if reward.value is None or kl.value is None:
        return None
    if len(points) < 2 or kl.value > points[-1][0]:  # the frontier is not known out there
        return None
    excess = reward.value - float(np.interp(kl.value, [p[0] for p in points], [p[1] for p in points]))
    error = _joint_error(points, reward, kl)
    return Above(excess, excess / error if error else None, None) if excess > SIGMAS * error else None


def bound(frontier: Frontier) -> list[tuple[float, float, float]]:
    """(KL, reward, stderr) of the bound on all policies: the upper bound where there is one, the solid frontier before it.

    The curve itself is too low wherever responses of high reward were never drawn, so it alone would accuse sound runs.
    """
    solid = [(p.kl, p.reward, p.reward_stderr or 0.0) for p in frontier.curve if p.solid]
    upper = [(p.kl, p.reward) for p in frontier.upper]
    start = upper[0][0] if upper else np.inf
    error = partial(np.interp, xp=[p[0] for p in solid] or [0.0], fp=[p[2] for p in solid] or [0.0])
    return [p for p in solid if p[0] < start] + [(kl, reward, float(error(kl))) for kl, reward in upper]


def _joint_error(points: list[tuple[float, float, float]], reward: Metric, kl: Metric) -> float:
    """Standard error of the distance to the frontier: the reward's, the frontier's, and the KL's times the slope."""
    kls, rewards, errors = (np.array(column) for column in zip(*points, strict=True))
    at, step = kl.value or 0.0, kl.stderr or 0.0
    moved = float(np.interp(at + step, kls, rewards) - np.interp(max(at - step, 0.0), kls, rewards)) / 2
    return float(np.hypot(np.hypot(reward.stderr or 0.0, float(np.interp(at, kls, errors))), moved))
