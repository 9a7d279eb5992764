"""The unchanged base policy, the control for all gains: no training and no cost."""

from __future__ import annotations

from collections.abc import Iterator

from harness.api import Settings, Trial


class BaseSettings(Settings):
    pass


class Base:
    version = 1
    Settings = BaseSettings
    family = "controls"
    knob = None
    trains = False

    def __init__(self, settings: BaseSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        yield from ()
