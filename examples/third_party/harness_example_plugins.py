"""A method and a scorer that `harness` finds by the entry points of this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from harness.api import Settings, Trial


class NoisyBaseSettings(Settings):
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate")
    batch_size: int = Field(32, ge=1, description="responses sampled for each update")


class NoisyBase:
    """A control: each update follows a random direction, the likelihood of its own samples with random signs."""

    version = 1
    Settings = NoisyBaseSettings
    quick: ClassVar[dict[str, Any]] = {"batch_size": 8}

    def __init__(self, settings: NoisyBaseSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        while True:
            rollout = trial.sample(trial.prompts(self.settings.batch_size))
            signs = torch.randint(2, (len(rollout.response), 1), generator=trial.rng).to(rollout.response.device) * 2 - 1
            chosen = trial.policy.logits(rollout).log_softmax(-1).gather(-1, rollout.response[..., None]).squeeze(-1)
            loss = (signs * chosen * rollout.response_mask).sum(1).mean()
            trial.update(loss)
            yield {"loss": loss.item()}


class ShortResponses:
    """1 for an empty response, falling to 0 at 200 characters."""

    identity: ClassVar[dict[str, Any]] = {"name": "short", "version": 1}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """[B], [B] -> [B], in [0, 1]."""
        return np.array([max(0.0, 1.0 - len(text) / 200) for text in responses])
