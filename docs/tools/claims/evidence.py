"""The kinds of evidence for a claim, each a comparison that the records decide or leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np

from harness.analysis.stats import Difference, paired_by_prompt, paired_test, welch_test
from harness.records.schema import Run

from .quantities import Quantity, Table
from .records import Records, Side, one_world
from .rule import Finding, Missing, Outcome, Verdict, Way, all_of, either

Values = dict[int, float]  # by seed


class Evidence(Protocol):
    """A part of a claim: its comparisons, and the verdict on them together."""

    def outcomes(self, records: Records, task: str) -> list[Outcome]: ...
    def verdict(self, outcomes: Sequence[Outcome]) -> Verdict: ...


@dataclass(frozen=True)
class Compare:
    """The difference of two sides; with `scale` the second side is multiplied by it, for a claim about a ratio.

    A scale below 1 makes the difference of practical size smaller as well.
    """

    a: Side
    b: Side
    quantity: Quantity
    way: Way
    scale: float = 1.0

    def outcomes(self, records: Records, task: str) -> list[Outcome]:
        sides = [side.runs(records, task) for side in (self.a, self.b)]
        if why := [side for side in sides if isinstance(side, str)]:
            return [Missing(self.quantity.words, "; ".join(why))]
        a, b = (by_seed(side) for side in sides if not isinstance(side, str))
        if not one_world([*a.values(), *b.values()]):
            return [Missing(self.quantity.words, "the runs of the two sides were measured in different worlds")]
        return [self._compared(a, b, records)]

    def verdict(self, outcomes: Sequence[Outcome]) -> Verdict:
        return all_of([outcome.verdict for outcome in outcomes])

    def _compared(self, a: dict[int, Run], b: dict[int, Run], records: Records) -> Outcome:
        q, factor = self.quantity, self.scale
        x, y = ({seed: v for seed, run in of.items() if (v := q.value(run, records)) is not None} for of in (a, b))
        if not x or not y:
            return Missing(q.words, f"not measured on the runs of {(self.b if x else self.a).name}")
        table = q.table([*(a[seed] for seed in x), *(b[seed] for seed in y)], records)
        found, prompts = _difference(x, {seed: factor * v for seed, v in y.items()}, table, factor)
        second = self.b.name if factor == 1 else f"{factor:g} times {self.b.name}"
        means = (fmean(x.values()), factor * fmean(y.values()))
        return Finding(
            q.words,
            (self.a.name, second),
            means,
            found,
            self.way,
            q.margin * min(1.0, factor),
            (len(x), len(y)),
            prompts,
            q.digits,
        )


@dataclass(frozen=True)
class Level:
    """A quantity of one side against a number."""

    a: Side
    quantity: Quantity
    way: Way
    target: float = 0.0

    def outcomes(self, records: Records, task: str) -> list[Outcome]:
        q, runs = self.quantity, self.a.runs(records, task)
        if isinstance(runs, str):
            return [Missing(q.words, runs)]
        if not one_world(runs):
            return [Missing(q.words, f"the runs of {self.a.name} were measured in different worlds")]
        kept = {seed: v for seed, run in by_seed(runs).items() if (v := q.value(run, records)) is not None}
        if not kept:
            return [Missing(q.words, f"not measured on the runs of {self.a.name}")]
        table = q.table([by_seed(runs)[seed] for seed in kept], records)
        both = None if table is None else np.concatenate([table, np.full_like(table, self.target)])
        found, prompts = _difference(kept, dict.fromkeys(kept, self.target), both, 1.0)
        names, means = (self.a.name, f"{self.target:g}"), (fmean(kept.values()), self.target)
        return [Finding(q.words, names, means, found, self.way, q.margin, (len(kept), len(kept)), prompts, q.digits)]

    def verdict(self, outcomes: Sequence[Outcome]) -> Verdict:
        return all_of([outcome.verdict for outcome in outcomes])


@dataclass(frozen=True)
class Undominated:
    """No other side is better than `a` on all quantities: `a` is shown to be better on one of them, against each.

    It is dominated where another is shown to be better on every quantity.
    """

    a: Side
    others: tuple[Side, ...]
    quantities: tuple[tuple[Quantity, Way], ...]

    def outcomes(self, records: Records, task: str) -> list[Outcome]:
        parts = [Compare(self.a, b, q, way) for b in self.others for q, way in self.quantities]
        return [outcome for part in parts for outcome in part.outcomes(records, task)]

    def verdict(self, outcomes: Sequence[Outcome]) -> Verdict:
        n = len(self.quantities)
        return all_of([either(outcomes[i : i + n]) for i in range(0, len(outcomes), n)])


def by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    """One run a seed, in order of seeds; of two records of a seed the first."""
    found: dict[int, Run] = {}
    for run in runs:
        found.setdefault(run.manifest.seed, run)
    return {seed: found[seed] for seed in sorted(found)}


def _difference(x: Values, y: Values, table: Table | None, scale: float) -> tuple[Difference, int | None]:
    """x - y and the number of prompts that its error is over; seeds are paired where both sides have the same."""
    paired = sorted(x) == sorted(y) and len(x) > 1
    if table is not None:
        return paired_by_prompt(table[: len(x)], scale * table[len(x) :], seeds_paired=paired), table.shape[1]
    one, two = list(x.values()), list(y.values())
    return (paired_test(one, two) if paired else welch_test(one, two)), None
