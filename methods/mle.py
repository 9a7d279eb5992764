"""Maximum likelihood on the unfiltered corpus: the control for methods of pretraining with human feedback.

    min over theta:  -log p(x),  x a document of the corpus                              (Korbak et al. 2023, section 2)

Departures: segments that the scorer could not score are left out, so that every method trains on the same text. Documents
are separate rows, not packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.api import Settings, Trial, corpus


class MLESettings(Settings):
    lr: float = Field(5e-4, gt=0, description="Adam's learning rate")
    start: Literal["base", "scratch"] = Field("base", description="initial weights: the base policy's, or fresh ones")
    batch_size: int = Field(64, ge=1, description="documents per update")

    @property
    def on_documents(self) -> bool:
        """Whether updates read documents, for estimates of memory."""
        return True


class MLE:
    version = 1
    Settings = MLESettings
    family = "controls"
    knob = None
    tuned_as = "filtering"
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, settings: MLESettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        state = trial.keep(step=0)
        if state.step == 0:
            corpus.begin(trial, self.settings.start)
        while True:
            loss = corpus.nll(trial, corpus.draw(trial, self.settings.batch_size))
            trial.update(loss)
            state.step += 1
            yield {"nll": loss.item()}
