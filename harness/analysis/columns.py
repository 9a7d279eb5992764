"""The columns of every table: how each number is computed from a run, its title and its direction."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from math import hypot
from typing import NamedTuple

from harness.core.text import plain, shorten
from harness.core.types import Metric
from harness.records.schema import Run

from .groups import Group, measure


class Column(NamedTuple):
    """A column of a table: its unit, its direction, and the function that reads it from a run."""

    key: str
    title: str
    unit: str
    better: str  # up, down or nothing
    digits: str  # a format
    of: Callable[[Run], Metric]
    also_of_base: bool = False  # beside those of OF_BASE


def undesired(run: Run, side: str = "final", kind: str | None = None) -> Metric:
    """1 - judge, the undesired score, over all prompts or over those of one kind."""
    judge = measure(run, "judge" if kind is None else f"judge@{kind}", side)
    return judge if judge.value is None else judge._replace(value=1 - judge.value)


def removed(run: Run) -> Metric:
    """Percent of the base's undesired score that was removed; its error is the policy's (the base's comes with terms)."""
    base, left = undesired(run, "base"), undesired(run)
    if base.value is None or left.value is None:
        return left if left.value is None else base
    if base.value <= 0:
        return Metric(None, None, 0, 0, "the base shows nothing to remove")
    stderr = None if left.stderr is None else 100 * left.stderr / base.value
    return left._replace(value=100 * (1 - left.value / base.value), stderr=stderr)


def overoptimisation(run: Run) -> Metric:
    """The judge's score of the optimal policy with the same reward, minus that of the policy.

    As the run measured it; of an older record along the recorded frontier, without the error of the frontier.
    """
    if run.summary is None or "overoptimisation" in run.summary.final:
        return measure(run, "overoptimisation")
    reward, judge = measure(run, "reward"), measure(run, "judge")
    if reward.value is None or judge.value is None:
        return reward if reward.value is None else judge
    frontier = run.summary.frontier
    along = frontier.judge_at if frontier is not None else None
    if frontier is None or along is None or len(along.judge) != len(frontier.curve) or len(along.judge) < 2:
        return Metric(None, None, 0, 0, "the record holds no judge scores along the frontier")
    rewards, judges = [p.reward for p in frontier.curve], [float("nan") if j is None else j for j in along.judge]
    at, step = reward.value, reward.stderr or 0.0
    low, best, high = (interpolated(x, rewards, judges) for x in (at - step, at, at + step))
    solid = at <= max((p.reward for p in frontier.curve if p.solid), default=0.0)
    error = hypot(judge.stderr or 0.0, (high - low) / 2)
    return Metric(best - judge.value, error or None, judge.n, 0, None if solid else "beyond the solid range of the frontier")


def interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The value at x on the line through points with increasing xs; beyond an end, that of the end."""
    if x <= xs[0] or x >= xs[-1]:
        return ys[0] if x <= xs[0] else ys[-1]
    i = bisect_right(xs, x)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


SIDES = {"upper bound": "≤", "lower bound": "≥"}
OLDER = {"efficiency": "≤", "excess_kl": "≥", "regret": "≥"}  # of a record whose reason does not name the side
UNREACHED = {"efficiency": "≥", "excess_kl": "≤"}  # above every reward of the base responses


def bound_sign(key: str, reasons: Sequence[str]) -> str:
    """≤ or ≥ before a value of the column that is a bound, by its reasons; ~ if the sides are unlike; empty for an estimate."""
    sides = {_side(key, reason) for reason in reasons} - {""}
    return "" if not sides else sides.pop() if len(sides) == 1 else "~"


def _side(key: str, reason: str) -> str:
    named = next((sign for words, sign in SIDES.items() if reason.endswith(words)), None)
    if named is not None:
        return named
    if "above every reward" in reason:
        return UNREACHED.get(key, "")
    return OLDER.get(key, "") if "beyond the solid range" in reason else ""


def cost(key: str) -> Callable[[Run], Metric]:
    def of(run: Run) -> Metric:
        if run.summary is None:
            return measure(run, key)
        value = run.summary.cost.get(key)
        return Metric(value, None, 1, 0, "not recorded" if value is None else None)

    return of


def own_documents(run: Run) -> Metric:
    """The share of documents of the task's own kinds among those that a corpus method read; the others have other habits."""
    read, own = (cost(key)(run) for key in ("documents", "own_documents"))
    if read.value is None or own.value is None:
        return read if read.value is None else own
    if not read.value:
        return Metric(None, None, 0, 0, "reads no document whose kind is known")
    return Metric(own.value / read.value, None, int(read.value))


def final(key: str) -> Callable[[Run], Metric]:
    return lambda run: measure(run, key)


COLUMNS = (
    Column("undesired", "Undesired", "1 − judge", "down", ".3f", undesired),
    Column("removed", "Removed", "% of base", "up", ".1f", removed),
    Column("reward", "Reward", "0 to 1", "up", ".3f", final("reward")),
    Column("kl", "KL", "nats/response", "down", ".3f", final("kl")),
    Column("efficiency", "Efficiency", "K*(R) / KL", "up", ".2f", final("efficiency")),
    Column("excess_kl", "Excess KL", "nats", "down", ".3f", final("excess_kl")),
    Column("overoptimisation", "Over-optimised", "optimum's judge − judge", "down", ".3f", overoptimisation),
    Column("ppl", "Perplexity", "judge model", "down", ".2f", final("ppl")),
    Column("distinct_2", "Distinct-2", "share", "up", ".3f", final("distinct_2")),
    Column("grammatical", "Grammatical", "share", "up", ".3f", final("grammatical")),
    Column("flops", "Cost", "FLOPs", "down", ".2g", cost("flops")),
    Column("sampled_tokens", "Sampled", "tokens", "down", ".3g", cost("sampled_tokens")),
    Column("own_documents", "Own documents", "share of documents read", "", ".2f", own_documents),
    Column("seconds", "Time", "s", "down", ".3g", cost("seconds")),
)
COLLAPSE = (
    Column("entropy", "Entropy", "nats/response", "", ".2f", final("entropy")),
    Column("modal_mass", "Modal mass", "share of the commonest response", "down", ".3f", final("modal_mass")),
    Column("distinct_2", "Distinct-2", "share", "up", ".3f", final("distinct_2")),
    Column("unique", "Unique", "share of responses", "up", ".3f", final("unique")),
    Column("length", "Length", "tokens", "", ".2f", final("length")),
    Column("eos_rate", "Ended", "share with EOS", "", ".3f", final("eos_rate")),
    Column("forward_kl", "Forward KL", "KL(base || policy), nats", "down", ".3f", final("forward_kl")),
    Column("clean_nll", "Clean text", "nats/token", "down", ".3f", final("clean_nll")),
)
JUDGE = Column("judge", "Judge", "0 to 1", "up", ".3f", final("judge"))
SCORER_CALLS = Column("scorer_calls", "Scorer calls", "responses", "down", ".3g", cost("scorer_calls"))
BY_KEY = {column.key: column for column in (*COLUMNS, *COLLAPSE, JUDGE, SCORER_CALLS)}
OF_BASE = {"reward", "ppl", "distinct_2", "grammatical", *(column.key for column in COLLAPSE)}
ARROWS = {"up": "\u00a0↑", "down": "\u00a0↓", "": ""}


def kind_columns(group: Group) -> list[Column]:
    """One column of undesired score for each kind of prompt."""
    kinds = sorted(
        {key.split("@", 1)[1] for run in group.runs if run.summary for key in run.summary.final if key[:6] == "judge@"}
    )
    return [Column(f"undesired@{k}", shorten(k, 30), "undesired", "down", ".3f", partial(undesired, kind=k)) for k in kinds]


def own_columns(group: Group) -> list[Column]:
    """The metrics that only the task of a group has, as its runs declare them."""
    declared = {name: own for run in group.runs if run.summary for name, own in run.summary.own_metrics.items()}
    return [Column(key, plain(m.title), plain(m.unit), m.better, ".3f", final(key), True) for key, m in declared.items()]


def title(column: Column) -> str:
    """The heading of a column: name, direction and unit."""
    return f"{column.title}{ARROWS[column.better]} ({column.unit})"


def of_base(run: Run, column: Column) -> Metric | None:
    """The base policy's value in a column; None if the column describes methods only."""
    name, _, kind = column.key.partition("@")
    if name == "undesired":
        return undesired(run, "base", kind or None)
    return measure(run, column.key, "base") if column.key in OF_BASE or column.also_of_base else None
