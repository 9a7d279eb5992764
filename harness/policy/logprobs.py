"""Log-probability arithmetic: each function is one line of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

ELEMENTS = 2**20
"""Numbers of a distribution over the vocabulary held at once besides the logits and their gradient: they stay in a cache."""


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens) under logits, in nats: [B, R, V], [B, R] -> [B, R]."""
    found: Tensor = _TokenLogprobs.apply(logits, tokens)  # type: ignore[no-untyped-call]
    return found


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Exact KL(p || q) at each position, in nats, over the whole vocabulary: [B, R, V], [B, R, V] -> [B, R].

    Summed over a sampled response it is the Rao-Blackwell estimate of the sequence KL (Amini et al. 2025).
    """
    found: Tensor = _KL.apply(p_logits, q_logits)  # type: ignore[no-untyped-call]
    return found


def entropy(logits: Tensor) -> Tensor:
    """Entropy at each position, in nats: [B, R, V] -> [B, R]."""
    found: Tensor = _Entropy.apply(logits)  # type: ignore[no-untyped-call]
    return found


class _TokenLogprobs(Function):
    """log_softmax and gather, whose gradient is made from the logits again instead of a second tensor of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        total = logits.new_empty(tokens.shape)
        for rows in _parts(logits):
            total.view(-1)[rows] = _flat(logits)[rows].logsumexp(-1)
        ctx.save_for_backward(logits, tokens, total)
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """d log p(y) / d logits = one-hot(y) - p."""
        logits, tokens, total = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        found = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows in _parts(logits):
            p = (_flat(logits)[rows] - _flat(total.unsqueeze(-1))[rows]).exp_()
            torch.mul(p, -_flat(grad)[rows], out=_flat(found)[rows])
        return found.scatter_add_(-1, tokens.unsqueeze(-1), grad), None


class _KL(Function):
    """KL(p || q) and its gradients for both, a few positions at a time."""

    @staticmethod
    def forward(ctx: Any, p_logits: Tensor, q_logits: Tensor) -> Tensor:
        found = p_logits.new_empty(p_logits.shape[:-1])
        for rows in _parts(p_logits):
            p, q = (_flat(x)[rows].log_softmax(-1) for x in (p_logits, q_logits))
            found.view(-1)[rows] = (p.exp() * (p - q)).sum(-1)
        ctx.save_for_backward(p_logits, q_logits, found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """d KL / d p's logits = p (log p - log q - KL); d KL / d q's logits = q - p."""
        p_logits, q_logits, found = ctx.saved_tensors
        into_p, into_q = (
            torch.empty_like(p_logits, memory_format=torch.contiguous_format) if wanted else None
            for wanted in ctx.needs_input_grad
        )
        for rows in _parts(p_logits):
            p, q = (_flat(x)[rows].log_softmax(-1) for x in (p_logits, q_logits))
            grad, total = (_flat(x.unsqueeze(-1))[rows] for x in (grads[0], found))
            if into_p is not None:
                _flat(into_p)[rows] = p.exp() * (p - q - total) * grad
            if into_q is not None:
                _flat(into_q)[rows] = (q.exp() - p.exp()) * grad
        return into_p, into_q


class _Entropy(Function):
    """Entropy and its gradient, a few positions at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        found = logits.new_empty(logits.shape[:-1])
        for rows in _parts(logits):
            p = _flat(logits)[rows].log_softmax(-1)
            found.view(-1)[rows] = -(p.exp() * p).sum(-1)
        ctx.save_for_backward(logits, found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """d H / d logits = -p (log p + H)."""
        logits, found = ctx.saved_tensors
        into = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows in _parts(logits):
            p = _flat(logits)[rows].log_softmax(-1)
            grad, total = (_flat(x.unsqueeze(-1))[rows] for x in (grads[0], found))
            _flat(into)[rows] = -p.exp() * (p + total) * grad
        return into


def _parts(logits: Tensor) -> Iterator[slice]:
    """Slices of the positions, of at most ELEMENTS numbers each: [..., V] -> slices of [positions, V]."""
    positions, size = logits.numel() // logits.shape[-1], max(1, ELEMENTS // logits.shape[-1])
    return (slice(i, i + size) for i in range(0, positions, size))


def _flat(x: Tensor) -> Tensor:
    """[..., V] -> [positions, V]."""
    return x.reshape(-1, x.shape[-1])


def log_not(logits: Tensor, tokens: Tensor) -> Tensor:
    """log(1 - p(tokens)), in nats: [B, R, V], [B, R] -> [B, R].

    The term of unlikelihood training (Welleck et al. 2019, arXiv:1908.04319, section 4), as a log-sum-exp over the other
    tokens: unlike a clamped log(1 - p) it keeps its gradient where p is near 1.
    """
    others = logits.scatter(-1, tokens.unsqueeze(-1), float("-inf"))
    return others.logsumexp(-1) - logits.logsumexp(-1)


def log_nots(logits: Tensor) -> Tensor:
    """log(1 - p) of every token, in nats: [B, R, V] -> [B, R, V].

    Only the most likely token can have p near 1: `log_not` computes it, and log1p the others, exact for p below 1/2.
    """
    top = logits.argmax(-1)
    p = logits.softmax(-1).scatter(-1, top.unsqueeze(-1), 0.0)  # its log1p would be -inf, and the gradient NaN
    return (-p).log1p().scatter(-1, top.unsqueeze(-1), log_not(logits, top).unsqueeze(-1))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True positions of mask: [B, R], [B, R] -> []."""
    return x.masked_fill(~mask, 0).sum() / mask.sum()


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over the True positions of each row: [B, R], [B, R] -> [B]."""
    return x.masked_fill(~mask, 0).sum(1)
