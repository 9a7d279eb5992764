"""Quantisation: the weights are rounded, and the policy is measured.

Zhang et al. 2024 (arXiv:2410.16454): weights that moved less than a step of 4 bits fall back on the base policy's, and what was
unlearned returns. Each output of a layer and each token's embedding is rounded to nearest, symmetrically, with a step of its
own. Biases and norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.api import Probed, Reading, Settings, with_matrices


class QuantizeSettings(Settings):
    bits: tuple[Annotated[int, Field(ge=2, le=32)], ...] = Field(
        (32, 16, 8, 4), min_length=1, description="bits of a weight; 32 is as trained, 16 is bfloat16"
    )
    samples: int = Field(4, ge=2, description="responses per test prompt at each reading")


class Quantize:
    """Rounding of the weights to fewer bits."""

    version = 1
    Settings = QuantizeSettings
    unit = "bits"
    number = "worst"

    def __init__(self, settings: QuantizeSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        for bits in self.settings.bits:
            policy = with_matrices(probed.policy, partial(rounded, bits))
            yield Reading(bits, probed.measure(policy, self.settings.samples))


def rounded(bits: int, weight: Tensor, output: int) -> Tensor:
    """A matrix in `bits` bits, a step for each index of its dimension `output`: [A, B] -> [A, B]."""
    if bits >= 32:
        return weight
    if bits == 16:
        return weight.bfloat16().to(weight.dtype)
    most = 2 ** (bits - 1) - 1
    step = weight.abs().amax(1 - output, keepdim=True).clamp(min=1e-12) / most
    return (weight / step).round().clamp(-most, most) * step
