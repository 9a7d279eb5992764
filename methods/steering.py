"""Activation steering: add a vector to the activations of one layer while decoding (Turner et al. 2023, arXiv:2308.10248;
contrastive activation addition, Rimsky et al. 2024, arXiv:2312.06681, section 3).

    y ~ policy(. | x);  good: r(y) above the quantile 1/K of the rewards, bad: at or below it
    v = mean of h_l over the positions of good responses - the same of bad responses      the steering vector
    deploy  h_l <- h_l + c v  at every position                                            steer

There is no training: the cost is one exploration and one pass over it. h_l is the residual stream after layer l.

Departures: the papers' pairs are written by hand, a pair of prompts or of answers; here they are the base policy's own
responses, divided by the reward as in `npo`, and the mean is over the positions at which response tokens are predicted. The
vector is added at every position, prompts included, where contrastive activation addition leaves the prompt as it is: the
deployed policy is then one model whose probabilities do not depend on where its prompt ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Policy, Pool, Rollout, Settings, Steered, Trial, activations, layer_at

BATCH = 64  # responses whose activations are held at once


class SteeringSettings(Settings):
    coefficient: float = Field(1.0, ge=0, description="c, multiple of the difference of means that is added; 0 is the base")
    depth: float = Field(0.5, ge=0, le=1, description="layer l as a share of the model's depth; 0 is the first, 1 the last")
    num_quantiles: int = Field(5, ge=2, description="K; responses as bad as the worst 1/K are the negative examples")
    explore_prompts: int = Field(4096, ge=2, description="prompts of the exploration, one response each")


class Steering:
    version = 1
    Settings = SteeringSettings
    family = "at decoding"
    knob = Knob("coefficient", (0.25, 0.5, 1.0, 2.0, 4.0))
    trains = False
    quick: ClassVar[dict[str, Any]] = {"explore_prompts": 64}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"coefficient": 1e-3}, "reward_rises": {"coefficient": 2.0}}

    def __init__(self, settings: SteeringSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s, base = self.settings, trial.reference
        rollout, reward = trial.scored(trial.sample(trial.prompts(s.explore_prompts), policy=base))
        pool = Pool()
        pool.add(rollout, reward)
        bad = reward <= pool.line(1 / s.num_quantiles)
        layer = layer_at(base.model, s.depth)
        vector = mean_activation(base, rollout.rows(~bad), layer) - mean_activation(base, rollout.rows(bad), layer)
        trial.deploy(base.around(Steered(base.model, layer, s.coefficient * vector)))
        yield from ()


@torch.no_grad()
def mean_activation(policy: Policy, rollout: Rollout, layer: int) -> Tensor:
    """The mean over all response tokens of the activations that predict them: [B, R] -> [D]."""
    total: Any = 0.0
    for rows in torch.arange(len(rollout.response), device=rollout.response.device).split(BATCH):
        part = rollout.rows(rows)
        total = total + activations(policy, part, layer)[part.response_mask].double().sum(0)
    return (total / rollout.response_mask.sum()).float()
