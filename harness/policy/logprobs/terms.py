"""Terms of a loss over the vocabulary, and their gradients for the logits, a few positions at a time.

Every term needs the same softmax. Logits that carry a `Shared` record compute its log-sum-exp once for all terms, only where
a response has a token, and collect the gradients of all terms in one pass when the backward pass reaches the output head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function, Variable

ELEMENTS = 2**18
"""Numbers of a distribution over the vocabulary held at once besides the logits: they stay in a processor's cache."""

MANY = 2**26
"""The same on another device, where a call costs more than memory."""

Places = slice | Tensor
"""Positions among the B * R of a batch: a slice, or ids [n]."""


class Term(Protocol):
    """A term of a loss, with the gradient of the loss for its value at each position."""

    grad: Tensor  # [positions]

    def add(self, into: Tensor, z: Tensor, p: Tensor, at: Places) -> None:
        """Add the gradient for the logits z, with softmax p, at these positions: [n, V] each."""


class Shared:
    """What the terms of a loss share that are computed from the same logits.

    `real` holds the positions of response tokens, None for all. `terms` collects terms whose gradient the output head adds
    up; if it is None, each term gives a gradient of its own.
    """

    def __init__(self, real: Tensor | None = None, terms: list[tuple[Tensor, Term]] | None = None) -> None:
        self.real, self.terms = real, terms
        self.version: int | None = None  # of the logits that it describes
        self.collected = False  # whether the output head has added the terms of this backward pass
        self.reached = False  # whether this backward pass gave the logits a gradient by another way than the terms
        self._totals: Tensor | None = None

    def totals(self, logits: Tensor) -> Tensor:
        """The log-sum-exp of each position, 0 where there is no response token: [B, R, V] -> [B * R]."""
        if self._totals is None:
            found = logits.new_zeros(logits.shape[:-1].numel())
            for at in parts(self.real, logits):
                found[at] = rows_of(logits, at).logsumexp(-1)
            self._totals = found
        return self._totals

    def give(self, logits: Tensor, term: Term) -> Tensor | None:
        """The gradient of a term for the logits, None if the output head adds it: [B, R, V] -> the same."""
        if self.terms is None:
            return self._gradient(logits, term)
        if term.grad.is_cuda or term.grad.any():  # a coefficient of 0 costs nothing
            if not self.terms:
                self.collected = self.reached = False
                Variable._execution_engine.queue_callback(self._end)
            self.terms.append((logits, term))
        return None

    def _end(self) -> None:
        """After a backward pass: leave nothing to the next one, and refuse one that ended at the logits with a part."""
        assert self.terms is not None
        self.terms.clear()
        if self.reached and not self.collected:
            raise RuntimeError(
                "a gradient for the logits themselves lacks the terms of the loss, which the output head adds to its own; "
                "expected a gradient for weights; give the terms logits.clone() instead"
            )

    def note(self, grad: Tensor) -> None:
        """A gradient for the logits has come by another way than the terms: [B, R, V]."""
        self.reached = True

    def collect(self, into: Tensor, rows: slice) -> None:
        """Add the gradients of all collected terms at these of the real positions: [n, V]."""
        self.collected = True
        if not self.terms or self._totals is None:
            return
        logits = self.terms[0][0]
        for part in slices(len(into), _size(logits)):
            at = _places(self.real, slice(rows.start + part.start, rows.start + part.stop))
            z = rows_of(logits, at)
            p = (z - self._totals[at, None]).exp_()
            for _, term in self.terms:
                term.add(into[part], z, p, at)

    def _gradient(self, logits: Tensor, term: Term) -> Tensor:
        found = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        total = self.totals(logits)
        for at in parts(self.real, logits):
            z = rows_of(logits, at)
            into = torch.zeros_like(z)
            term.add(into, z, (z - total[at, None]).exp_(), at)
            flat(found)[at] = into
        return found


def attach(logits: Tensor, shared: Shared) -> Tensor:
    """The same logits with a record that the terms of a loss share."""
    shared.version = _version(logits)
    logits.shared = shared  # type: ignore[attr-defined]
    if shared.terms is not None:
        logits.register_hook(shared.note)  # type: ignore[no-untyped-call]
    return logits


def shared_by(logits: Tensor) -> Shared:
    """The record of logits, or a new one if they have none or were changed in place."""
    found: Shared | None = getattr(logits, "shared", None)
    return found if found is not None and found.version == _version(logits) else Shared()


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class TokenTerm(NamedTuple):
    """log p(y): its gradient is one-hot(y) - p."""

    tokens: Tensor  # [positions]
    grad: Tensor

    def add(self, into: Tensor, z: Tensor, p: Tensor, at: Places) -> None:
        grad = self.grad[at, None]
        into.addcmul_(p, grad, value=-1).scatter_add_(1, self.tokens[at, None], grad)


