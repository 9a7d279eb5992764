"""Direct preference optimisation on pairs of the policy's samples, by TRL's DPOTrainer (Rafailov et al. 2023,
arXiv:2305.18290, section 4).

    y1..yn ~ policy(. | x);  y+ = the best, y- = the worst by reward;  pool <- pool + {(x, y+, y-) : r(y+) > r(y-)}   explore
    min over theta:  -log sigmoid(beta * (log policy/reference (y+ | x) - log policy/reference (y- | x)))               learn

Departures: the paper's pairs are labelled once by humans; here the reward ranks the policy's responses and new pairs join
the pool at each exploration, the first ones sampled from the base policy. Ties give no pair and are counted. The loss is
that of TRL 1.16 (`trl_bridge`); the reference is the base policy throughout.

A pair with deterministic order has no optimal margin: the loss decreases monotonically with it, so a large beta slows the
policy but does not return it to the base. The variant `ipo` does (Azar et al. 2023, arXiv:2310.12036): it regresses to a
margin of 1 / (2 * beta), here between means over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Rollout, RunFailed, Settings, Trial, trl_bridge


class DPOSettings(Settings):
    variant: Literal["sigmoid", "ipo"] = Field("sigmoid", description="loss: DPO's or IPO's")
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.1, gt=0, description="beta, strength of the implied KL to the reference")
    responses: int = Field(2, ge=2, description="responses per prompt; the best and the worst make a pair")
    explore_every: int = Field(500, ge=1, description="updates between explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration")
    batch_size: int = Field(64, ge=1, description="pairs per update")

    @property
    def sequences(self) -> int:
        """Sequences that an update reads at once, for estimates of memory."""
        return 2 * self.batch_size


class DPO:
    version = 1
    Settings = DPOSettings
    family = "preferences"
    knob = Knob("kl_coef", (10.0, 3.0, 1.0, 0.3, 0.1))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"variant": "ipo", "kl_coef": 100.0, "lr": 3e-4, "explore_prompts": 64, "batch_size": 16},
        "reward_rises": {},
    }

    def __init__(self, settings: DPOSettings) -> None:
        trl_bridge.required()
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, pairs=[], ties=0, pool_reward=0.0)
        trainer = trl_bridge.preference_trainer("DPO", trial, beta=s.kl_coef, loss_type=[s.variant])
        while True:
            if state.step % s.explore_every == 0:  # explore
                self._explore(trial, state)

            drawn = torch.randint(len(state.pairs), (s.batch_size,), generator=trial.rng).tolist()  # learn
            value, measured = trl_bridge.loss(trainer, trainer.data_collator([state.pairs[i] for i in drawn]))
            trial.update(value)
            state.step += 1
            yield {
                "loss": value.item(),
                "margin": measured["rewards/margins"],
                "ties": state.ties,
                "pool_reward": state.pool_reward,
            }

    def _explore(self, trial: Trial, state: SimpleNamespace) -> None:
        s = self.settings
        rollout = trial.sample(trial.prompts(s.explore_prompts), n=s.responses)
        reward = trial.reward(rollout)
        pairs, ties = preferences(rollout, reward.view(-1, s.responses))
        state.pairs += pairs
        state.ties += ties
        state.pool_reward = reward.nanmean().item()
        if not state.pairs:
            raise RunFailed(f"no two responses to any of {s.explore_prompts} prompts differ in reward; raise explore_prompts")


def preferences(rollout: Rollout, reward: Tensor) -> tuple[list[dict[str, list[int]]], int]:
    """Pairs of the best and the worst response to each prompt, and the number of ties: [X * n, R], [X, n].

    Unscored responses are left out; a prompt with fewer than two scored ones makes neither a pair nor a tie.
    """
    prompt, response = trl_bridge.rows(*rollout.prompts), trl_bridge.rows(rollout.response, rollout.response_mask)
    best, worst = reward.nan_to_num(-torch.inf).max(1), reward.nan_to_num(torch.inf).min(1)
    scored = (~reward.isnan()).sum(1)
    pairs = [
        {"prompt_ids": prompt[i + b], "chosen_ids": response[i + b], "rejected_ids": response[i + w]}
        for i, b, w, differ in zip(
            range(0, reward.numel(), reward.shape[1]),
            best.indices.tolist(),
            worst.indices.tolist(),
            (best.values > worst.values).tolist(),
            strict=True,
        )
        if differ
    ]
    return pairs, int(((scored > 1) & (best.values == worst.values)).sum())
