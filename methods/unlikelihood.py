"""Unlikelihood training: lower the likelihood of bad text (Welleck et al. 2019, arXiv:1908.04319), on the policy's bad
samples or on the bad segments of a corpus (Korbak et al. 2023, arXiv:2302.08582, section 2).

    samples   pool <- pool + {(x, y, r(y)) : y ~ policy(. | x)};  bad: as the worst 1/K of the first exploration
    corpus    bad: the segments with r below its quantile 1/K over the corpus
    min over theta:  - log p(y_t | y_<t) where the text is good                            likelihood
                     - alpha * sum over c in C_t of log(1 - p(c | y_<t))                   unlikelihood
                     + beta * KL(reference || policy)
    level = sequence  C_t = {y_t} where the text is bad; with `ngram` n, where y_t is in a repeated n-gram            5.2
    level = token     C_t = {y_1 .. y_t-1} without y_t, in good text and bad: the previous tokens                     4.1

Departures: the paper's sequences are bad where they repeat themselves (`ngram` 4), here where the reward is low; they are
sampled, not greedy; likelihood and unlikelihood are in one batch. Prompt tokens are not candidates. log(1 - p) is computed
as a log-sum-exp over the other tokens, since the clamp of the authors' code has no gradient where p is near 1; candidates
come from the same row, where their code mixes rows. The KL term (absent from the papers) is added because unlikelihood
alone does not tie the removed probability mass to the base policy. The loss is a mean over tokens. Unscored text is omitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.api import (
    CorpusSettings,
    Knob,
    Pool,
    Rollout,
    Trial,
    corpus,
    kl,
    log_not,
    log_nots,
    masked_mean,
    said_before,
    token_logprobs,
)


class UnlikelihoodSettings(CorpusSettings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    source: Literal["samples", "corpus"] = Field("samples", description="training text: samples of the policy, or documents")
    level: Literal["sequence", "token"] = Field(
        "sequence", description="candidates to push down: bad text, or tokens that occurred before"
    )
    ngram: int = Field(
        0, ge=0, description="n of repeated n-grams whose tokens are pushed down; 0 is all bad text (level = sequence)"
    )
    alpha: float = Field(1.0, ge=0, description="alpha, weight of the unlikelihood term")
    num_quantiles: int = Field(
        5, ge=2, description="K; text as bad as the worst 1/K of the first exploration, or of the corpus, is bad"
    )
    kl_coef: float = Field(0.05, ge=0, description="beta, weight of the KL term, per nat")
    explore_every: int = Field(500, ge=1, description="updates between explorations (source = samples)")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration (source = samples)")
    batch_size: int = Field(128, ge=2, description="responses or documents per update; 1 in K responses is bad text")

    @model_validator(mode="after")
    def _go_together(self) -> UnlikelihoodSettings:
        if self.source == "samples" and (self.start != "base" or self.mle_share):
            raise ValueError("start and mle_share go with source = corpus")
        if self.level == "token" and self.ngram:
            raise ValueError("ngram goes with level = sequence")
        return self


class Unlikelihood:
    version = 2
    Settings = UnlikelihoodSettings
    family = "pushing bad text down"
    knob = Knob("alpha", (0.01, 0.03, 0.1, 0.3, 1.0))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4, "explore_every": 2, "explore_prompts": 16}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"kl_coef": 1e3, "lr": 1e-4},
        "reward_rises": {"batch_size": 32, "explore_every": 10, "explore_prompts": 128, "lr": 3e-3},
    }

    def __init__(self, settings: UnlikelihoodSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        return self._on_samples(trial) if self.settings.source == "samples" else self._on_corpus(trial)

    def _on_samples(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, line=math.nan, pool=Pool(trial.policy.device, trial.reference))
        n_bad = max(1, round(s.batch_size / s.num_quantiles))
        while True:
            if state.step % s.explore_every == 0:  # explore
                rollout = trial.sample(trial.prompts(s.explore_prompts))
                state.pool.add(rollout, trial.reward(rollout))
                state.line = state.line if state.step else state.pool.line(1 / s.num_quantiles)
                state.pool.divide(state.line)

            batch, side = state.pool.draw_both(n_bad, s.batch_size - n_bad, trial.rng)  # learn
            bad = (side == 0)[:, None].to(batch.response.device)
            scalars = self._learn(trial, batch, batch.response_mask & bad, batch.response_mask & ~bad)
            state.step += 1
            yield scalars | {"pool_reward": state.pool.mean_reward()}

    def _on_corpus(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, threshold=math.nan)
        if state.step == 0:
            corpus.begin(trial, s.start)
            rewards = corpus.segment_rewards(trial.documents(corpus.CALIBRATION))
            state.threshold = corpus.threshold(rewards, 1 / s.num_quantiles)
        while True:
            batch = corpus.draw(trial, s.batch_size)
            if trial.progress < s.mle_share:
                loss = corpus.nll(trial, batch)
                trial.update(loss)
                scalars = {"cost": loss.item()}
            else:
                bad = corpus.scored(batch) & (batch.reward < state.threshold)
                scalars = self._learn(trial, batch.rollout, bad, (corpus.plain(batch) | corpus.scored(batch)) & ~bad)
            state.step += 1
            yield scalars

    def _learn(self, trial: Trial, batch: Rollout, bad: Tensor, good: Tensor) -> dict[str, float]:
        """One update on bad and good tokens; tokens in neither mask are left out: [B, R] each."""
        s, learned = self.settings, bad | good
        logits = trial.policy.logits(batch)
        likelihood = -token_logprobs(logits, batch.response).masked_fill(~good, 0)
        cost = masked_mean(likelihood + s.alpha * self._unlikelihood(logits, batch, bad), learned)
        drift = self._drift(trial, batch, logits, learned) if s.kl_coef else logits.new_zeros(())
        trial.update(cost + s.kl_coef * drift)
        return {"cost": cost.item()} | ({"drift": drift.item()} if s.kl_coef else {})

    def _unlikelihood(self, logits: Tensor, batch: Rollout, bad: Tensor) -> Tensor:
        """-sum over the candidates of log(1 - p), in nats: -> [B, R]."""
        if self.settings.level == "token":
            seen = said_before(batch.response, logits.shape[-1])
            return -log_nots(logits).masked_fill(~seen, 0).sum(-1)
        if self.settings.ngram:
            bad = bad & repeated(batch.response, batch.response_mask, self.settings.ngram)
        return -log_not(logits, batch.response).masked_fill(~bad, 0)

    def _drift(self, trial: Trial, batch: Rollout, logits: Tensor, learned: Tensor) -> Tensor:
        ref_logits = trial.reference_logits(batch)
        return masked_mean(kl(ref_logits, logits), learned)


def repeated(response: Tensor, mask: Tensor, n: int) -> Tensor:
    """Mask of the tokens of an n-gram that occurred earlier in the same row: [B, R], [B, R] -> [B, R]."""
    found = torch.zeros_like(mask)
    for row, (ids, length) in enumerate(zip(response.tolist(), mask.sum(1).tolist(), strict=True)):
        seen: set[tuple[int, ...]] = set()
        for t in range(length - n + 1):
            gram = tuple(ids[t : t + n])
            found[row, t : t + n] |= gram in seen
            seen.add(gram)
    return found
