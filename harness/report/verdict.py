"""What the runs of a group say, in words, and which of them say something that cannot be."""

from __future__ import annotations

from math import hypot
from typing import Any, NamedTuple

import numpy as np

from ..records import Problem, Run
from ..stats import Interval, overlap
from ..types import Metric
from .groups import Entry, Group, counted, estimate, measure
from .tables import number, overoptimisation, removed, undesired

SIGMAS = 3.0  # joint standard errors; at 1.96 one sound run in forty would be called a bug


class Ranked(NamedTuple):
    entry: Entry
    removed: Interval
    n: int


def verdict(group: Group) -> list[str]:
    """Sentences for the top of a report: who removes most, at what cost, how far from the optimum, and how sure that is."""
    ranked = ranking(group)
    said = [*_leader(ranked), *_others(ranked), *_most_efficient(ranked)] if ranked else [_nothing(group)]
    return [*said, *_left_out(group), *_suspects(group)]


def ranking(group: Group) -> list[Ranked]:
    """Methods by the share of the habit that they remove, most first; no such number or an impossible one is not ranked."""
    sound = [entry for entry in group.entries if all(above_frontier(run) is None for run in entry.runs)]
    found = [(entry, estimate(entry, removed)) for entry in sound]
    ranked = [Ranked(entry, e.interval, e.n) for entry, e in found if e.interval is not None]
    return sorted(ranked, key=lambda r: (-r.removed.mean, r.entry.name))


def above_frontier(run: Run) -> float | None:
    """By how much reward a finished run lies above what any policy can reach, if by more than its error; else None."""
    reward, kl = measure(run, "reward"), measure(run, "kl")
    frontier = run.summary["frontier"] if run.summary else None
    if frontier is None or reward.value is None or kl.value is None:
        return None
    points = _bound(frontier)
    if len(points) < 2 or kl.value > points[-1][0]:  # the frontier is not known out there
        return None
    excess = reward.value - float(np.interp(kl.value, [p[0] for p in points], [p[1] for p in points]))
    return excess if excess > SIGMAS * _joint_error(points, reward, kl) else None


def impossible(group: Group) -> list[Problem]:
    """A problem for each run above the frontier: since no policy can be there, the suite is suspected and not praised."""
    found = [(run, above_frontier(run)) for run in group.runs]
    what = "above the optimal frontier by {} reward, beyond {:g} standard errors: a suspected bug in the suite"
    return [Problem(run.dir, what.format(number(excess, ".3f"), SIGMAS)) for run, excess in found if excess is not None]


