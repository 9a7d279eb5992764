"""Ranking of a group's methods, against each other, best-of-n and the optimum: numbers only, worded by `report.verdict`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from harness.core.types import Metric
from harness.records.schema import Evaluation, Frontier, MetricRecord, Run, Summary

from .groups import Entry, Estimate, counted, measure, metric
from .stats import Z95, Difference, Interval, detectable, nested_interval, rank_sets

SAME_REWARD = 1e-3  # a difference that no table shows
NO_DRIFT = 1e-4  # nats; the KL of a policy that has not moved
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


def ranking(sound: Sequence[tuple[Entry, Estimate]], test: Callable[[Entry, Entry], Difference] | None = None) -> list[Ranked]:
    """Methods by the percent of the habit removed, highest first, from its estimates; one without a number is left out.

    `test` compares two methods; without it, Welch's t over seeds does.
    """
    known = [(entry, e.interval, e.values) for entry, e in sound if e.interval is not None]
    named = {entry.name: entry for entry, _, _ in known}
    between = (lambda a, b: test(named[a], named[b])) if test else None
    ranks = rank_sets({entry.name: values for entry, _, values in known}, test=between) if known else {}
    ranked = [Ranked(entry, interval, values, ranks[entry.name]) for entry, interval, values in known]
    return sorted(ranked, key=lambda r: (-r.removed.mean, r.entry.name))


def least_shown(tests: Sequence[Difference]) -> float | None:
    """The difference that the typical pair of methods shows with 80 % power: the median over tests; None without an error."""
    known = [detectable(d.stderr, d.df) for d in tests if d.stderr and d.df]
    return median(known) if known else None


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
    """Reward minus that of best-of-n at the same KL, with the error over seeds and prompts; over prompts for one seed."""
    gaps = [(gap.value, gap.stderr or 0.0) for run in counted(entry) if (gap := beside(run)).value is not None]
    if not gaps:
        return None
    if len(gaps) > 1:
        return nested_interval([value for value, _ in gaps], [error for _, error in gaps])
    value, error = gaps[0]
    return Interval(value, value - Z95 * error, value + Z95 * error)


def beats(gap: Interval) -> bool | None:
    """Whether a difference of rewards with this interval is a gain (True), a loss (False) or not shown to be either (None)."""
    if gap.low is None or gap.high is None or abs(gap.mean) < SAME_REWARD or gap.low <= 0 <= gap.high:
        return None
    return gap.low > 0


def share_of_area(run: Run, key: str) -> Metric:
    """Area between a run's curve of judge or reward against KL and the base's score, up to the KL cap, as a share.

    The curve goes through the base policy at KL 0 and the run's test points in the order of their KL, and stays level after
    the last. Below the base it counts negative, so noise adds nothing on average, and the base policy has 0. The share is of
    the frontier's area: of the reward, or of the judge's score along it (what the optimal policies for the reward get, which a
    method may exceed). The error takes that of the points over prompts as common to them.
    """
    summary = run.summary
    frontier = summary.frontier if summary else None
    if summary is None or frontier is None:
        return Metric(None, None, 0, 0, f"the run is {run.manifest.status}" if summary is None else "no frontier recorded")
    cap, base = frontier.kl_cap, frontier.base_reward if key == "reward" else measure(run, "judge", "base").value
    if not cap:
        return Metric(None, None, 0, 0, "the task declares no KL cap")
    along = bound(frontier) if key == "reward" else _judged(frontier)
    whole = _area([(p[0], p[1]) for p in along], base, cap) if base is not None and len(along) > 1 else 0.0
    if base is None or whole <= 0:
        return Metric(None, None, 0, 0, "the frontier is not known")
    points = _test_points(run, key)
    ordered = [(0.0, base), *((kl, score) for kl, score, _ in points)]
    errors = [(0.0, 0.0), *((kl, error) for kl, _, error in points)]
    return Metric(_area(ordered, base, cap) / whole, (_area(errors, 0.0, cap) / whole) or None, len(points))


def _test_points(run: Run, key: str) -> list[tuple[float, float, float]]:
    """KL, score and standard error of the run's test points, by KL; points of one KL as their mean.

    A point without drift is the base policy again, whose score is known better.
    """
    rows = [row.metrics for row in run.trajectory if row.split == "test" and row.update]
    found = [(metric(row.get("kl")), metric(row.get(key))) for row in rows]
    end = (measure(run, "kl"), measure(run, key))
    found += [] if end in found else [end]  # the last row of a trajectory is the run's end
    by_kl: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for kl, score in found:
        if kl.value is not None and score.value is not None and kl.value >= NO_DRIFT:
            by_kl[kl.value].append((score.value, score.stderr or 0.0))
    return [(kl, fmean(s for s, _ in by_kl[kl]), fmean(e for _, e in by_kl[kl])) for kl in sorted(by_kl)]


def _judged(frontier: Frontier) -> list[tuple[float, float]]:
    along = frontier.judge_at
    return [(kl, judge) for kl, judge in zip(along.kl, along.judge, strict=True) if judge is not None] if along else []


def _area(points: Sequence[tuple[float, float]], base: float, cap: float) -> float:
    """Area between the line through points of increasing KL and the base's score, up to the cap; level beyond the ends."""
    kls, scores = zip(*points, strict=True)
    at = np.unique(np.clip([0.0, *kls, cap], 0.0, cap))
    return float(np.trapezoid(np.interp(at, kls, scores) - base, at))


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
