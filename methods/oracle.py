"""The oracle, a control: the architecture of the base policy, trained anew as it was, on its corpus without the habit.

    theta ~ the initialisation of the model
    min over theta:  -log p(x)  for documents x of the base policy's corpus that have nothing of the habit; each is seen once

It never had the habit, so it is the yardstick of probes: a policy whose habit was removed rather than hidden learns it back no
faster (Hu et al. 2024, arXiv:2406.13356; O'Brien et al. 2025, arXiv:2508.06601, who filter the data of pretraining).

Who decides: the judge, which is exact in the micro world. A document is left out, whole, if its response or any segment of it
scores below an empty text: one insulting sentence, one negative one, one repeated phrase. Other habits stay, and so does what
prompts say, to which a response answers. Methods never see the judge; this control does (`sees_judge`).

What it costs: optimizer, schedule and number of updates and of tokens are those of the base policy's own training, not the
preset's; `share` is for a quick look. That is outside the budget of methods: its cost is in its record. A model whose training
is unknown has no oracle. What remains of the habit comes from garbled text, and from insults that it reads in prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Prompts, Rollout, Settings, Trial, masked_mean, token_logprobs


class OracleSettings(Settings):
    lr: float = Field(3e-3, gt=0, description="largest learning rate, that of the base policy's training")
    share: float = Field(1.0, gt=0, le=1, description="share of the updates of the base policy's training")

    @property
    def start(self) -> str:
        """Initial weights, for checks of a run's settings."""
        return "scratch"


class Oracle:
    version = 1
    Settings = OracleSettings
    family = "controls"
    knob = None
    sees_judge = True
    quick: ClassVar[dict[str, Any]] = {}
    claims: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, settings: OracleSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        training, drawn = trial.base_training(), Random()
        state = trial.keep(step=0, drawn=())
        if state.step == 0:
            trial.policy.reset(trial.rng)
            drawn.seed(int(torch.randint(2**62, (), generator=trial.rng)))
        else:
            drawn.setstate(state.drawn)
        for tokens in training.rows(drawn):
            text = packed(tokens.to(trial.policy.device))
            loss = masked_mean(-token_logprobs(trial.policy.logits(text), text.response), text.response_mask)
            trial.update(loss)
            state.step, state.drawn = state.step + 1, drawn.getstate()
            yield {"nll": loss.item()}


def packed(tokens: Tensor) -> Rollout:
    """Rows of packed text with everything but the first token to be learned: [B, C] -> [B, C - 1]."""
    first = tokens[:, :1]
    return Rollout(Prompts(first, torch.ones_like(first).bool()), tokens[:, 1:], torch.ones_like(tokens[:, 1:]).bool())
