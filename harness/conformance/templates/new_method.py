"""Rejection-sampling fine-tuning: a small honest start. Say here what your method is (authors, year, section).

    y_1 .. y_n ~ policy(. | x) for each prompt x, and y* the one of highest reward             draw
    min over theta:  -log p(y* | x) + beta * KL(policy || reference) along y*                  learn

Departures: list where you differ from the paper, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Prompts, Rollout, Settings, Trial, kl, masked_mean, token_logprobs


class NewMethodSettings(Settings):
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.1, ge=0, description="beta, weight of the KL term, per nat")
    batch_prompts: int = Field(32, ge=1, description="prompts per update")
    n: int = Field(4, ge=2, description="responses per prompt; the best is learned")


class NewMethod:
    version = 1  # raise it when a change moves results
    Settings = NewMethodSettings
    family = "policy gradients"  # whose hue it has in figures (harness/report/figures/style.py); leave it out if none fits
    knob = Knob("kl_coef", (1.0, 0.3, 0.1, 0.03, 0.01))  # the setting that trades reward for drift, from weak to strong

    # for `harness check method`: settings with which an update takes a moment, and what is promised, on top of them
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-2, "batch_prompts": 8}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"lr": 1e-3, "kl_coef": 100.0},
        "reward_rises": {"batch_prompts": 32},
    }

    def __init__(self, settings: NewMethodSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0)  # what must survive a kill; there is nothing more to keep yet
        while True:  # the harness stops at the budget, after the update that reaches it
            rollout = trial.sample(trial.prompts(s.batch_prompts), n=s.n)
            reward = trial.reward(rollout)
            best = best_rows(reward, s.n)
            scalars = self._learn(trial, rows_of(rollout, best))
            state.step += 1
            yield scalars | {"best_reward": reward[best].mean().item()}

    def _learn(self, trial: Trial, batch: Rollout) -> dict[str, float]:
        logits, mask = trial.policy.logits(batch), batch.response_mask
        with torch.no_grad():
            ref_logits = trial.reference.logits(batch)
        nll = masked_mean(-token_logprobs(logits, batch.response), mask)
        drift = masked_mean(kl(logits, ref_logits), mask)
        trial.update(nll + self.settings.kl_coef * drift)
        return {"nll": nll.item(), "drift": drift.item()}


def best_rows(reward: Tensor, n: int) -> Tensor:
    """The row of the best of each n responses, without prompts of which none could be scored: [X * n] -> [at most X]."""
    by_prompt = reward.view(-1, n)
    best = by_prompt.nan_to_num(-torch.inf).argmax(1) + torch.arange(len(by_prompt)) * n
    return best[~reward[best].isnan()]


def rows_of(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some rows of a rollout, in order."""
    rows = rows.to(rollout.response.device)
    prompts = Prompts(*(x[rows] for x in rollout.prompts))
    return Rollout(prompts, rollout.response[rows], rollout.response_mask[rows])
