"""Gradient ascent on the loss of the policy's bad samples (Jang et al. 2022, arXiv:2210.01504, section 3).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)};  line: quantile 1/K of the first rewards      explore
    min over theta:  log p(y | x)  for y with r(y) at or below the line                              forget
                     + lambda * KL(reference || policy)  for y above it                              retain

Departures: the paper forgets given text, as `forget = documents` does: documents of reward 0, and those above it to retain.
By default it is the policy's samples that are as bad as the worst 1/K of the first exploration. The line stays: the
worst 1/K of a pool that improves is good text after a while. The paper has no retain
term; this one is KL minimisation as in TOFU (Maini et al. 2024, arXiv:2401.06121, section 4), with as many responses to
retain as to forget. Both terms are means over tokens. The forget term has no lower bound, so training does not converge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from harness.api import Knob, Pool, Rollout, Trial, forgetting, kl, masked_mean, token_logprobs


class GradientAscentSettings(forgetting.ForgetSettings):
    kl_coef: float = Field(1.0, ge=0, description="lambda, weight of the retain term, per nat")


class GradientAscent:
    version = 2
    Settings = GradientAscentSettings
    family = "pushing bad text down"
    knob = Knob("kl_coef", (30.0, 10.0, 3.0, 1.0, 0.3))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"kl_coef": 100.0}, "reward_rises": {}}

    def __init__(self, settings: GradientAscentSettings) -> None:
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
        logp = masked_mean(token_logprobs(trial.policy.logits(forget), forget.response), forget.response_mask)
        ref_logits = trial.reference_logits(retain)
        drift = masked_mean(kl(ref_logits, trial.policy.logits(retain)), retain.response_mask)
        trial.update(logp + self.settings.kl_coef * drift)
        return {"nll": -logp.item(), "drift": drift.item()}
