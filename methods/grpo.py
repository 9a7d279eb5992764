"""Group-relative policy optimisation, by TRL's GRPOTrainer (Shao et al. 2024, arXiv:2402.03300, section 4.1).

    y1..yG ~ policy(. | x);  A(yi) = (r(yi) - mean of r) / (deviation of r + 1e-4), over the G responses     explore
    max over theta:  min(rho_t * A, clip(rho_t, 1 - eps, 1 + eps) * A) - beta * k3_t,  at each token t          learn
    rho_t = policy/old policy (y_t | x, y<t);  k3_t = rho_t * (q - log q - 1),  q = reference/policy (y_t | x, y<t)

Departures: those of TRL 1.16 (`trl_bridge`), whose advantages and loss are used: k3 is multiplied by rho_t, which makes its
gradient that of the KL; `loss_type` selects the mean over tokens (dapo: over all tokens of the rollout; grpo: over those
of each response, then over responses, as in the paper); `scale` none omits the division.
Responses are sampled by the harness; unscored ones have no advantage and enter no mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.api import Knob, Settings, Trial, trl_bridge


class GRPOSettings(Settings):
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.04, ge=0, description="beta, weight of the KL term in the loss, per nat")
    group_size: int = Field(8, ge=2, description="G, responses per prompt")
    clip: float = Field(0.2, gt=0, lt=1, description="eps, clip range of the token-level ratio")
    loss_type: Literal["grpo", "dapo"] = Field(
        "dapo", description="average over tokens: per response first, or over all tokens"
    )
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="standard deviation that divides the advantage: the group's, the batch's, or none"
    )
    explore_every: int = Field(1, ge=1, description="updates per rollout")
    batch_size: int = Field(128, ge=2, description="responses per update: a whole rollout, a multiple of group_size")

    @model_validator(mode="after")
    def _whole_groups(self) -> GRPOSettings:
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} should be a multiple of group_size {self.group_size}")
        return self


class GRPO:
    version = 1
    Settings = GRPOSettings
    family = "policy gradients"
    knob = Knob("kl_coef", (5.0, 1.5, 0.5, 0.15, 0.05))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "group_size": 4, "batch_size": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"kl_coef": 100.0}, "reward_rises": {}}

    def __init__(self, settings: GRPOSettings) -> None:
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
        return trl_bridge.group_trainer(
            "GRPO",
            trial,
            group_size=s.group_size,
            batch_size=s.batch_size,
            kl_coef=s.kl_coef,
            loss_type=s.loss_type,
            scale_rewards=s.scale,
            epsilon=s.clip,
            num_iterations=s.explore_every,
        )
