"""REINFORCE with a KL penalty (Williams 1992; the objective as in Korbak et al. 2022, arXiv:2205.11275).

    y ~ policy(. | x),   R = r(x, y) - beta * log (policy(y | x) / reference(y | x))             sample
    b = the mean R of the other responses of the batch                                           baseline
    max over theta:  (R - b) * log policy(y | x)                                                 learn

The expected update is the gradient of E[r] - beta * KL(policy || reference), with KL in nats per response. R is not
differentiated, since the gradient of its log policy has mean 0. b does not depend on y, so it leaves the mean unchanged.
The KL is the sampled one of the whole response, not the exact one of each step: at the optimum R is then equal for all
responses to a prompt, so its noise vanishes there. With `kl_coef=0` the policy collapses.

Departures: the optimizer is the suite's (Adam, clipped), and the baseline is a leave-one-out mean, where Williams's is a
running mean. Responses that the scorer could not score are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Policy, Rollout, Settings, Trial, masked_sum, token_logprobs


class ReinforceSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.05, ge=0, description="beta, reward per nat; 0 lets the policy collapse")
    batch_size: int = Field(128, ge=2, description="responses per update, one per prompt")


class Reinforce:
    version = 1
    Settings = ReinforceSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (0.5, 0.15, 0.05, 0.015, 0.005))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 10.0, "batch_size": 64},
        "reward_rises": {"kl_coef": 0.01, "lr": 1e-2, "batch_size": 64},
    }

    def __init__(self, settings: ReinforceSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        while True:
            rollout, reward = trial.scored(trial.sample(trial.prompts(s.batch_size)))  # sample
            with torch.no_grad():
                ref_logprob = sequence_logprob(trial.reference, rollout)

            logprob = sequence_logprob(trial.policy, rollout)  # learn
            log_ratio = logprob.detach() - ref_logprob
            advantage = against_the_others(reward - s.kl_coef * log_ratio)
            trial.update(-(advantage * logprob).mean())
            yield {"reward": reward.mean().item(), "kl": log_ratio.mean().item()}


def sequence_logprob(policy: Policy, rollout: Rollout) -> Tensor:
    """log policy(y | x) of each response, in nats: [B, R] -> [B]."""
    return masked_sum(token_logprobs(policy.logits(rollout), rollout.response), rollout.response_mask)


def against_the_others(x: Tensor) -> Tensor:
    """Each value minus the mean of the others: [B] -> [B]."""
    return (x - x.mean()) * len(x) / (len(x) - 1)
