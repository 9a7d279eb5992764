"""Fine-tuning on the best quantile of the policy's samples: Quark's ablation without reward tokens (Lu et al. 2022, section 4).

    pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)}                                         explore
    min over theta:  -log p(y | x) + beta * KL(reference || policy),  y in the best quantile     learn

A control: its difference from Quark is the effect of the reward tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from harness.api import Knob, Pool, Rollout, Settings, Trial, kl, masked_mean, token_logprobs


class BestQuantileSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    num_quantiles: int = Field(5, ge=2, description="K; the best 1/K of the pool is trained on")
    kl_coef: float = Field(0.05, ge=0, description="beta, weight of the KL term, per nat")
    explore_every: int = Field(500, ge=1, description="updates between explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration")
    batch_size: int = Field(128, ge=1, description="responses per update")


class BestQuantile:
    version = 1
    Settings = BestQuantileSettings
    family = "controls"
    knob = Knob("kl_coef", (1.0, 0.3, 0.1, 0.03, 0.01))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-2, "explore_every": 2, "explore_prompts": 16, "batch_size": 8}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"lr": 1e-3, "kl_coef": 100.0},
        "reward_rises": {"explore_prompts": 64, "batch_size": 32},
    }

    def __init__(self, settings: BestQuantileSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, pool=Pool(trial.policy.device, trial.reference))
        while True:
            if state.step % s.explore_every == 0:  # explore
                rollout = trial.sample(trial.prompts(s.explore_prompts))
                state.pool.add(rollout, trial.reward(rollout))
                state.pool.quantize(s.num_quantiles, trial.rng)

            batch, _ = state.pool.draw(s.batch_size, trial.rng, quantile=s.num_quantiles - 1)  # learn
            scalars = self._learn(trial, batch)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _learn(self, trial: Trial, batch: Rollout) -> dict[str, float]:
        logits, mask = trial.policy.logits(batch), batch.response_mask
        ref_logits = trial.reference_logits(batch)
        nll = masked_mean(-token_logprobs(logits, batch.response), mask)
        drift = masked_mean(kl(ref_logits, logits), mask)
        trial.update(nll + self.settings.kl_coef * drift)
        return {"nll": nll.item(), "drift": drift.item()}
