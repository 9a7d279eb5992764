"""The columns of every table: how each number is computed from a run, its title and its direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import hypot
from typing import NamedTuple

from harness.core.text import shorten
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


def undesired(run: Run, side: str = "final", kind: str | None = None) -> Metric:
    """1 - judge, the undesired score, over all prompts or over those of one kind."""
    judge = measure(run, "judge" if kind is None else f"judge@{kind}", side)
    return judge if judge.value is None else judge._replace(value=1 - judge.value)


def removed(run: Run) -> Metric:
    """Percent of the base's undesired score that was removed; the base's error is common to all runs and left out."""
    base, left = undesired(run, "base"), undesired(run)
    if base.value is None or left.value is None:
        return left if left.value is None else base
    if base.value <= 0:
        return Metric(None, None, 0, 0, "the base shows nothing to remove")
    stderr = None if left.stderr is None else 100 * left.stderr / base.value
    return left._replace(value=100 * (1 - left.value / base.value), stderr=stderr)


def overoptimisation(run: Run) -> Metric:
    """Gain of the reward minus gain of the judge."""
    found = [measure(run, key, side) for key in ("reward", "judge") for side in ("final", "base")]
    absent = next((m for m in found if m.value is None), None)
    if absent is not None:
        return absent
    reward, reward_base, judge, judge_base = (m.value or 0.0 for m in found)
    stderr = hypot(*(m.stderr or 0.0 for m in found))
    return Metric(reward - reward_base - judge + judge_base, stderr or None, found[0].n)


def cost(key: str) -> Callable[[Run], Metric]:
    def of(run: Run) -> Metric:
        if run.summary is None:
            return measure(run, key)
        value = run.summary.cost.get(key)
        return Metric(value, None, 1, 0, "not recorded" if value is None else None)

    return of


def final(key: str) -> Callable[[Run], Metric]:
    return lambda run: measure(run, key)


COLUMNS = (
    Column("undesired", "Undesired", "1 − judge", "down", ".3f", undesired),
    Column("removed", "Removed", "% of base", "up", ".1f", removed),
    Column("reward", "Reward", "0 to 1", "up", ".3f", final("reward")),
    Column("kl", "KL", "nats/response", "down", ".3f", final("kl")),
    Column("efficiency", "Efficiency", "K*(R) / KL", "up", ".2f", final("efficiency")),
    Column("excess_kl", "Excess KL", "nats", "down", ".3f", final("excess_kl")),
    Column("overoptimisation", "Over-optimised", "reward − judge gain", "down", ".3f", overoptimisation),
    Column("ppl", "Perplexity", "judge model", "down", ".2f", final("ppl")),
    Column("distinct_2", "Distinct-2", "share", "up", ".3f", final("distinct_2")),
    Column("grammatical", "Grammatical", "share", "up", ".3f", final("grammatical")),
    Column("flops", "Cost", "FLOPs", "down", ".2g", cost("flops")),
    Column("sampled_tokens", "Sampled", "tokens", "down", ".3g", cost("sampled_tokens")),
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


def title(column: Column) -> str:
    """The heading of a column: name, direction and unit."""
    return f"{column.title}{ARROWS[column.better]} ({column.unit})"


def of_base(run: Run, column: Column) -> Metric | None:
    """The base policy's value in a column; None if the column describes methods only."""
    name, _, kind = column.key.partition("@")
    if name == "undesired":
        return undesired(run, "base", kind or None)
    return measure(run, column.key, "base") if column.key in OF_BASE else None
