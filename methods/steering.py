"""Activation steering: add a vector to the activations of one layer while decoding (Turner et al. 2023, arXiv:2308.10248;
contrastive activation addition, Rimsky et al. 2024, arXiv:2312.06681, section 3).

    y, y' ~ policy(. | x);  bad: r(y) at or below the quantile 1/K of the rewards, good: above it
    v = mean over prompts with one of each of  (mean_t h_l(good) - mean_t h_l(bad))       the steering vector
    deploy  h_l <- h_l + c v  at every position                                           steer

There is no training: the cost is one exploration and one pass over its pairs. h_l is the residual stream after layer l. The
two responses of a pair have one prompt, so that v is what sets them apart and not what sets prompts apart.

Departures: the papers' pairs are written by hand, a pair of prompts or of answers; here they are the base policy's own
responses, divided by the reward as in `npo`, and each is its mean over the positions at which its tokens are predicted. The
vector is added at every position, prompts included, where contrastive activation addition leaves the prompt as it is: the
deployed policy is then one model whose probabilities do not depend on where its prompt ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Policy, Pool, Rollout, RunFailed, Settings, Steered, Trial, activations, layer_at

BATCH = 64  # responses whose activations are held at once


class SteeringSettings(Settings):
    coefficient: float = Field(1.0, ge=0, description="c, multiple of the difference of means that is added; 0 is the base")
    depth: float = Field(0.5, ge=0, le=1, description="layer l as a share of the model's depth; 0 is the first, 1 the last")
    num_quantiles: int = Field(5, ge=2, description="K; responses as bad as the worst 1/K are the negative examples")
    explore_prompts: int = Field(4096, ge=2, description="prompts of the exploration, two responses each")


class Steering:
    version = 2  # 1 took the means over all prompts
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
        rollout = trial.sample(trial.prompts(s.explore_prompts), policy=base, n=2)
        reward = trial.reward(rollout)
        pool = Pool()
        pool.add(rollout, reward)
        good, bad = pairs(reward, pool.line(1 / s.num_quantiles))
        layer = layer_at(base.model, s.depth)
        vector = mean_activation(base, rollout.rows(good), layer) - mean_activation(base, rollout.rows(bad), layer)
        trial.deploy(base.around(Steered(base.model, layer, s.coefficient * vector)))
        yield from ()


def pairs(reward: Tensor, line: float) -> tuple[Tensor, Tensor]:
    """The good and the bad response to each prompt that has one of each among its two: [2X] -> [n], [n], numbers of rows.

    A response is bad at or below the line. Raises RunFailed if no prompt has such a pair.
    """
    two = reward.view(-1, 2)
    chosen = ((two <= line).sum(1) == 1) & ~two.isnan().any(1)
    if not chosen.any():
        raise RunFailed(f"none of {len(two)} prompts has a good and a bad response among its two; raise method.explore_prompts")
    first = 2 * chosen.nonzero()[:, 0]
    bad = first + (two[chosen] <= line).int().argmax(1)
    return 2 * first + 1 - bad, bad


@torch.no_grad()
def mean_activation(policy: Policy, rollout: Rollout, layer: int) -> Tensor:
    """The mean over responses of their means over the positions that predict their tokens: [B, R] -> [D]."""
    total: Any = 0.0
    for rows in torch.arange(len(rollout.response), device=rollout.response.device).split(BATCH):
        part = rollout.rows(rows)
        found = activations(policy, part, layer).double() * part.response_mask[..., None]
        total = total + (found.sum(1) / part.response_mask.sum(1, keepdim=True)).sum(0)
    return (total / len(rollout.response)).float()
