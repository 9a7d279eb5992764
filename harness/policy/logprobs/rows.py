"""Rows of prompts and responses as a pass reads them: aligned, grouped by length, with control tokens put in."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.types import Prompts, Rollout

GROUP = 16  # rows that are read together at least; fewer lose more to overhead than they save in padding

MOST_GROUPS = 4


def aligned(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Rows that begin at their first real token, cut after the longest: -> [B, T], and where each prompt ends [B].

    All padding is then at the end, where a causal model does not see it: no mask, no wasted columns, and positions that
    are right without being told.
    """
    prompts, counts = rollout.prompts, rollout.response_mask
    tokens = torch.cat([prompts.tokens, rollout.response], 1)
    real = torch.cat([prompts.mask, counts], 1)
    width = int((real.sum(1)).max()) - 1  # nothing is predicted from the last response token
    first = prompts.mask.shape[1] - prompts.mask.sum(1)
    columns = torch.arange(max(width, 1), device=tokens.device) + first[:, None]
    return tokens.gather(1, columns.clamp(max=tokens.shape[1] - 1)), (prompts.mask.sum(1) - 1).clamp(min=0)


def after(x: Tensor, start: Tensor, rollout: Rollout) -> Tensor:
    """What stands at each row's start and after it, a row for each response token, in float32: [B, T, D] -> [B, R, D]."""
    steps = torch.arange(rollout.response.shape[1], device=x.device)
    at = (start[:, None] + steps).clamp(max=x.shape[1] - 1)
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])).float()


def by_length(rollout: Rollout) -> list[Tensor]:
    """Rows in groups of similar length, so that little is padded: [B] -> ids of rows, a tensor a group."""
    lengths = rollout.prompts.mask.sum(1) + rollout.response_mask.sum(1)
    return list(lengths.argsort(stable=True).chunk(max(1, min(MOST_GROUPS, len(lengths) // GROUP))))


def prepend(token: Tensor, prompts: Prompts, bos: int | None = None) -> Prompts:
    """Put one token before each prompt, after its padding and after a BOS that opens it: [] or [B], [B, P] -> [B, P + 1]."""
    first = (~prompts.mask).sum(1)  # counted, not searched for: an empty prompt has no first token
    tokens = torch.cat([torch.zeros_like(prompts.tokens[:, :1]), prompts.tokens], 1)
    mask = torch.cat([torch.zeros_like(prompts.mask[:, :1]), prompts.mask], 1)
    rows = torch.arange(len(first), device=first.device)
    mask[rows, first] = True
    opening = (first + 1).clamp(max=prompts.mask.shape[1])
    opened = (
        mask[rows, opening] & (tokens[rows, opening] == bos) & (opening > first)
        if bos is not None
        else mask.new_zeros(len(first))
    )
    tokens[rows, first] = tokens[rows, opening].where(opened, token)
    tokens[rows, opening] = torch.where(opened, token, tokens[rows, opening])
    return Prompts(tokens, mask)


def insert(control: Tensor, rollout: Rollout) -> tuple[Rollout, Tensor]:
    """Put control[b, t] before response[b, t] where it is not -1: [B, R] -> rollout [B, R'], where each token went [B, R].

    What is inserted is masked as the response is. Raises ValueError where a control token stands in the padding.
    """
    here = control >= 0
    if (here & ~rollout.response_mask).any():
        raise ValueError("a control token stands before the padding; expected it before a token of the response")
    at = torch.arange(control.shape[1], device=control.device) + here.long().cumsum(1)
    width = control.shape[1] + int(here.sum(1).max())
    response = rollout.response.new_zeros(len(control), width).scatter(1, at, rollout.response)
    mask = torch.zeros_like(response, dtype=torch.bool).scatter(1, at, rollout.response_mask)
    rows, steps = here.nonzero(as_tuple=True)
    response[rows, at[rows, steps] - 1], mask[rows, at[rows, steps] - 1] = control[rows, steps], True
    return Rollout(rollout.prompts, response, mask), at