def _bound(frontier: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(KL, reward, stderr) of what no policy exceeds: the upper bound where there is one, the solid frontier before it.

    The curve itself is too low wherever responses of high reward were never drawn, so it alone would accuse sound runs.
    """
    solid = [(p["kl"], p["reward"], p.get("reward_stderr") or 0.0) for p in frontier["curve"] if p["solid"]]
    upper = [(p["kl"], p["reward"]) for p in frontier.get("upper") or []]
    start = upper[0][0] if upper else np.inf
    kls, errors = [p[0] for p in solid] or [0.0], [p[2] for p in solid] or [0.0]
    return [p for p in solid if p[0] < start] + [(kl, reward, float(np.interp(kl, kls, errors))) for kl, reward in upper]


def _joint_error(points: list[tuple[float, float, float]], reward: Metric, kl: Metric) -> float:
    """Standard error of the distance to the frontier: the reward's, the frontier's, and the KL's times the slope."""
    kls, rewards, errors = (np.array(column) for column in zip(*points))
    at, step = kl.value or 0.0, kl.stderr or 0.0
    moved = float(np.interp(at + step, kls, rewards) - np.interp(max(at - step, 0.0), kls, rewards)) / 2
    return hypot(reward.stderr or 0.0, float(np.interp(at, kls, errors)), moved)


def _leader(ranked: list[Ranked]) -> list[str]:
    first = ranked[0]
    name, runs = first.entry.name, counted(first.entry)
    base = _mean(first.entry, lambda run: undesired(run, "base"))
    left = _mean(first.entry, undesired)
    share = f"{number(first.removed.mean, '.0f')}%{_range(first.removed)}"
    if first.removed.mean <= 0:
        change = number(-first.removed.mean, "+.0f")
        return [f"No method removes the habit: the best, {name}, changes the undesired score by {change}%."]
    does = "removes most of the habit" if len(ranked) > 1 else "is the only method with a result"
    seeds = f"{first.n} seed{'s' if first.n > 1 else ''}"
    head = f"{name} {does}: the undesired score falls from {base} to {left}, {share} of it gone over {seeds}"
    said = [f"{head}, at a KL of {_mean(first.entry, lambda run: measure(run, 'kl'), '.2f')} nats from the base."]
    if first.removed.low is not None and first.removed.low <= 0:
        said.append("That interval includes no change at all.")
    return said + _price(first.entry, runs)


def _price(entry: Entry, runs: list[Run]) -> list[str]:
    """What the leader's gain cost beside the optimum, in reward that the judge does not share, and in fluency."""
    efficiency = estimate(entry, lambda run: measure(run, "efficiency")).interval
    gap = estimate(entry, overoptimisation).interval
    said = ["How far that is from the optimum was not measured."]
    if efficiency:
        said = [f"The optimal policy would reach the same reward with {number(100 * efficiency.mean, '.0f')}% of that KL."]
    if gap:
        more = "more" if gap.mean >= 0 else "less"
        said.append(f"Its reward rose by {number(abs(gap.mean), '.3f')} {more} than the judge's score.")
    before = _mean(entry, lambda run: measure(run, "ppl", "base"), ".2f")
    after = _mean(entry, lambda run: measure(run, "ppl"), ".2f")
    return [*said, f"Perplexity went from {before} to {after}."] if runs else said


def _others(ranked: list[Ranked]) -> list[str]:
    first, others = ranked[0], ranked[1:]
    single = [r.entry.name for r in ranked if r.n == 1]
    tied = [r for r in others if r.n > 1 and first.n > 1 and overlap(first.removed, r.removed)]
    said = []
    if tied:
        said.append(f"Tied with it, since their 95% intervals overlap: {_list(tied)}.")
    elif others and first.n > 1 and not single:
        said.append("Its 95% interval overlaps no other method's.")
    if single:
        order = "; the order of these may be chance" if others else ""
        said.append(f"One seed gives no interval over seeds ({', '.join(single)}){order}.")
    return said


def _most_efficient(ranked: list[Ranked]) -> list[str]:
    found = [(r, estimate(r.entry, lambda run: measure(run, "efficiency")).interval) for r in ranked]
    known = [(interval.mean, r) for r, interval in found if interval and r.removed.mean > 0]
    if len(known) < 2:
        return []
    share, best = max(known, key=lambda pair: pair[0])
    if best is ranked[0]:
        return ["It is also the closest to the optimum for what it reaches."]
    gone = number(best.removed.mean, ".0f")
    return [
        f"Closest to the optimum for what it reaches is {best.entry.name}: {number(100 * share, '.0f')}%, with {gone}% removed."
    ]


def _nothing(group: Group) -> str:
    if not any(counted(entry) for entry in group.entries):
        return "No run is done, so there is no verdict."
    reasons = sorted({reason for entry in group.entries for reason in estimate(entry, removed).reasons})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"No verdict: no sound run measured how much of the habit is gone{why}."


def _left_out(group: Group) -> list[str]:
    states = [run.manifest["status"] for run in group.runs]
    out = [f"{states.count(s)} {s}" for s in ("degraded", "failed", "interrupted", "running") if s in states]
    return [f"Left out of means and order: {', '.join(out)}."] if out else []


def _suspects(group: Group) -> list[str]:
    found = [run for run in group.runs if above_frontier(run) is not None]
    if not found:
        return []
    names = ", ".join(f"{run.manifest['method']} seed {run.manifest['seed']}" for run in found)
    what = "above the frontier beyond the error, where no policy can be; such a method is not ranked"
    return [f"Suspected bug in the suite, not a good method: {names} {what}."]


def _mean(entry: Entry, of: Any, digits: str = ".3f") -> str:
    interval = estimate(entry, of).interval
    return "a value not measured" if interval is None else number(interval.mean, digits)


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" (95% interval {number(interval.low, '.0f')} to {number(interval.high, '.0f')}%)"


def _list(ranked: list[Ranked]) -> str:
    return ", ".join(f"{r.entry.name} ({number(r.removed.mean, '.0f')}%)" for r in ranked)
