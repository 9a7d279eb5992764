"""Reward-weighted regression: maximum likelihood weighted by exponentiated reward (Peters and Schaal 2007; on text
Korbak et al. 2023, arXiv:2302.08582, section 2).

    w = exp(r / beta) / mean of exp(r / beta)
    samples   min over theta:  -w(y) sum over t of log p(y_t | x, y_<t),  y ~ base(. | x)
    corpus    min over theta:  -mean over the tokens t of w(segment of t) log p(x_t | x_<t)

On samples the optimum is base(y | x) exp(r(y) / beta) / Z(x), the optimal policy at its KL: the weights and the
log-probabilities are those of whole responses. Samples always come from the base policy, since reweighting samples of the
policy would tilt it repeatedly. On the corpus a segment has one weight and the mean is over tokens, as in the authors' code.

Departures: weights are divided by their mean (over all samples, or over 1,000 documents), so that beta does not change
the learning rate; no clipping is needed then. The paper's beta of 10 gives plain maximum likelihood to three digits: with
rewards in [0, 1] its weights differ by 10 % at most. Prompt tokens have weight 1. Unscored text is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.api import CorpusSettings, Documents, Knob, Pool, Rollout, Trial, corpus, masked_mean, masked_sum, token_logprobs


class RWRSettings(CorpusSettings):
    source: Literal["samples", "corpus"] = Field(
        "corpus", description="training text: samples of the base policy, or documents"
    )
    beta: float = Field(0.1, gt=0, description="temperature of the weights, in units of reward")
    explore_every: int = Field(500, ge=1, description="updates between rounds of sampling (source = samples)")
    explore_prompts: int = Field(4096, ge=1, description="prompts per round of sampling (source = samples)")

    @model_validator(mode="after")
    def _corpus_only(self) -> RWRSettings:
        if self.source == "samples" and (self.start != "base" or self.mle_share):
            raise ValueError("start and mle_share go with source = corpus")
        return self


class RWR:
    version = 1
    Settings = RWRSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("beta", (1.0, 0.3, 0.1, 0.05, 0.02))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4, "explore_every": 2, "explore_prompts": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "reward_rises": {"source": "samples", "batch_size": 64, "explore_every": 20, "explore_prompts": 256, "lr": 3e-3}
    }

    def __init__(self, settings: RWRSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        return self._on_samples(trial) if self.settings.source == "samples" else self._on_corpus(trial)

    def _on_samples(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, pool=Pool(trial.policy.device))
        while True:
            if state.step % s.explore_every == 0:
                rollout = trial.sample(trial.prompts(s.explore_prompts), policy=trial.reference)
                state.pool.add(rollout, trial.reward(rollout))
            batch, reward = state.pool.draw_scored(s.batch_size, trial.rng)
            weight = weights(reward, self._log_mean(state.pool.rewards()), s.beta)
            loss = self._sample_loss(trial, batch, weight)
            trial.update(loss)
            state.step += 1
            yield {"nll": loss.item(), "pool_reward": state.pool.mean_reward()}

    def _sample_loss(self, trial: Trial, batch: Rollout, weight: Tensor) -> Tensor:
        """Mean loss over responses, in nats per response."""
        logp = masked_sum(token_logprobs(trial.policy.logits(batch), batch.response), batch.response_mask)
        return -(weight * logp).mean()

    def _on_corpus(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, log_mean=math.nan)
        if state.step == 0:
            corpus.begin(trial, s.start)
            state.log_mean = self._log_mean(corpus.segment_rewards(trial.documents(corpus.CALIBRATION)))
        while True:
            batch = corpus.draw(trial, s.batch_size)
            weighted = trial.progress >= s.mle_share
            loss = self._corpus_loss(trial, batch, state.log_mean) if weighted else corpus.nll(trial, batch)
            trial.update(loss)
            state.step += 1
            yield {"nll": loss.item()}

    def _corpus_loss(self, trial: Trial, batch: Documents, log_mean: float) -> Tensor:
        """Mean loss over the tokens of scored segments and those outside segments, in nats per token."""
        found = corpus.scored(batch)
        weight = weights(batch.reward.nan_to_num(), log_mean, self.settings.beta).where(found, 1.0)
        cost = -token_logprobs(trial.policy.logits(batch.rollout), batch.rollout.response)
        return masked_mean(weight * cost, corpus.plain(batch) | found)

    def _log_mean(self, rewards: Tensor) -> float:
        """Log of the mean of exp(r / beta) over the scored rewards."""
        tilted = rewards[~rewards.isnan()].double() / self.settings.beta
        return float(tilted.logsumexp(0)) - math.log(max(1, len(tilted)))


def weights(reward: Tensor, log_mean: float, beta: float) -> Tensor:
    """exp(r / beta) divided by its mean: [...] -> [...]."""
    return torch.exp(reward / beta - log_mean)
