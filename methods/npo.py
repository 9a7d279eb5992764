"""Negative preference optimisation on the policy's bad samples (Zhang et al. 2024, arXiv:2404.05868, section 3).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)};  line: quantile 1/K of the first rewards            explore
    min over theta:  -2/beta * log sigmoid(-beta * log policy/reference (y | x))  for y at or below the line    forget
                     + lambda * KL(reference || policy)  for y above it                                        retain

This is DPO with the rejected response only. As beta goes to 0 its gradient becomes that of gradient ascent; with beta > 0
it vanishes as a response becomes unlikely, so the forget term is bounded below.

Departures: the paper forgets given text, as `forget = documents` does: documents of reward 0, and those above it to retain.
By default it is the policy's samples that are as bad as the worst 1/K of the first exploration. The line stays: the
worst 1/K of a pool that improves is good text after a while. The retain term (its NPO+KL)
is a mean over tokens, with as many responses to retain as to forget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from torch.nn.functional import logsigmoid

from harness.api import Knob, Pool, Rollout, Trial, forgetting, kl, masked_mean, masked_sum, token_logprobs


class NPOSettings(forgetting.ForgetSettings):
    beta: float = Field(
        0.1, gt=0, description="inverse temperature; the higher, the sooner unlikely responses stop contributing"
    )
    kl_coef: float = Field(1.0, ge=0, description="lambda, weight of the retain term, per nat")


class NPO:
    version = 2
    Settings = NPOSettings
    family = "pushing bad text down"
    knob = Knob("beta", (1.0, 0.3, 0.1, 0.03, 0.01))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"kl_coef": 1000.0}, "reward_rises": {}}

    def __init__(self, settings: NPOSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, line=math.nan, pool=Pool(trial.policy.device, trial.reference))
        while True:
            forget, retain = forgetting.sets(trial, state, s)
            scalars = self._learn(trial, forget, retain)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _learn(self, trial: Trial, forget: Rollout, retain: Rollout) -> dict[str, float]:
        s, mask = self.settings, forget.response_mask
        ref_logits, ref_retain = trial.reference_logits(forget), trial.reference_logits(retain)
        logp = token_logprobs(trial.policy.logits(forget), forget.response)
        ratio = masked_sum(logp - token_logprobs(ref_logits, forget.response), mask)
        cost = -2 / s.beta * logsigmoid(-s.beta * ratio).mean()
        drift = masked_mean(kl(ref_retain, trial.policy.logits(retain)), retain.response_mask)
        trial.update(cost + s.kl_coef * drift)
        return {"cost": cost.item(), "ratio": ratio.mean().item(), "drift": drift.item()}
