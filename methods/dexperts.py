"""DExperts: steer the base policy at decoding time with an expert and an anti-expert (Liu et al. 2021, arXiv:2105.03023).

    expert       min over theta+:  -log p+(x_t | x_<t)  for tokens of good segments      (r >= t)
    anti-expert  min over theta-:  -log p-(x_t | x_<t)  for tokens of bad segments       (r < t)
    answer by the softmax of  z_base + alpha (z_expert - z_anti)                         equation 2

Departures: both are copies of the base policy finetuned on the segments of one scored corpus, good or bad by a quantile of
the rewards, where the paper has two sets of comments; a segment is conditioned on all preceding text, and there is no loss
on prompts. The evaluated policy is the ensemble itself, at temperature 1 over the whole vocabulary; the paper first
truncates the base distribution to its nucleus. The two are trained alternately, one update each. A response costs three
forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from harness.api import Documents, Ensemble, Knob, Policy, Settings, Trial, corpus, masked_mean, token_logprobs


class DExpertsSettings(Settings):
    lr: float = Field(5e-4, gt=0, description="Adam's learning rate of expert and anti-expert")
    alpha: float = Field(2.0, ge=0, description="alpha, weight of expert minus anti-expert; 0 is the base policy")
    quantile: float = Field(0.5, gt=0, lt=1, description="quantile of segment rewards; segments below it train the anti-expert")
    batch_size: int = Field(64, ge=1, description="documents per update")

    @property
    def networks(self) -> int:
        """Networks of the policy's size that are trained, for estimates of memory."""
        return 2

    @property
    def on_documents(self) -> bool:
        """Whether updates read documents, for estimates of memory."""
        return True


class DExperts:
    version = 1
    Settings = DExpertsSettings
    family = "at decoding"
    knob = Knob("alpha", (0.1, 0.25, 0.5, 1.0, 2.0))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"alpha": 1e-4},
        "reward_rises": {"batch_size": 32, "lr": 1e-2},
    }

    def __init__(self, settings: DExpertsSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, threshold=math.nan)
        expert, anti_expert = self._experts(trial)
        if state.step == 0:
            state.threshold = corpus.threshold(corpus.segment_rewards(trial.documents(corpus.CALIBRATION)), s.quantile)
        turns = (
            ("expert_nll", expert, partial(tokens, threshold=state.threshold, good=True)),
            ("anti_expert_nll", anti_expert, partial(tokens, threshold=state.threshold, good=False)),
        )
        while True:
            name, learner, chosen = turns[state.step % 2]
            batch = corpus.draw(trial, s.batch_size, chosen)
            loss = self._loss(learner, batch, chosen(batch))
            trial.update(loss)
            state.step += 1
            yield {name: loss.item()}

    def _experts(self, trial: Trial) -> tuple[Policy, Policy]:
        """Return expert and anti-expert after turning the policy into their ensemble, which it already is in a resumed run."""
        policy = trial.policy
        if not isinstance(policy.model, Ensemble):
            anti_expert = trial.reference.copy().requires_grad_(True).model
            policy.model = Ensemble(trial.reference.model, policy.model, anti_expert, self.settings.alpha)
        policy.model.base.requires_grad_(False)
        return policy.around(policy.model.expert), policy.around(policy.model.anti_expert)

    def _loss(self, learner: Policy, batch: Documents, chosen: Tensor) -> Tensor:
        """Mean loss over the chosen tokens, in nats per token."""
        return masked_mean(-token_logprobs(learner.logits(batch.rollout), batch.rollout.response), chosen)


def tokens(documents: Documents, threshold: float, good: bool) -> Tensor:
    """Mask of the tokens of good or bad segments: -> [B, R] bool."""
    return corpus.scored(documents) & ((documents.reward >= threshold) == good)
