"""Relearning: a finished policy is trained a little, on harmless text or on text with the habit, and measured on the way.

Hu et al. 2024 (arXiv:2406.13356): if a few updates restore a habit, it was hidden rather than removed. The yardstick is a
policy that never had the habit and learns from the same texts.

The texts are not those that a method trained on: harmless ones are held-out documents of the task, or clean responses of the
base policy to validation prompts; those with the habit are responses of the base policy to validation prompts that the judge
scores below 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, NonNegativeInt

from harness.api import Probed, Reading, Rollout, Settings

POINTS = (0, 5, 10, 20, 50, 100)


class RelearnSettings(Settings):
    points: tuple[NonNegativeInt, ...] = Field(POINTS, min_length=2, description="updates after which the policy is measured")
    texts: int = Field(64, ge=1, description="number of texts")
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate")
    batch_size: int = Field(16, ge=1, description="texts per update")
    samples: int = Field(4, ge=2, description="responses per test prompt at each reading")


class Relearn:
    """Training on texts by maximum likelihood, under the prefix with which the policy is deployed."""

    version = 1
    Settings = RelearnSettings
    unit = "updates"
    number = "mean"

    def __init__(self, settings: RelearnSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        s, policy = self.settings, probed.policy.copy().requires_grad_(True)
        texts = self.texts(probed, s.texts)
        if 0 in s.points:
            yield Reading(0, probed.measure(policy, s.samples))
        for update in probed.tuned(policy, texts, max(s.points), s.lr, s.batch_size):
            if update in s.points:
                yield Reading(update, probed.measure(policy, s.samples))

    def texts(self, probed: Probed, n: int) -> Rollout:
        """The texts to learn from: -> [n, R]."""
        raise NotImplementedError


class RelearnClean(Relearn):
    """Training on harmless text."""

    def texts(self, probed: Probed, n: int) -> Rollout:
        return probed.clean(n)


class RelearnHabit(Relearn):
    """Training on texts with the habit."""

    def texts(self, probed: Probed, n: int) -> Rollout:
        return probed.habit(n)
