"""A scorer that `harness train-scorer` trained, from its folder: `--set task.reward=DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BadSetting

from . import card, linear

UNDESIRED = "undesired"  # the only label of an encoder


class TrainedScorer:
    """1 - how undesired a response is, by a scorer that harness train-scorer trained on labelled texts.

    folder      the folder that harness train-scorer wrote
    batch_size  texts in one forward pass of an encoder [64]
    device      cpu, cuda or another device of torch, of an encoder [CUDA if available]
    """

    slow = True  # nothing is built to check the options; only an encoder's scores are cached

    def __init__(self, folder: str, *, batch_size: int | None = None, device: str | None = None) -> None:
        found = card.read(Path(folder).expanduser())
        self.slow = found.card.kind == "encoder"
        if not self.slow and (batch_size, device) != (None, None):
            raise BadSetting(f"{folder} holds a linear scorer, which has no batch_size and no device; leave them out")
        self._score = _encoder(found.folder, batch_size or 64, device or "auto") if self.slow else _linear(found.folder)
        self.identity: dict[str, Any] = {"name": f"trained-{found.card.kind}", "version": 1, "sha256": found.sha256}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, which its prompt does not change: [N], [N] -> [N] float64."""
        return self._score(prompts, responses)


def _linear(folder: Path) -> Any:
    model = linear.read(folder)

    def score(prompts: list[str], responses: list[str]) -> NDArray:
        return 1 - model.undesired(list(responses)) if responses else np.empty(0)

    return score


def _encoder(folder: Path, batch_size: int, device: str) -> Any:
    from ..scorers.classifier import ClassifierScorer

    return ClassifierScorer(str(folder), UNDESIRED, invert=True, batch_size=batch_size, device=device).score
