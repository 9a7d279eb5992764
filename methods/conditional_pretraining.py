"""Conditional pretraining: train on labelled text, decode with the good label (Korbak et al. 2023,
arXiv:2302.08582, section 2).

    c(segment) = GOOD if r(segment) >= t else BAD;  t = a quantile of r over the segments of the corpus
    min over theta:  -log p(x_1, ..., x_S | c_1, ..., c_S),  c_i placed before x_i       learn
    answer with GOOD before the prompt                                                   deploy

Departures: control tokens are inputs only and never predicted, so they cannot be sampled and have no probability. The
prompt precedes a document's first segment, and the control token precedes both, as in the deployed policy. A token is left
out with probability `drop`, as in the paper, except the first one, and a token labels all segments up to the next token:
bad if any of them is bad. GOOD before a prompt thus means that the whole response is good, although no token follows (in
the paper it covers the first sentence only); with `drop` 1 there is one label per document. A document whose first segment
could not be scored is not used. The threshold is a quantile over the segments of 1,000 documents, where the paper gives a
score for each task; a tie with it is good. `token_spread` and `neutral_updates` are as in Quark. Training starts from the base
policy (finetuning).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.api import CorpusSettings, Documents, Knob, Trial, corpus, masked_mean, token_logprobs


class ConditionalPretrainingSettings(CorpusSettings):
    quantile: float = Field(0.5, gt=0, lt=1, description="quantile of segment rewards; segments below it are labelled bad")
    drop: float = Field(0.01, ge=0, le=1, description="probability that a control token other than the first is omitted")
    token_spread: float = Field(
        1.0, gt=0, description="initial scale of control-token embeddings, in standard deviations of the vocabulary's"
    )
    neutral_updates: int = Field(
        0, ge=0, description="updates of the control tokens' embeddings alone, toward the reference, before training"
    )
    added: ClassVar = ("neutral_updates",)

    @model_validator(mode="after")
    def _neutral_to_a_base(self) -> ConditionalPretrainingSettings:
        if self.neutral_updates and self.start == "scratch":
            raise ValueError("neutral_updates needs start=base: fresh weights have nothing to be neutral to; set it to 0")
        return self


class ConditionalPretraining:
    version = 1
    Settings = ConditionalPretrainingSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("quantile", (0.1, 0.3, 0.5, 0.7, 0.9))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {"batch_size": 32, "lr": 1e-2, "drop": 1.0}}

    def __init__(self, settings: ConditionalPretrainingSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s, policy = self.settings, trial.policy
        state = trial.keep(step=0, threshold=math.nan)
        if state.step == 0:
            corpus.begin(trial, s.start)
            state.threshold = corpus.threshold(corpus.segment_rewards(trial.documents(corpus.CALIBRATION)), s.quantile)
        tokens = policy.control_tokens(2, trial.rng, s.token_spread)
        if state.step == 0:
            trial.settle(tokens, s.neutral_updates, s.batch_size)
        bad, good = tokens.tolist()
        while True:
            if trial.progress < s.mle_share:
                loss = corpus.nll(trial, corpus.draw(trial, s.batch_size))
            else:
                policy.prefix = (good,)
                batch = corpus.draw(trial, s.batch_size, wanted=first_is_scored)
                loss = self._loss(trial, batch, *self._control(trial, batch, state.threshold, bad, good))
            trial.update(loss)
            state.step += 1
            yield {"nll": loss.item(), "threshold": state.threshold}

    def _control(self, trial: Trial, batch: Documents, threshold: float, bad: int, good: int) -> tuple[Tensor, Tensor]:
        """The control token before each document and those within it, -1 for none: -> [B], [B, R]."""
        first = batch.segment == 0
        keeps = (torch.rand(batch.reward.shape, generator=trial.rng) >= self.settings.drop).to(first.device)
        here = batch.starts() & (first | (keeps & corpus.scored(batch)))
        spoken_for = here.long().cumsum(1)  # number of the control token that labels a position, from 1
        counts = spoken_for.new_zeros(len(first), first.shape[1] + 1)
        is_bad = counts.scatter_add(1, spoken_for, (batch.reward < threshold).long()) > 0
        token = torch.where(is_bad.gather(1, spoken_for), bad, good)
        opening = (batch.starts() & first).long().argmax(1)
        return token.gather(1, opening[:, None]).squeeze(1), token.where(here & ~first, -1)

    def _loss(self, trial: Trial, batch: Documents, opening: Tensor, control: Tensor) -> Tensor:
        """Mean loss over the tokens of the text, in nats per token."""
        rollout = batch.rollout._replace(prompts=trial.policy.prepend(opening, batch.rollout.prompts))
        logits = trial.policy.steered_logits(rollout, control)
        return masked_mean(-token_logprobs(logits, rollout.response), corpus.plain(batch) | corpus.scored(batch))


def first_is_scored(documents: Documents) -> Tensor:
    """Mask of the tokens of a document's first segment if it has a reward: -> [B, R] bool."""
    return (documents.segment == 0) & corpus.scored(documents)
