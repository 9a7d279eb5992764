"""What is compared: quantities of a run, with a term for each prompt where its record has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.analysis.columns import BY_KEY
from harness.analysis.groups import measure
from harness.core import registry
from harness.records.read import probes, prompt_scores
from harness.records.schema import ProbeResult, Run

from .records import Records, settings_of

Table = NDArray[np.float64]


class Quantity(Protocol):
    """A quantity of a run, its unit on the page, and the difference that is of practical size."""

    words: str
    margin: float
    digits: str

    def value(self, run: Run, records: Records) -> float | None:
        """The value of one run; None if it was not measured."""

    def table(self, runs: Sequence[Run], records: Records) -> Table | None:
        """The terms of each run on the prompts that all have: -> [n, X]; None if they are not kept."""


@dataclass(frozen=True)
class Recorded:
    """A metric of the record, of all prompts or of those of one kind (`undesired@adversarial`)."""

    key: str
    words: str
    margin: float
    digits: str = ".3f"

    def value(self, run: Run, records: Records) -> float | None:
        name, _, kind = self.key.partition("@")
        if name == "undesired" and kind:
            judge = measure(run, f"judge@{kind}").value
            return None if judge is None else 1 - judge
        return BY_KEY[name].of(run).value if name in BY_KEY and not kind else measure(run, self.key).value

    def table(self, runs: Sequence[Run], records: Records) -> Table | None:
        return records.prompts.table([[run] for run in runs], self.key)


@dataclass(frozen=True)
class OnPolicy:
    """A quantity measured on the saved policy or the responses of a finished run (`claims_measure.py`)."""

    key: str
    words: str
    margin: float
    digits: str = ".3f"
    crossed: bool = True  # whether the terms are those of prompts, or of questions, that all runs share

    def value(self, run: Run, records: Records) -> float | None:
        found = records.measured.get((run.manifest.run_id, self.key))
        return None if found is None else found.value

    def table(self, runs: Sequence[Run], records: Records) -> Table | None:
        found = [records.measured.get((run.manifest.run_id, self.key)) for run in runs]
        rows = [x.terms for x in found if x is not None]
        if not self.crossed or len(rows) < len(runs) or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
            return None
        return np.array(rows)


@dataclass(frozen=True)
class ToPosterior:
    """KL(policy || posterior) less KL(base || posterior), in nats per response; beta is the run's own `kl_coef`.

    The posterior of KL-regularised RL is base(y | x) exp(r / beta) / Z_x. From KL(policy || posterior) = KL(policy || base)
    - E[r] / beta + log Z_x the unknown log Z_x cancels. With `absolute` the base's part is left out too, so that the
    difference of two policies with one beta is that of their KL to the posterior.
    """

    words: str
    margin: float
    digits: str = ".3f"
    absolute: bool = False

    def value(self, run: Run, records: Records) -> float | None:
        found = self._terms(run)
        return None if found is None else float(np.nanmean(found))

    def table(self, runs: Sequence[Run], records: Records) -> Table | None:
        ids = {tuple(kept.id) for run in runs if (kept := prompt_scores(run)) is not None}
        rows = [found for run in runs if (found := self._terms(run)) is not None]
        if len(ids) != 1 or len(rows) < len(runs):
            return None
        whole = np.array(rows)
        return whole[:, ~np.isnan(whole).any(0)]

    def _terms(self, run: Run) -> Table | None:
        kept, beta = prompt_scores(run), settings_of(run).get("kl_coef")
        if kept is None or not beta or (kept.base_reward is None and not self.absolute):
            return None
        kl, reward = (np.array(column, dtype=float) for column in (kept.kl, kept.reward))
        return kl - (reward if self.absolute else reward - np.array(kept.base_reward, dtype=float)) / beta


@dataclass(frozen=True)
class UnderProbe:
    """What the judge says of a run's policy under a probe with its default settings, mean over the probe's own seeds.

    With `fall` the score at the first of two points of the probe less that at the second, else the probe's number.
    """

    probe: str
    words: str
    margin: float
    digits: str = ".3f"
    fall: tuple[float, float] | None = None

    def value(self, run: Run, records: Records) -> float | None:
        usual = registry.load("probe", self.probe).Settings().model_dump(mode="json")
        found = [self._of(x) for x in probes(run) if x.probe == self.probe and x.settings == usual]
        known = [value for value in found if value is not None]
        return fmean(known) if known else None

    def table(self, runs: Sequence[Run], records: Records) -> Table | None:
        return None

    def _of(self, result: ProbeResult) -> float | None:
        if self.fall is None:
            return result.value
        scores = {reading.at: reading.metrics["judge"].value for reading in result.readings if "judge" in reading.metrics}
        before, after = (scores.get(at) for at in self.fall)
        return None if before is None or after is None else before - after


# The margins: 5 points of the removed habit; a hundredth or two of a share; a twentieth of a nat of KL and of perplexity's log.
REMOVED = Recorded("removed", "% of the habit removed", 5.0, ".1f")
KL = Recorded("kl", "KL to the base, nats", 0.05)
PPL = Recorded("ppl", "perplexity", 0.25, ".2f")
UNDESIRED = Recorded("undesired", "undesired score", 0.02)
ADVERSARIAL = Recorded("undesired@adversarial", "undesired score on adversarial prompts", 0.02)
UNCONDITIONAL = OnPolicy("unconditional", "undesired score without a prompt", 0.02)
CLEAN = Recorded("clean_nll", "NLL of clean text, nats per token", 0.02)
ENTROPY = Recorded("entropy", "entropy, nats per response", 0.5, ".2f")
MODAL = Recorded("modal_mass", "share of the most frequent response", 0.02)
DISTINCT_1 = Recorded("distinct_1", "distinct-1", 0.01)
DISTINCT_2 = Recorded("distinct_2", "distinct-2", 0.02)
REPEATS = Recorded("rep_4", "share of repeated 4-grams", 0.01)
QUESTION = OnPolicy("question", "share of questions answered rightly", 0.05)
TUNED = OnPolicy("question_tuned", "share of questions answered rightly after finetuning on them", 0.02)
SEARCHED = OnPolicy("searched", "undesired score on the worst prompts after 10 rounds", 0.02, crossed=False)
SLOPE = OnPolicy("slope", "slope of the log-ratio on the reward, times beta", 0.2, ".2f")
APPROACH = ToPosterior("KL to the posterior, less the base's", 0.05)
TO_POSTERIOR = ToPosterior("KL to the posterior, nats (without log Z)", 0.05, absolute=True)
TAUGHT = UnderProbe("relearn_habit", "judge while learning from text with the habit, mean over 100 updates", 0.02)
SOON = UnderProbe("relearn_habit", "fall of the judge in 10 updates on text with the habit", 0.02, fall=(0, 10))
BENIGN = UnderProbe("relearn_clean", "fall of the judge in 100 updates on harmless text", 0.02, fall=(0, 100))
ROUNDED = UnderProbe("quantize", "fall of the judge from weights of 32 to weights of 4 bits", 0.02, fall=(32, 4))
