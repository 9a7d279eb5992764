"""Decoding by the model's own forward, and how every decoder reads prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.core.types import Prompts
from harness.policy import caches
from harness.policy.policy import Policy, positions


class OwnForward:
    """Decoding by the model's own forward and cache, whatever its architecture."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.movable = policy, False
        self.cache: Any = None

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor:
        copies = torch.arange(len(prompts.tokens), device=prompts.tokens.device).repeat_interleave(n)
        logits, self.cache = read(self.policy, prompts)
        self.movable = caches.movable(self.cache)
        if n > 1 and self.movable:
            caches.take(self.cache, copies)
            logits = logits[copies]
        elif n > 1:  # a cache that can only grow: read every copy
            logits, self.cache = read(self.policy, Prompts(*(x[copies] for x in prompts)))
        self.mask, self.column, self.position = widened(prompts.mask[copies], steps)
        return logits

    def step(self, token: Tensor) -> Tensor:
        self.column += 1
        mask, position = self.mask[:, : self.column], self.position[:, None]
        logits, self.cache = forward(self.policy, self.cache, token[:, None], mask, position)
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        caches.take(self.cache, rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def read(policy: Policy, prompts: Prompts) -> tuple[Tensor, Any]:
    """Read prompts by the model's own forward: -> logits after the last column [B, V], cache."""
    return forward(policy, None, prompts.tokens, prompts.mask, positions(prompts.mask))


def forward(policy: Policy, cache: Any, tokens: Tensor, mask: Tensor, position: Tensor) -> tuple[Tensor, Any]:
    """Logits after the last column, and the cache that holds all columns: -> [B, V]."""
    inputs = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": position, "logits_to_keep": 1}
    with policy.computing():
        out, cache = caches.forward(policy.model, cache, **inputs)
    return out.logits[:, -1, : policy.vocab_size].float(), cache


def widened(mask: Tensor, steps: int) -> tuple[Tensor, int, Tensor]:
    """The mask with room for R tokens, the columns in use, and the position of the next token: [B, P] -> [B, P + R], P, [B]."""
    room = torch.ones(len(mask), steps, dtype=torch.bool, device=mask.device)
    return torch.cat([mask, room], 1), mask.shape[1], mask.sum(1)
