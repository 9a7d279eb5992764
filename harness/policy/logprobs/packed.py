"""The tokens of a batch in a row, with little padding: sequences of similar length are padded together, a group after another.

Everything in a model but attention reads one token at a time, so that it need not know of sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.types import Rollout

ROWS = 4  # sequences of a group at least
MOST = 8  # groups; each costs a call of attention a layer


class Packed(NamedTuple):
    """Tokens that a pass reads: G groups of sequences, each [rows, width], one after another."""

    tokens: Tensor  # [N] int64
    position: Tensor  # [N] within its sequence
    groups: list[tuple[int, int]]  # rows and width of each
    predicts: Tensor  # [n] the places among N from which a response token is predicted
    real: Tensor | None  # [n] their places among B * R, None if all are


def packed(rollout: Rollout) -> Packed:
    """The tokens of a batch that a causal model reads to predict the responses: [B, R] -> [N]."""
    prompts, counts = rollout.prompts, rollout.response_mask
    tokens, prompt = torch.cat([prompts.tokens, rollout.response], 1), prompts.mask.sum(1)
    length = (prompt + counts.sum(1) - 1).clamp(min=1)  # nothing is predicted from the last response token
    first, rows, groups = prompts.mask.shape[1] - prompt, [], []
    order = length.argsort(stable=True)
    for group in order.chunk(max(1, min(MOST, len(order) // ROWS))):
        groups.append((len(group), width := int(length[group[-1]])))
        rows.append(tokens[group].gather(1, _columns(first[group], width, tokens.shape[1])).flatten())
    position = torch.cat([torch.arange(width).repeat(n) for n, width in groups])
    real = real_positions(counts)
    predicts = _predicts(order, groups, prompt, counts)
    return Packed(torch.cat(rows), position, groups, predicts, real)


def real_positions(mask: Tensor) -> Tensor | None:
    """The places of response tokens among B * R, None if all are: [B, R] -> [n]."""
    return None if bool(mask.all()) else mask.flatten().nonzero().flatten()


def unpacked(x: Tensor, real: Tensor | None, shape: torch.Size) -> Tensor:
    """A row for each response token, 0 elsewhere: [n, D] -> [B, R, D]."""
    if real is not None:
        x = x.new_zeros(shape.numel(), x.shape[-1]).index_copy(0, real, x)
    return x.view(*shape, -1)


def _columns(first: Tensor, width: int, most: int) -> Tensor:
    """Columns that begin at each row's first token, within the table: [n] -> [n, width]."""
    return (first[:, None] + torch.arange(width)).clamp(max=most - 1)


def _predicts(order: Tensor, groups: list[tuple[int, int]], prompt: Tensor, counts: Tensor) -> Tensor:
    """The place among N that predicts each response token, in the order of B * R: -> [n]."""
    widths = torch.tensor([width for n, width in groups for _ in range(n)])
    begins, width = torch.empty_like(order), torch.empty_like(order)
    begins[order], width[order] = widths.cumsum(0) - widths, widths
    step = (prompt - 1).clamp(min=0)[:, None] + torch.arange(counts.shape[1])
    return (begins[:, None] + torch.minimum(step, width[:, None] - 1))[counts]
