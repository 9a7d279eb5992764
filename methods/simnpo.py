"""Simple negative preference optimisation on the policy's bad samples: NPO without a reference (Fan et al. 2024,
arXiv:2410.07163, section 5).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)};  line: quantile 1/K of the first rewards                explore
    min over theta:  -2/beta * log sigmoid(-beta / |y| * log policy(y | x) - gamma)  for y at or below the line    forget
                     + lambda * KL(reference || policy)  for y above it                                            retain

NPO weighs a response by how far it has moved from the reference, so one that the reference holds for unlikely is forgotten
as hard as a common one. Here the mean log-probability of a token takes the place of the ratio: a response contributes as
long as it is likely, and a long one no more than a short one. As beta goes to 0 (gamma 0) the gradient becomes that of
gradient ascent on the mean over the tokens of each response.

Departures: the paper forgets given text, as `forget = documents` does; by default it is the policy's samples that are as
bad as the worst 1/K of the first exploration, as in `npo`. The paper's retain term is the loss on text to retain; here it
is the KL of `npo`, a mean over tokens, so that the two methods differ in the forget term alone, with as many responses to
retain as to forget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from torch.nn.functional import logsigmoid

from harness.api import Knob, Pool, Rollout, Trial, forgetting, kl, masked_mean, masked_sum, token_logprobs


class SimNPOSettings(forgetting.ForgetSettings):
    beta: float = Field(
        2.5, gt=0, description="inverse temperature; the higher, the sooner unlikely responses stop contributing"
    )
    gamma: float = Field(0.0, ge=0, description="margin of the mean log-probability of a token, before the sigmoid")
    kl_coef: float = Field(1.0, ge=0, description="lambda, weight of the retain term, per nat")


class SimNPO:
    version = 1
    Settings = SimNPOSettings
    family = "pushing bad text down"
    knob = Knob("kl_coef", (100.0, 30.0, 10.0, 3.0, 1.0))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"kl_coef": 1000.0}, "reward_rises": {}}

    def __init__(self, settings: SimNPOSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        state = trial.keep(step=0, line=math.nan, pool=Pool(trial.policy.device, trial.reference))
        while True:
            forget, retain = forgetting.sets(trial, state, self.settings)
            scalars = self._learn(trial, forget, retain)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _learn(self, trial: Trial, forget: Rollout, retain: Rollout) -> dict[str, float]:
        s, mask = self.settings, forget.response_mask
        ref_retain = trial.reference_logits(retain)
        logp = masked_sum(token_logprobs(trial.policy.logits(forget), forget.response), mask) / mask.sum(1)
        cost = -2 / s.beta * logsigmoid(-s.beta * logp - s.gamma).mean()
        drift = masked_mean(kl(ref_retain, trial.policy.logits(retain)), retain.response_mask)
        trial.update(cost + s.kl_coef * drift)
        return {"cost": cost.item(), "logp": logp.mean().item(), "drift": drift.item()}
