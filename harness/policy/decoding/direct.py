"""Decoding by the arithmetic of a known architecture, launched kernel by kernel or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.core.types import Prompts
from harness.policy.policy import Policy

from .families import Attend, Steps
from .keys import Fixed, PerPrompt, PerResponse
from .own import read

KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""All but cuDNN's, which plans anew for each number of columns, that is, at every token."""
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""A step -> a call that repeats it, and the tensor that holds the logits afterwards."""


class Direct:
    """Decoding by the arithmetic of a known architecture, with keys and values in tensors of their final size."""

    movable = True

    def __init__(self, policy: Policy, steps: Steps) -> None:
        self.policy, self.steps = policy, steps

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor:
        logits, cache = read(self.policy, prompts)
        kind = PerPrompt if self.policy.device.type == "cuda" else PerResponse
        self.keys: PerPrompt | PerResponse = kind(cache, self.steps.kind, prompts, n, steps)
        self.position = prompts.mask.sum(1).repeat_interleave(n)
        return logits.repeat_interleave(n, 0)

    def step(self, token: Tensor) -> Tensor:
        logits = run(self.steps, token, self.position, self.keys.attend)
        self.keys.advance()
        self.position = self.position + 1
        return logits[:, : self.policy.vocab_size].float()

    def keep(self, rows: Tensor) -> None:
        self.keys.keep(rows)
        self.position = self.position[rows]


class Captured:
    """The direct step as a CUDA graph: captured at the first batch, replayed for each token of every batch of its shape.

    All columns are read at every step, those not yet written behind the mask, and no response is left out before the end.
    """

    movable = False

    def __init__(self, policy: Policy, steps: Steps, capture: Capture | None = None) -> None:
        self.policy, self.steps, self.capture = policy, steps, capture or cuda_graph
        self.keys: Fixed | None = None
        self.replay: Callable[[], None]

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor:
        logits, cache = read(self.policy, prompts)
        self.rows = len(prompts.tokens) * n
        if self.keys is None or not self._fits(prompts, n, steps):
            self.keys = Fixed(cache, self.steps.kind, prompts, n, steps)
            self.token, self.position = (torch.zeros(self.rows, dtype=torch.long, device=logits.device) for _ in range(2))
            self.replay, self.logits = self.capture(self._step)
        self.keys.fill(cache, prompts)
        self.position[: self.rows] = prompts.mask.sum(1).repeat_interleave(n)
        self.position[self.rows :] = 0  # rows beyond the batch compute what nobody reads
        return logits.repeat_interleave(n, 0)

    def step(self, token: Tensor) -> Tensor:
        self.token[: self.rows] = token
        self.replay()
        return self.logits[: self.rows]

    def keep(self, rows: Tensor) -> None:
        raise NotImplementedError("a graph has the shape that it was captured in")

    def _fits(self, prompts: Prompts, n: int, steps: int) -> bool:
        assert self.keys is not None
        batch, columns = self.keys.shape
        return self.keys.n == n and len(prompts.tokens) <= batch and prompts.tokens.shape[1] + steps * n <= columns

    def _step(self) -> Tensor:
        assert self.keys is not None
        logits = run(self.steps, self.token, self.position, self.keys.attend)
        self.keys.advance()
        self.position += 1
        return logits[:, : self.policy.vocab_size].float()


def cuda_graph(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A call that replays the kernels of a step, and the tensor that each replay writes its logits to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a capture must not meet what is done once, such as the choice of a kernel
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()
    return graph.replay, logits


def run(steps: Steps, token: Tensor, position: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """One token of each response through all layers: [A], [A] -> logits [A, V and more]."""
    x = steps.embed(token, position)
    with sdpa_kernel(KERNELS) if token.is_cuda else nullcontext():
        for i in range(len(steps.layers)):
            here: Attend = partial(attend, i)
            x = steps.layer(i, x, here)
    return steps.head(x)
