"""REINFORCE++ (Hu et al. 2025, arXiv:2501.03262, the variant of one response per prompt and more).

    y ~ policy(. | x),   KL_t = log (policy(y_t | .) / reference(y_t | .))                             sample
    A_t = r(x, y) - beta * sum over s >= t of KL_s                                                     no value network
    A_t = (A_t - mean) / standard deviation, over all tokens of the rollout                            whiten
    a pass of minibatches, with rho_t = policy(y_t | .) / policy_old(y_t | .):                         learn
        max over theta:  mean over t of min(rho A, clip(rho, 1 - eps, 1 + eps) A)

It is PPO with gamma and lambda 1 and without the value network: the mean over the whole rollout is the baseline. Where GRPO
divides by the deviation within a group of responses to one prompt, this divides by that of all tokens.

Departures: the optimizer is the suite's. Rewards are not clipped, since they lie in [0, 1]. Prompts are drawn one by one, so
a prompt has one response. Responses that the scorer could not score are left out of mean, deviation and loss. The paper's
settings could not be read; the defaults are those of `rloo`, and the clip range is PPO's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Prompts, Rollout, Settings, Trial, masked_mean, token_logprobs


class ReinforcePPSettings(Settings):
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.05, ge=0, description="beta, reward per nat")
    clip_range: float = Field(0.2, gt=0, lt=1, description="eps, clip range of the ratio")
    explore_prompts: int = Field(512, ge=2, description="prompts per rollout, one response each")
    minibatches: int = Field(4, ge=1, description="updates per rollout")

    @property
    def sequences(self) -> int:
        """Sequences that an update reads at once, for estimates of memory."""
        return -(-self.explore_prompts // self.minibatches)


class ReinforcePP:
    version = 1
    Settings = ReinforcePPSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (0.5, 0.15, 0.05, 0.015, 0.005))
    quick: ClassVar[dict[str, Any]] = {"explore_prompts": 16, "minibatches": 2}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 10.0, "explore_prompts": 64},
        "reward_rises": {"kl_coef": 0.01, "lr": 1e-2, "explore_prompts": 64},
    }

    def __init__(self, settings: ReinforcePPSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, rollout={}, facts={})
        while True:
            part = state.step % s.minibatches
            if part == 0:
                state.rollout, state.facts = self._explore(trial)

            rows = torch.arange(len(state.rollout["advantage"])).tensor_split(s.minibatches)[part]
            scalars = self._learn(trial, {k: v[rows].to(trial.policy.device) for k, v in state.rollout.items()})
            state.step += 1
            yield scalars | state.facts

    @torch.no_grad()
    def _explore(self, trial: Trial) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Sample a rollout; return it with its advantages as plain tensors for `keep`, and its scalars."""
        s = self.settings
        rollout, reward = trial.scored(trial.sample(trial.prompts(s.explore_prompts)), at_least=max(2, s.minibatches))
        assert rollout.logprobs is not None  # set by the sampler
        parts = [rollout.rows(rows) for rows in torch.arange(len(reward)).tensor_split(s.minibatches)]
        before = torch.cat([token_logprobs(trial.reference.logits(part), part.response) for part in parts])
        log_ratio = (rollout.logprobs - before).masked_fill(~rollout.response_mask, 0)
        kept = {"tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask, "logprobs": rollout.logprobs}
        kept |= {"response": rollout.response, "response_mask": rollout.response_mask}
        kept["advantage"] = advantages(reward, log_ratio, rollout.response_mask, s.kl_coef)
        return kept, {"reward": reward.mean().item(), "kl": log_ratio.sum(1).mean().item()}

    def _learn(self, trial: Trial, part: dict[str, Tensor]) -> dict[str, float]:
        eps, mask = self.settings.clip_range, part["response_mask"]
        rollout = Rollout(Prompts(part["tokens"], part["mask"]), part["response"], mask, part["logprobs"])
        ratio = (token_logprobs(trial.policy.logits(rollout), rollout.response) - part["logprobs"]).exp()
        gain = torch.min(ratio * part["advantage"], ratio.clamp(1 - eps, 1 + eps) * part["advantage"])
        trial.update(-masked_mean(gain, mask))
        return {"clipped": masked_mean(((ratio - 1).abs() > eps).float(), mask).item()}


def advantages(reward: Tensor, log_ratio: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The score less the KL still to come, whitened over all tokens: [B], [B, R], [B, R] -> [B, R], 0 off the mask."""
    to_come = log_ratio.flip(1).cumsum(1).flip(1)
    raw = reward[:, None] - kl_coef * to_come
    return ((raw - raw[mask].mean()) / (raw[mask].std() + 1e-8)).masked_fill(~mask, 0)
