"""The output head: logits of the response tokens, and its gradient made from all terms of a loss at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .terms import Shared, attach, flat, slices

ROWS = 256  # positions whose gradient is held at once: with fewer, that of the weight is read and written too often


def logits_of(
    states: Tensor, weight: Tensor, vocab: int, real: Tensor | None, shape: torch.Size, precision: torch.dtype | None = None
) -> Tensor:
    """Logits of response tokens, 0 elsewhere: states [n, D], weight [V or more, D], their positions or None -> [B, R, V].

    Products are computed in `precision`, as under autocast; states, weight, logits and their gradients keep their own.

    The terms of a loss that know these logits (`token_logprobs`, `kl`, `entropy`) return no gradient for them: the head makes
    that of all terms together, a few positions at a time, so that it is never held for the whole batch.
    """
    shared = Shared(real, [])
    logits: Tensor = _Head.apply(states, weight, vocab, shared, shape, precision or weight.dtype)  # type: ignore[no-untyped-call]
    if not logits.requires_grad:
        shared.terms = None
    return attach(logits, shared)


class _Head(Function):
    """states @ weight[:V].T at the positions that count."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, vocab: int, shared: Shared, shape: torch.Size, precision: torch.dtype
    ) -> Tensor:
        ctx.shared, ctx.vocab, ctx.precision = shared, vocab, precision
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, weight)
        used = weight[:vocab].to(precision).t()
        if shared.real is None and precision == weight.dtype:
            logits = states.new_empty(*shape, vocab)  # not a view, which could not be changed in place
            torch.mm(states, used, out=flat(logits))
            return logits
        logits = states.new_zeros(*shape, vocab)
        for rows in slices(len(states), ROWS):
            found = (states[rows].to(precision) @ used).to(weight.dtype)
            if shared.real is None:
                flat(logits)[rows] = found
            else:
                flat(logits).index_copy_(0, shared.real[rows], found)
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        states, weight = ctx.saved_tensors
        used, given = weight[: ctx.vocab].to(ctx.precision), None if grads[0] is None else grads[0].reshape(-1, ctx.vocab)
        into = torch.empty_like(states)
        into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in slices(len(states), ROWS):
            found = _given(given, ctx.shared.real, rows)
            if found is None:
                found = states.new_zeros(rows.stop - rows.start, ctx.vocab)
            ctx.shared.collect(found, rows)
            _multiply(found.to(ctx.precision), used, states[rows], into[rows], into_weight)
        return into, into_weight, None, None, None, None


def _multiply(grad: Tensor, weight: Tensor, states: Tensor, into: Tensor, into_weight: Tensor | None) -> None:
    """The gradients for states and weight of that for some logits [n, V], put into the one and added to the other."""
    if grad.dtype == states.dtype:
        torch.mm(grad, weight, out=into)
        if into_weight is not None:
            into_weight[: len(weight)].addmm_(grad.t(), states)
        return
    into.copy_(grad @ weight)
    if into_weight is not None:
        into_weight[: len(weight)] += grad.t() @ states.to(grad.dtype)


def _given(given: Tensor | None, real: Tensor | None, rows: slice) -> Tensor | None:
    """The gradient that reached the logits by other ways than the terms, if any: a copy, for the terms are added to it."""
    if given is None:
        return None
    return given[rows].clone() if real is None else given.index_select(0, real[rows])
