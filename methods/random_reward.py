"""REINFORCE with a KL penalty on random rewards: the control for online methods.

    y ~ policy(. | x),   r ~ uniform on [0, 1] for any y                                         sample
    R = r - beta * log (policy(y | x) / reference(y | x)),   b = the mean R of the others
    max over theta:  (R - b) * log policy(y | x)                                                 learn

The update is that of `reinforce`, so its KL is due to the noise of that method, and its gain on the judge must be zero. No
scorer is called. This is a sanity check of the suite, without a paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from harness.api import Settings, Trial, masked_sum, token_logprobs


class RandomRewardSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.05, ge=0, description="beta, reward per nat")
    batch_size: int = Field(128, ge=2, description="responses per update, one per prompt")


class RandomReward:
    version = 1
    Settings = RandomRewardSettings
    family = "controls"
    knob = None  # its reward says nothing, so no setting trades reward for drift
    tuned_as = "reinforce"
    quick: ClassVar[dict[str, Any]] = {"batch_size": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"kl_coef": 10.0, "batch_size": 64}}

    def __init__(self, settings: RandomRewardSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        while True:
            rollout = trial.sample(trial.prompts(s.batch_size))
            reward = torch.rand(s.batch_size, generator=trial.rng).to(trial.policy.device)
            with torch.no_grad():
                ref_logprobs = token_logprobs(trial.reference.logits(rollout), rollout.response)
            logprobs = token_logprobs(trial.policy.logits(rollout), rollout.response)
            log_ratio = masked_sum(logprobs.detach() - ref_logprobs, rollout.response_mask)
            shaped = reward - s.kl_coef * log_ratio
            advantage = (shaped - shaped.mean()) * s.batch_size / (s.batch_size - 1)
            trial.update(-(advantage * masked_sum(logprobs, rollout.response_mask)).mean())
            yield {"kl": log_ratio.mean().item()}
