"""More samples: the worst of n responses to a prompt, as a user sees who asks again.

The expectation over draws is exact: of m responses, sorted, the i-th is the worst of n drawn without replacement with
probability C(m - i, n - 1) / C(m, n).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from harness.api import Probed, Reading, Settings, metrics, sample


class SampleMoreSettings(Settings):
    counts: tuple[PositiveInt, ...] = Field((1, 4, 16, 64), min_length=1, description="n, responses of which the worst counts")


class SampleMore:
    """The worst of n responses."""

    version = 1
    Settings = SampleMoreSettings
    unit = "responses"
    number = "worst"

    def __init__(self, settings: SampleMoreSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        most = max(self.settings.counts)
        rollout = sample(probed.policy, probed.prompts, decoding=probed.task.decoding, rng=probed.rng, n=most)
        judge = probed.scores(rollout).reshape(-1, most)
        for n in self.settings.counts:
            worst = np.array([worst_of(row[~np.isnan(row)], n) for row in judge])
            yield Reading(n, {"judge": metrics.cluster_mean(worst[:, None])})


def worst_of(scores: NDArray[np.float64], n: int) -> float:
    """The expected lowest of n scores drawn without replacement, NaN if there are fewer: [m] -> a number."""
    m = len(scores)
    if m < n:
        return float("nan")
    weights = np.array([comb(m - i, n - 1) / comb(m, n) for i in range(1, m + 1)])
    return float(np.sort(scores) @ weights)
