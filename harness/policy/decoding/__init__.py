"""How a policy reads prompts and then one token a step: by the model's own forward, or directly for GPT-2 and Llama.

The direct way computes the same step without the overhead of modules: projections that read the same input are one matrix
product, and keys and values are written into tensors of their final size. On a GPU few responses at once leave it waiting
for the next kernel to be launched: then the step is captured once as a CUDA graph and replayed. Prompts are read by the
model's own forward in all three. `decoder` chooses; a model that differs in any module from its family's is read by its own
forward.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from harness.core.types import Prompts
from harness.policy.logprobs.families import family_of
from harness.policy.policy import Policy

from .direct import Captured, Direct
from .families import STEPS
from .own import OwnForward

LAUNCHED = 1600  # responses; with fewer, a GPU waits for launches longer than a graph loses to columns not yet filled


class Decoder(Protocol):
    """Reads a batch of prompts, then one token of each response a step; [A] are the responses that go on."""

    movable: bool  # whether responses can be left out, known after `start`

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor: ...  # n responses of `steps` tokens: -> [B * n, V]
    def step(self, token: Tensor) -> Tensor: ...  # the last token of each response: [A] -> [A, V]
    def keep(self, rows: Tensor) -> None: ...  # the responses that go on, by their place among those before


def decoder(policy: Policy, rows: int = LAUNCHED) -> Decoder:
    """The decoder of a policy for batches of so many responses.

    Direct if every module of its model is one of a known family's, captured on a GPU if they are few, else by the model's
    own forward. It serves one batch after another.
    """
    family = family_of(policy.model)
    if family is None:
        return OwnForward(policy)
    steps = STEPS[family](policy.model, policy.precision)
    if policy.device.type == "cuda" and rows < LAUNCHED:
        return Captured(policy, steps)
    return Direct(policy, steps)