class FirstOfKL(NamedTuple):
    """KL(p || q): its gradient for the logits of p is p (log p - log q - KL)."""

    other: Tensor  # logits of q [B, R, V]
    shift: Tensor  # log-sum-exp of p less that of q, plus KL
    grad: Tensor

    def add(self, into: Tensor, z: Tensor, p: Tensor, at: Places) -> None:
        excess = (z - rows_of(self.other, at)).sub_(self.shift[at, None])
        into.addcmul_(excess.mul_(p), self.grad[at, None])


class SecondOfKL(NamedTuple):
    """KL(o || p): its gradient for the logits of p is p - o."""

    other: Tensor  # logits of o [B, R, V]
    total: Tensor  # their log-sum-exp
    grad: Tensor

    def add(self, into: Tensor, z: Tensor, p: Tensor, at: Places) -> None:
        o = (rows_of(self.other, at) - self.total[at, None]).exp_()
        into.addcmul_(torch.sub(p, o, out=o), self.grad[at, None])


class EntropyTerm(NamedTuple):
    """The entropy H: its gradient is -p (log p + H)."""

    shift: Tensor  # log-sum-exp less H
    grad: Tensor

    def add(self, into: Tensor, z: Tensor, p: Tensor, at: Places) -> None:
        into.addcmul_((z - self.shift[at, None]).mul_(p), self.grad[at, None], value=-1)


class TokenLogprobs(Function):
    """log p(y) at each position: logits [B, R, V], tokens [B, R], their record -> [B, R]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, shared: Shared) -> Tensor:
        ctx.shared = shared
        ctx.save_for_backward(logits, tokens)
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - shared.totals(logits).view(tokens.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        logits, tokens = ctx.saved_tensors
        return ctx.shared.give(logits, TokenTerm(tokens.reshape(-1), grads[0].reshape(-1))), None, None


class KL(Function):
    """KL(p || q) at each position: logits [B, R, V] of both and their records -> [B, R]."""

    @staticmethod
    def forward(ctx: Any, p_logits: Tensor, q_logits: Tensor, p: Shared, q: Shared) -> Tensor:
        p_total, shift = p.totals(p_logits), p.totals(p_logits) - q.totals(q_logits)
        found = torch.zeros_like(shift)
        for at in parts(p.real if p.real is not None else q.real, p_logits):
            z = rows_of(p_logits, at)
            log_ratio = (z - rows_of(q_logits, at)).sub_(shift[at, None])
            found[at] = (z - p_total[at, None]).exp_().mul_(log_ratio).sum(-1)
        ctx.p, ctx.q = p, q
        ctx.save_for_backward(p_logits, q_logits, found, shift)
        return found.view(p_logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        p_logits, q_logits, found, shift = ctx.saved_tensors
        grad, (for_p, for_q) = grads[0].reshape(-1), ctx.needs_input_grad[:2]
        first, second = FirstOfKL(q_logits, shift + found, grad), SecondOfKL(p_logits, ctx.p.totals(p_logits), grad)
        into_p = ctx.p.give(p_logits, first) if for_p else None
        return into_p, ctx.q.give(q_logits, second) if for_q else None, None, None


class Entropy(Function):
    """The entropy at each position: logits [B, R, V] and their record -> [B, R]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, shared: Shared) -> Tensor:
        total = shared.totals(logits)
        found = torch.zeros_like(total)
        for at in parts(shared.real, logits):
            logp = rows_of(logits, at) - total[at, None]
            found[at] = logp.exp().mul_(logp).sum(-1).neg_()
        ctx.shared = shared
        ctx.save_for_backward(logits, found)
        return found.view(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        logits, found = ctx.saved_tensors
        return ctx.shared.give(logits, EntropyTerm(ctx.shared.totals(logits) - found, grads[0].reshape(-1))), None


def parts(real: Tensor | None, logits: Tensor) -> Iterator[Places]:
    """The positions of response tokens, a few at a time: [..., V] -> slices or ids of [positions, V]."""
    n = logits.shape[:-1].numel() if real is None else len(real)
    return (_places(real, rows) for rows in slices(n, _size(logits)))


def slices(n: int, size: int) -> Iterator[slice]:
    """0 to n in steps of at most `size`."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def flat(x: Tensor) -> Tensor:
    """[..., V] -> [positions, V]."""
    return x.reshape(-1, x.shape[-1])


def rows_of(logits: Tensor, at: Places) -> Tensor:
    """The logits at these positions: [..., V] -> [n, V]; ids copy them."""
    return flat(logits)[at] if isinstance(at, slice) else flat(logits).index_select(0, at)


def _size(logits: Tensor) -> int:
    return max(1, (MANY if logits.is_cuda else ELEMENTS) // logits.shape[-1])


def _places(real: Tensor | None, rows: slice) -> Places:
    return rows if real is None else real[rows]
