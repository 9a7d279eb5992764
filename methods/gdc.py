"""GDC: policy gradients toward the posterior of KL-regularised RL (Khalifa et al. 2021, arXiv:2012.11635; Korbak et al.
2022, arXiv:2206.00761; f-divergences by Go et al. 2023, arXiv:2302.08215, section 3).

    p(y | x) = reference(y | x) exp(r(x, y) / beta) / Z_x                                        target
    y_1 .. y_n ~ policy(. | x),   w_i = reference(y_i | x) exp(r_i / beta) / policy(y_i | x)     sample
    Z_x = mean w_i,   t_i = policy(y_i | x) / p(y_i | x) = Z_x / w_i                             normalise
    min over theta:  (f'(t_i) - b_i) * log policy(y_i | x),   b_i = mean f' of the other n - 1   learn

`divergence` names f, each taken between policy and target, per prompt and averaged over prompts:
    forward_kl        KL(p || policy)                    f'(t) = -1 / t     (DPG, GDC)
    reverse_kl        KL(policy || p)                    f'(t) = log t      (a constant left out)
    total_variation   sum |policy - p| / 2               f'(t) = sign(t - 1) / 2
    jensen_shannon    (KL(policy || m) + KL(p || m)) / 2 with m their mean,   f'(t) = log(2t / (1 + t)) / 2

Departures: the target is the base policy tilted by exp(r / beta), not a hard constraint. Samples come from the policy
itself at each update; the papers keep a proposal that follows it. Z_x is the mean over the n responses of the update, which
for the forward KL bounds every weight by n at a bias of order 1/n (a mean over the others has no bias but a much larger
variance); the papers keep a running mean of it, for one or a few prompts.
f' is a constant in the gradient (the authors' conditional code differentiates it). A prompt with a response that the
scorer could not score is left out of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from harness.api import Knob, Policy, Rollout, RunFailed, Settings, Trial, masked_sum, token_logprobs

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # f'(t) as a function of log t
    "forward_kl": lambda log_t: -(-log_t).exp(),
    "reverse_kl": lambda log_t: log_t,
    "total_variation": lambda log_t: log_t.sign() / 2,
    "jensen_shannon": lambda log_t: (math.log(2) - softplus(-log_t)) / 2,
}


class GDCSettings(Settings):
    divergence: Literal["forward_kl", "reverse_kl", "total_variation", "jensen_shannon"] = Field(
        "forward_kl", description="divergence between policy and target"
    )
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.05, gt=0, description="beta, reward per nat; the target is the base tilted by exp(r / beta)")
    samples: int = Field(16, ge=2, description="n, responses per prompt, from which its Z is estimated")
    batch_size: int = Field(128, ge=2, description="responses per update, n to a prompt")

    @model_validator(mode="after")
    def _whole_prompts(self) -> GDCSettings:
        if self.batch_size % self.samples:
            raise ValueError(f"batch_size {self.batch_size} should be a multiple of samples {self.samples}")
        return self


class GDC:
    version = 1
    Settings = GDCSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (0.5, 0.15, 0.05, 0.015, 0.005))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 16, "samples": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 100.0, "batch_size": 64},
        "reward_rises": {"kl_coef": 0.1, "lr": 1e-2, "batch_size": 64},
    }

    def __init__(self, settings: GDCSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        while True:
            rollout, reward = self._sample(trial)
            with torch.no_grad():
                ref_logprob = sequence_logprob(trial.reference, rollout)

            logprob = sequence_logprob(trial.policy, rollout)
            log_ratio = logprob.detach() - ref_logprob
            slope = SLOPES[s.divergence](log_t(reward / s.kl_coef - log_ratio, s.samples))
            trial.update((against_the_others(slope) * logprob.view(-1, s.samples)).mean())
            yield {"reward": reward.mean().item(), "kl": log_ratio.mean().item()}

    def _sample(self, trial: Trial) -> tuple[Rollout, Tensor]:
        """Sample n responses to each prompt; return those of the prompts whose responses were all scored, with rewards."""
        n = self.settings.samples
        rollout = trial.sample(trial.prompts(self.settings.batch_size // n), n=n)
        reward = trial.reward(rollout).to(rollout.response.device)
        kept = ~reward.view(-1, n).isnan().any(1).repeat_interleave(n)
        if not kept.any():
            raise RunFailed(f"each of {len(kept) // n} prompts has a response without a reward; look at the scorer")
        return rollout.rows(kept), reward[kept]


def sequence_logprob(policy: Policy, rollout: Rollout) -> Tensor:
    """log policy(y | x) of each response, in nats: [B, R] -> [B]."""
    return masked_sum(token_logprobs(policy.logits(rollout), rollout.response), rollout.response_mask)


def log_t(log_w: Tensor, n: int) -> Tensor:
    """log(Z_x / w), where Z_x is the mean of w over a prompt's n responses: [X * n] -> [X, n]."""
    log_w = log_w.view(-1, n)
    return log_w.logsumexp(1, keepdim=True) - math.log(n) - log_w


def against_the_others(x: Tensor) -> Tensor:
    """Each value minus the mean of the others in its row: [X, n] -> [X, n]."""
    return (x - x.mean(1, keepdim=True)) * x.shape[1] / (x.shape[1] - 1)
