"""Advantage-weighted regression on the corpus (Peng et al. 2019, arXiv:1910.00177; on text Korbak et al. 2023,
arXiv:2302.08582, section 2).

    V(x_<t) = sigmoid(v . h_t),  h_t the hidden state that x_t is predicted from;  A_t = r(segment of t) - V(x_<t)
    min over theta, v:  mean over t of  -alpha exp(A_t / beta) log p(x_t | x_<t) + (1 - alpha) (r - V(x_<t))^2

The weight is not differentiated; the value loss is backpropagated through the whole policy. Both follow the authors' code,
as do the value head (one row, no bias, initialised at zero) and the clipping of the weights.

Departures: rewards are in [0, 1], so the value is a sigmoid; theirs are in [-1, 0], and it is minus a sigmoid. Prompt
tokens have weight 1 and no value. Unscored segments are left out. Training starts from the base policy (finetuning).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.api import CorpusSettings, Documents, Knob, Trial, corpus, masked_mean, token_logprobs


class AWRSettings(CorpusSettings):
    alpha: float = Field(0.5, gt=0, le=1, description="alpha, weight of the likelihood; 1 - alpha is the value loss's")
    beta: float = Field(0.1, gt=0, description="temperature of the weights, in units of reward")
    max_weight: float = Field(1000.0, gt=0, description="maximum weight of a segment; higher ones are clipped")


class AWR:
    version = 1
    Settings = AWRSettings
    family = "likelihood, weighted or conditioned"
    knob = Knob("beta", (1.0, 0.3, 0.1, 0.05, 0.02))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {"batch_size": 32, "lr": 1e-2, "max_weight": 20.0}}

    def __init__(self, settings: AWRSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        head = ValueHead(trial.policy.width).to(trial.policy.device)
        state = trial.keep(step=0, head=head)
        if state.step == 0:
            corpus.begin(trial, s.start)
        trial.train_also(head)
        while True:
            batch = corpus.draw(trial, s.batch_size)
            scalars: dict[str, float] = {}
            if trial.progress < s.mle_share:
                loss = corpus.nll(trial, batch)
            else:
                loss, scalars = self._loss(trial, batch, head)
            trial.update(loss)
            state.step += 1
            yield {"loss": loss.item()} | scalars

    def _loss(self, trial: Trial, batch: Documents, head: ValueHead) -> tuple[Tensor, dict[str, float]]:
        s, found = self.settings, corpus.scored(batch)
        logits, states = trial.policy.logits_and_states(batch.rollout)
        trial.charge(head, int(found.sum()))
        value, reward = head(states), batch.reward.nan_to_num()
        weight = torch.exp((reward - value.detach()) / s.beta).clamp(max=s.max_weight).where(found, 1.0)
        cost = masked_mean(-weight * token_logprobs(logits, batch.rollout.response), corpus.plain(batch) | found)
        if not found.any():  # no rewards to fit the value to
            return s.alpha * cost, {"cost": cost.item()}
        error = masked_mean((reward - value) ** 2, found)
        return s.alpha * cost + (1 - s.alpha) * error, {"cost": cost.item(), "value_error": error.item()}


class ValueHead(nn.Module):
    """Value head: the expected reward given a hidden state, in (0, 1): [B, R, D] -> [B, R]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        return torch.sigmoid(states @ self.weight)
