"""Logits of a batch of which each process computes its own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from harness.core.types import Rollout
from harness.policy.models import processes

from .terms import Shared, attach, flat


def read(
    rows: Callable[[Rollout], tuple[Tensor, ...]],
    rollout: Rollout,
    real: Callable[[Tensor], Tensor | None],
    level: bool = False,
) -> tuple[Tensor, ...]:
    """Logits, and states if `rows` returns them, each process reading its own rows: [B, R] -> [B, R, V], [B, R, D].

    `real` finds the positions of response tokens, None for all. Every process gets what is read of the whole batch, and passes
    back the gradient of its own rows. With one process it is `rows`. With `level` all processes read as many rows.
    """
    if processes.size() == 1:
        return rows(rollout)
    n = len(rollout.response)
    logits, *states = rows(_own(rollout, level))
    found = gathered_logits(logits, real(rollout.response_mask), n)
    return found, *(processes.with_gradient(x, n) for x in states)


def read_states(rows: Callable[[Rollout], Tensor], rollout: Rollout, level: bool = False) -> Tensor:
    """As `read`, of states alone: [B, R] -> [B, R, D]."""
    if processes.size() == 1:
        return rows(rollout)
    return processes.with_gradient(rows(_own(rollout, level)), len(rollout.response))


def _own(rollout: Rollout, level: bool) -> Rollout:
    """The rows of this process; if `level`, as many in each, so that all make the same passes of a sharded model."""
    if level:
        return rollout.rows(processes.level_rows(len(rollout.response)).to(rollout.response.device))
    return processes.rows_of(rollout, processes.shares(len(rollout.response))[processes.rank()].read)


def gathered_logits(logits: Tensor, real: Tensor | None, n: int) -> Tensor:
    """The logits of all processes: those of this one [b, R, V] -> [n, R, V].

    As at the output head, the terms of a loss leave their gradients to the gather, which makes those of its own rows alone.
    """
    shared = Shared(real, [])
    found: Tensor = _Logits.apply(logits, n, shared)  # type: ignore[no-untyped-call]
    if not found.requires_grad:
        shared.terms = None
    return attach(found, shared)


class _Logits(Function):
    """As `processes.Gathered`, for logits whose terms know their record."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, n: int, shared: Shared) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.shared, ctx.share = logits.shape, shared, processes.shares(n)[processes.rank()]
        ctx.like = logits.new_empty(0)
        return processes.gathered(logits, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None]:
        into, share, width = ctx.like.new_zeros(ctx.shape), ctx.share, ctx.shape[1]
        if grads[0] is not None:
            into[: share.size] = grads[0][share.own]
        first, last = share.own.start * width, share.own.stop * width
        if ctx.shared.real is None:
            ctx.shared.collect(flat(into)[: last - first], slice(first, last))
        else:
            _collect(ctx.shared, ctx.shared.real, flat(into), first, last)
        return into.mul_(processes.size()), None, None


def _collect(shared: Shared, real: Tensor, into: Tensor, first: int, last: int) -> None:
    """Add the gradients of the collected terms at the real positions from first to last: [positions, V]."""
    start, end = torch.searchsorted(real, torch.tensor([first, last])).tolist()
    at = real[start:end] - first
    found = into[at]
    shared.collect(found, slice(start, end))
    into[at] = found
