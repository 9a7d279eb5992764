"""Representation misdirection: push a layer's activations of bad samples toward a random vector (Li et al. 2024,
arXiv:2403.03218, section 4).

    u ~ uniform on [0, 1)^D, divided by its norm                                                              once
    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)};  line: quantile 1/K of the first rewards               explore
    min over theta:  mean over t of ||h_l(t) - c u||^2        for y at or below the line                      forget
                     + alpha * mean over t of ||h_l(t) - h_l,reference(t)||^2  for y above it                 retain

h_l is the residual stream after layer l. Only the layers l-2 .. l are trained, as in the paper: nothing above them has a
gradient, and what lies below is cut off.

Departures: the paper forgets given text, as `forget = documents` does; by default it is the policy's samples that are as
bad as the worst 1/K of the first exploration, as in `npo`, with as many responses to retain as to forget. The norms are
squared sums over the D dimensions divided by D, as in the authors' code, and means over the tokens of the batch. c is a
multiple of the mean norm of h_l over the first batch to retain, since models differ in it; the paper chooses a number for
each model. All weights of the three layers are trained; the authors' code takes some of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Policy, Pool, Rollout, Trial, activations, forgetting, layer_at, masked_mean


class RMUSettings(forgetting.ForgetSettings):
    retain_coef: float = Field(100.0, ge=0, description="alpha, weight of the retain term")
    coefficient: float = Field(1.0, gt=0, description="length of the random vector, in mean norms of the activations; c")
    depth: float = Field(0.25, ge=0, le=1, description="layer l as a share of the model's depth; 0 is the first, 1 the last")
    layers: int = Field(3, ge=1, description="layers that are trained, l the last of them")


class RMU:
    version = 1
    Settings = RMUSettings
    family = "pushing bad text down"
    knob = Knob("retain_coef", (1000.0, 300.0, 100.0, 30.0, 10.0))
    quick: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "explore_every": 2,
        "explore_prompts": 16,
        "batch_size": 4,
        "retain_coef": 1.0,
    }
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"retain_coef": 1e5, "lr": 1e-2, "explore_every": 10, "explore_prompts": 64, "batch_size": 16},
        "reward_rises": {"lr": 1e-2, "explore_every": 10, "explore_prompts": 64, "batch_size": 16},
    }

    def __init__(self, settings: RMUSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        state = trial.keep(
            step=0, line=math.nan, pool=Pool(trial.policy.device, trial.reference), target=torch.zeros(trial.reference.width)
        )
        while True:
            forget, retain = forgetting.sets(trial, state, self.settings)
            if state.step == 0:
                state.target = self._target(trial, retain)
            scalars = self._learn(trial, forget, retain, state.target)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    @torch.no_grad()
    def _target(self, trial: Trial, rollout: Rollout) -> Tensor:
        """c u, with c in mean norms of the reference's activations: [B, R] -> [D]."""
        u = torch.rand(trial.reference.width, generator=trial.rng)
        norm = masked_mean(self._activations(trial.reference, rollout).norm(dim=-1), rollout.response_mask)
        return self.settings.coefficient * norm.cpu() * u / u.norm()

    def _learn(self, trial: Trial, forget: Rollout, retain: Rollout, target: Tensor) -> dict[str, float]:
        found = self._activations(trial.policy, forget)
        misdirection = masked_mean((found - target.to(found)).square().mean(-1), forget.response_mask)
        with torch.no_grad():
            before = self._activations(trial.reference, retain)
        drift = masked_mean((self._activations(trial.policy, retain) - before).square().mean(-1), retain.response_mask)
        trial.update(misdirection + self.settings.retain_coef * drift)
        return {"misdirection": misdirection.item(), "drift": drift.item()}

    def _activations(self, policy: Policy, rollout: Rollout) -> Tensor:
        """h_l at the positions that predict response tokens: [B, R] -> [B, R, D]."""
        return activations(policy, rollout, layer_at(policy.model, self.settings.depth), trained=self.settings.layers)
