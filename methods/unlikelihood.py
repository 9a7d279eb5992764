"""Unlikelihood on the policy's own worst samples, token by token (Welleck et al. 2019, arXiv:1908.04319, section 4.1).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)}                                         explore
    min over theta:  -log p(y | x) for y in the better quantiles                                 likelihood
                     - alpha * sum over t of log(1 - p(y_t | x, y_<t)) for y in the worst one    unlikelihood
                     + beta * KL(reference || policy) on both

Departures: the paper's negative candidates are the tokens that repeat the context; here they are the tokens of the
worst quantile, as in pretraining with human feedback (Korbak et al. 2023, section 2). log(1 - p) is a log-sum-exp over
the other tokens, since the clamp of the authors' code has no gradient where p is near 1. Nothing ties the removed
mass to the base policy, so the KL term (absent from the paper) is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.logprobs import kl, log_not, masked_mean, token_logprobs
from harness.pool import Pool
from harness.trial import Trial
from harness.types import Rollout, Settings


class UnlikelihoodSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    alpha: float = Field(1.0, ge=0, description="weight of the unlikelihood")
    num_quantiles: int = Field(5, ge=2, description="the worst 1/K of the pool is pushed down")
    kl_coef: float = Field(0.05, ge=0, description="beta, per nat")
    explore_every: int = Field(500, ge=1, description="updates between two explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts answered in each exploration")
    batch_size: int = Field(128, ge=2, description="responses an update; 1 in K of them from the worst quantile")


class Unlikelihood:
    version = 1
    Settings = UnlikelihoodSettings
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-2, "explore_every": 2, "explore_prompts": 16, "batch_size": 8}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"lr": 1e-3, "kl_coef": 100.0},
        "reward_rises": {"explore_prompts": 64, "batch_size": 32},
    }

    def __init__(self, settings: UnlikelihoodSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, pool=Pool(trial.policy.device))
        while True:
            if state.step % s.explore_every == 0:  # explore
                rollout = trial.sample(trial.prompts(s.explore_prompts))
                state.pool.add(rollout, trial.reward(rollout))
                state.pool.quantize(s.num_quantiles, trial.rng)

            batch, quantile = state.pool.draw(s.batch_size, trial.rng)  # learn
            scalars = self._learn(trial, batch, worst=quantile == 0)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _learn(self, trial: Trial, batch: Rollout, worst: Tensor) -> dict[str, float]:
        s, mask = self.settings, batch.response_mask
        logits = trial.policy.logits(batch)
        with torch.no_grad():
            ref_logits = trial.reference.logits(batch)
        likelihood = -token_logprobs(logits, batch.response)
        unlikelihood = -log_not(logits, batch.response)
        cost = masked_mean(torch.where(worst[:, None].to(mask.device), s.alpha * unlikelihood, likelihood), mask)
        drift = masked_mean(kl(ref_logits, logits), mask)
        trial.update(cost + s.kl_coef * drift)
        return {"cost": cost.item(), "drift": drift.item()}
