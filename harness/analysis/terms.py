"""What each prompt adds to a metric of a run: terms whose mean is the metric, and whose spread is its error over prompts.

A mean has the scores of the prompts as its terms; a ratio has its linearisation (delta method), in which the base policy's
score of the same prompt and the frontier's term are paired with the policy's. A record older than a column has no terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import CorruptRecord
from harness.records.read import prompt_scores
from harness.records.schema import Prompts, Run

Columns = Mapping[str, NDArray[np.float64]]
Terms = NDArray[np.float64]
OLDER = "no scores by prompt in some of the records (made before they were kept)"
SEEDS_ALONE = "the error is over seeds alone"


class Joint(NamedTuple):
    """The terms of several sides on the same prompts, or None; and what a reader must know of them."""

    tables: list[Terms] | None
    note: str | None


class _Kept(NamedTuple):
    """The scores of a record by prompt, as small as they can be: a page reads those of all its runs."""

    split: str
    id: tuple[str, ...]
    kind: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]  # [X] each; NaN without a score


class PromptTerms:
    """The terms of runs by metric; each record's scores by prompt are read once.

    Scores that cannot be read are as none, or, if `strict`, raise CorruptRecord.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._read: dict[Path, _Kept | None] = {}
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}  # ids and kinds, which the runs of a world share

    def table(self, runs: Sequence[Sequence[Run]], key: str) -> Terms | None:
        """The terms of each seed on the prompts that all runs have scored, repeated records averaged: -> [n, X].

        None if a record has no such terms, if the prompts of the records differ, or if fewer than two are left.
        """
        found = self.tables([runs], key)
        return found.tables[0] if found.tables else None

    def tables(self, sides: Sequence[Sequence[Sequence[Run]]], key: str) -> Joint:
        """The same for several sides, [n, X] each, on the prompts that all runs of all sides have scored."""
        if key.partition("@")[0] not in TERMS:
            return Joint(None, None)
        found = [[[self._of(run, key) for run in repeated] for repeated in side] for side in sides]
        flat = [x for side in found for repeated in side for x in repeated]
        known = [x for x in flat if x is not None]
        if not flat or len(known) < len(flat):
            return Joint(None, f"{OLDER}; {SEEDS_ALONE}")
        if any(ids != known[0][0] for ids, _ in known):
            return Joint(None, f"the prompts of the records differ; {SEEDS_ALONE}")
        tables = [np.array([np.mean([x[1] for x in same if x is not None], axis=0) for same in side]) for side in found]
        scored = ~np.isnan(np.concatenate(tables)).any(0)
        if scored.sum() < 2:
            return Joint(None, f"no prompt has a score in all records; {SEEDS_ALONE}")
        left = f"{(~scored).sum()} prompts without a score in some run are left out of the difference"
        return Joint([table[:, scored] for table in tables], None if scored.all() else left)

    def known(self, run: Run, key: str) -> Terms:
        """The terms of one run on the prompts that it has scored: -> [X]."""
        found = self._of(run, key)
        return np.empty(0) if found is None else found[1][~np.isnan(found[1])]

    def aligned(self, runs: Sequence[Run], keys: Sequence[str]) -> dict[Path, dict[str, Terms]]:
        """The terms of each run by its folder under several keys, [X] each, on the prompts that all runs have under all keys.

        A run without one of them, or with other prompts than the first one that has them, is left out.
        """
        read = {run.dir: {key: self._of(run, key) for key in keys} for run in runs}
        whole = {dir: {k: v for k, v in found.items() if v is not None} for dir, found in read.items()}
        whole = {dir: found for dir, found in whole.items() if len(found) == len(keys)}
        ids = next((next(iter(found.values()))[0] for found in whole.values()), None)
        same = {dir: found for dir, found in whole.items() if all(v[0] == ids for v in found.values())}
        if not same:
            return {}
        known = np.all([~np.isnan(v[1]) for found in same.values() for v in found.values()], axis=0)
        return {dir: {k: v[1][known] for k, v in found.items()} for dir, found in same.items()} if known.sum() > 1 else {}

    def _of(self, run: Run, key: str) -> tuple[list[str], Terms] | None:
        kept = self._prompts(run)
        name, _, kind = key.partition("@")
        if kept is None or name not in TERMS:
            return None
        use = [x for x, of in enumerate(kept.kind) if kind in ("", of)]
        columns = {n: column[use] for n, column in kept.values.items()}
        needed, terms = TERMS[name]
        if not use or not set(needed) <= set(columns):
            return None
        known = ~np.isnan(np.stack([columns[n] for n in needed])).any(0)
        found = np.full(len(use), np.nan)
        if known.any():
            found[known] = terms({n: columns[n][known] for n in needed})
        return [kept.split, *(kept.id[x] for x in use)], found

    def _prompts(self, run: Run) -> _Kept | None:
        if run.dir not in self._read:
            try:
                found = prompt_scores(run)
                self._read[run.dir] = None if found is None else self._kept(found)
            except CorruptRecord:
                if self.strict:
                    raise
                # `harness verify` says what is wrong; the error is then over seeds and of each run's own
                self._read[run.dir] = None
        return self._read[run.dir]

    def _kept(self, found: Prompts) -> _Kept:
        ids, kinds = (self._known.setdefault(names, names) for names in (tuple(found.id), tuple(found.kind)))
        return _Kept(found.split, ids, kinds, {name: np.array(column, dtype=float) for name, column in found.values.items()})


def ratio(above: Terms, below: Terms) -> Terms:
    """Terms of mean(above) / mean(below): [X], [X] -> [X]; NaN if the divisor is zero."""
    if below.mean() == 0:
        return np.full(len(above), np.nan)
    value = above.mean() / below.mean()
    return value + (above - value * below) / below.mean()


def _removed(c: Columns) -> Terms:
    return 100 * (1 - ratio(1 - c["judge"], 1 - c["base_judge"]))


def _perplexity(c: Columns) -> Terms:
    per_token = ratio(c["nll_per_token"] * c["nll_tokens"], c["nll_tokens"])
    return np.exp(per_token.mean()) * (1 + per_token - per_token.mean())


TERMS: dict[str, tuple[tuple[str, ...], Callable[[Columns], Terms]]] = {
    "reward": (("reward",), lambda c: c["reward"]),
    "judge": (("judge",), lambda c: c["judge"]),
    "kl": (("kl",), lambda c: c["kl"]),
    "base_reward": (("base_reward",), lambda c: c["base_reward"]),
    "base_judge": (("base_judge",), lambda c: c["base_judge"]),
    "undesired": (("judge",), lambda c: 1 - c["judge"]),
    "removed": (("judge", "base_judge"), _removed),
    "efficiency": (("least_kl", "kl"), lambda c: ratio(c["least_kl"], c["kl"])),
    "excess_kl": (("least_kl", "kl"), lambda c: c["kl"] - c["least_kl"]),
    "regret": (("highest_reward", "reward"), lambda c: c["highest_reward"] - c["reward"]),
    "overoptimisation": (("optimal_judge", "judge"), lambda c: c["optimal_judge"] - c["judge"]),
    "nll_per_token": (("nll_per_token",), lambda c: c["nll_per_token"]),
    "ppl": (("nll_per_token", "nll_tokens"), _perplexity),
}
"""Of each metric the columns of prompts.json that it needs, and its terms."""
