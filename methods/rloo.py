"""REINFORCE leave-one-out, by TRL's RLOOTrainer (Ahmadian et al. 2024, arXiv:2402.14740, section 3.3).

    y1..yG ~ policy(. | x);  q(y) = r(y) - beta * log policy/reference (y | x)                         explore
    A(yi) = q(yi) - mean of q over the other G - 1
    max over theta:  min(rho * A, clip(rho, 1 - eps, 1 + eps) * A),  rho = policy/old policy (y | x)      learn

With one update per rollout rho is 1 and the gradient is that of E[r] - beta * KL(policy || reference).

Departures: none from TRL 1.16 (`trl_bridge`), whose advantages and loss are used: rho is the ratio of the whole response,
and the mean is over responses. Responses are sampled by the harness; unscored ones have no advantage and enter no mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, model_validator

from harness.api import Knob, Settings, Trial, trl_bridge


class RLOOSettings(Settings):
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.05, ge=0, description="beta, weight of the KL term in the reward, per nat")
    group_size: int = Field(4, ge=2, description="G, responses per prompt")
    clip: float = Field(0.2, gt=0, lt=1, description="eps, clip range of the sequence-level ratio")
    explore_every: int = Field(1, ge=1, description="updates per rollout")
    batch_size: int = Field(128, ge=2, description="responses per update: a whole rollout, a multiple of group_size")

    @model_validator(mode="after")
    def _whole_groups(self) -> RLOOSettings:
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} should be a multiple of group_size {self.group_size}")
        return self


class RLOO:
    version = 1
    Settings = RLOOSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (0.5, 0.15, 0.05, 0.015, 0.005))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "group_size": 4, "batch_size": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 10.0, "explore_every": 1, "batch_size": 64},
        "reward_rises": {},
    }

    def __init__(self, settings: RLOOSettings) -> None:
        trl_bridge.required()
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, batch={}, pool_reward=0.0)
        trainer = self._trainer(trial)
        while True:
            if state.step % s.explore_every == 0:  # explore
                rollout = trial.sample(trial.prompts(s.batch_size // s.group_size), n=s.group_size)
                reward = trial.reward(rollout)
                state.batch, state.pool_reward = trl_bridge.score(trainer, rollout, reward), reward.nanmean().item()

            value, measured = trl_bridge.loss(trainer, state.batch)  # learn
            trial.update(value)
            state.step += 1
            yield {"clipped": measured["clip_ratio/region_mean"], "pool_reward": state.pool_reward}

    def _trainer(self, trial: Trial) -> Any:
        s = self.settings
        sizes = {"group_size": s.group_size, "batch_size": s.batch_size}
        return trl_bridge.group_trainer("RLOO", trial, **sizes, kl_coef=s.kl_coef, epsilon=s.clip)
