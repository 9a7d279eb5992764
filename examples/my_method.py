"""A method in one file: fine-tuning on the responses whose reward is above the mean of their batch, held to the base by a KL.

y ~ policy(. | x),  r = reward(y);   min over theta:  -log p(y | x) over {y: r > mean r}  +  beta * KL(policy || reference)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from harness.api import Knob, Settings, Trial, kl, masked_mean, token_logprobs


class AboveMeanSettings(Settings):
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.1, ge=0, description="beta, per nat")
    batch_size: int = Field(64, ge=2, description="responses sampled for each update")


class AboveMean:
    version = 1
    Settings = AboveMeanSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("kl_coef", (1.0, 0.3, 0.1, 0.03, 0.01))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-2, "batch_size": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"lr": 1e-3, "kl_coef": 100.0},
        "reward_rises": {"batch_size": 64},
    }

    def __init__(self, settings: AboveMeanSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        while True:  # the harness stops at the budget
            rollout = trial.sample(trial.prompts(s.batch_size))
            reward = trial.reward(rollout)
            good = reward >= reward.nanmean()  # a response without a score (NaN) is not among them
            batch = rollout.rows(good.nonzero().squeeze(1).to(rollout.response.device))
            logits, mask = trial.policy.logits(batch), batch.response_mask
            with torch.no_grad():
                reference = trial.reference.logits(batch)
            nll = masked_mean(-token_logprobs(logits, batch.response), mask)
            drift = masked_mean(kl(logits, reference), mask)
            trial.update(nll + s.kl_coef * drift)
            yield {"nll": nll.item(), "drift": drift.item(), "reward": reward.nanmean().item()}
