"""Filtering: maximum likelihood on the good documents only (Korbak et al. 2023, arXiv:2302.08582, section 2).

    R(x) = mean over the segments of x of r(segment);  t = a quantile of R over the corpus
    min over theta:  -log p(x)  for documents with R(x) >= t                             the others are discarded

Departures: the threshold is a quantile of 1,000 documents' rewards, where the paper gives a score for each task; a tie
with it is good. A document without any scored segment is discarded; in others the loss is on the scored segments. Documents
are separate rows, not packed. Training starts from the base policy (finetuning), where the paper pretrains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from harness.api import CorpusSettings, Documents, Knob, Trial, corpus


class FilteringSettings(CorpusSettings):
    quantile: float = Field(0.5, gt=0, lt=1, description="quantile of document rewards; documents below it are discarded")


class Filtering:
    version = 1
    Settings = FilteringSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("quantile", (0.1, 0.3, 0.5, 0.7, 0.9))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {"batch_size": 32, "lr": 1e-2}}

    def __init__(self, settings: FilteringSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, threshold=math.nan)
        if state.step == 0:
            corpus.begin(trial, s.start)
            rewards = corpus.document_rewards(trial.documents(corpus.CALIBRATION))
            state.threshold = corpus.threshold(rewards, s.quantile)
        good = partial(is_good, threshold=state.threshold)
        while True:
            loss = corpus.nll(trial, corpus.draw(trial, s.batch_size, None if trial.progress < s.mle_share else good))
            trial.update(loss)
            state.step += 1
            yield {"nll": loss.item(), "threshold": state.threshold}


def is_good(documents: Documents, threshold: float) -> Tensor:
    """Mask of the documents whose mean reward reaches the threshold: -> [B, 1] bool."""
    return corpus.document_rewards(documents)[:, None] >= threshold
