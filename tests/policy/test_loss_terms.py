"""Gradients of the terms of a loss, added up in the output head, against autograd on plain formulas in float64."""

from __future__ import annotations

import pytest
import torch
from tiny import rng

from harness.policy.logprobs import entropy, head, kl, terms, token_logprobs
from harness.policy.logprobs.head import logits_of

B, R, D, V = 3, 4, 5, 7
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
TOKENS = torch.randint(V, (B, R), generator=rng(1))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(terms, "ELEMENTS", 2 * V + 1)
    monkeypatch.setattr(head, "ROWS", 3)


class Side:
    """States and a weight with two rows beyond the vocabulary; logits by the head, and plain ones of the same numbers."""

    def __init__(self, seed: int, masked: bool = True) -> None:
        states = torch.randn(B, R, D, generator=rng(seed), dtype=torch.float64)
        self.states, self.weight = states.requires_grad_(), torch.randn(V + 2, D, generator=rng(9), dtype=torch.float64)
        self.weight.requires_grad_()
        self.real = MASK.flatten().nonzero().flatten() if masked else None

    def logits(self) -> torch.Tensor:
        rows = self.states.flatten(0, 1)
        return logits_of(rows if self.real is None else rows[self.real], self.weight, V, self.real, MASK.shape)

    def plain(self) -> torch.Tensor:
        return self.states @ self.weight[:V].t()


def value(x: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """A loss that weighs each position differently, and those that do not count by 0."""
    return weight * (x * torch.arange(1.0, B * R + 1, dtype=x.dtype).view(B, R)).masked_fill(~MASK, 0).sum()


def simple_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


LOSSES = {
    "tokens": (lambda p, q: value(token_logprobs(p, TOKENS)), lambda p, q: value(_gathered(p))),
    "kl": (lambda p, q: value(kl(p, q)), lambda p, q: value(simple_kl(p, q))),
    "kl to itself": (lambda p, q: value(kl(p, p)), lambda p, q: value(simple_kl(p, p))),
    "entropy": (lambda p, q: value(entropy(p)), lambda p, q: value(_entropy(p))),
    "all, and another use": (
        lambda p, q: value(token_logprobs(p, TOKENS)) + value(kl(p, q), 2) - value(entropy(p)) + value(p.square().sum(-1)),
        lambda p, q: value(_gathered(p)) + value(simple_kl(p, q), 2) - value(_entropy(p)) + value(p.square().sum(-1)),
    ),
    "another use alone": (lambda p, q: value(p.square().sum(-1)),) * 2,
    "a coefficient of 0": (
        lambda p, q: value(token_logprobs(p, TOKENS)) - 0.0 * value(entropy(p)),
        lambda p, q: value(_gathered(p)),
    ),
    "changed in place": (
        lambda p, q: value(token_logprobs(p.mul_(0.5), TOKENS)) + value(entropy(p)),
        lambda p, q: value(_gathered(p * 0.5)) + value(_entropy(p * 0.5)),
    ),
}


def _gathered(p: torch.Tensor) -> torch.Tensor:
    return p.log_softmax(-1).gather(-1, TOKENS[..., None]).squeeze(-1)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p.softmax(-1) * p.log_softmax(-1)).sum(-1)


def grads(loss: torch.Tensor, *sides: Side, **how) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, [x for s in sides for x in (s.states, s.weight)], allow_unused=True, **how)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("masked", [True, False], ids=["ragged", "to the end"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_autograd_s(name, masked):
    p, q = Side(2, masked), Side(3, masked)
    ours, simple = LOSSES[name]
    got, expected = ours(p.logits(), q.logits()), simple(p.plain(), q.plain())
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    for a, b in zip(grads(got, p, q), grads(expected, p, q), strict=True):
        torch.testing.assert_close(a, b.expand(a.shape), atol=1e-9, rtol=1e-9)


def test_a_second_backward_pass_of_the_same_loss_gives_the_same():
    p, q = Side(2), Side(3)
    loss = LOSSES["all, and another use"][0](p.logits(), q.logits())
    first, second = grads(loss, p, q, retain_graph=True), grads(loss, p, q)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_backward_pass_that_ends_before_a_head_leaves_it_nothing():
    p, q = Side(2), Side(3)
    p_logits, q_logits = p.logits(), q.logits()
    grads(value(kl(p_logits, q_logits)), q, retain_graph=True)
    for a, b in zip(grads(value(_gathered(p.plain())), p), grads(value(token_logprobs(p_logits, TOKENS)), p), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_a_gradient_for_the_logits_is_never_a_part_in_silence():
    side = Side(2)
    logits = side.logits()
    both = value(token_logprobs(logits, TOKENS)) + value(logits.pow(2).sum(-1))
    with pytest.raises(RuntimeError, match=r"logits\.clone"):
        torch.autograd.grad(both, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"logits\.clone"):
        torch.autograd.grad(value(token_logprobs(logits, TOKENS)), logits, retain_graph=True)
    apart = logits.clone()
    found = torch.autograd.grad(value(token_logprobs(apart, TOKENS)) + value(apart.pow(2).sum(-1)), apart)[0]
    plain = side.plain().detach().requires_grad_()
    expected = torch.autograd.grad(value(_gathered(plain)) + value(plain.pow(2).sum(-1)), plain)[0]
    real = found.abs().sum(-1) > 0
    torch.testing.assert_close(found[real], expected[real], atol=1e-9, rtol=1e-9)


def test_one_side_of_a_kl_may_be_plain():
    """With a record of what counts on one side only, whichever it is, and no gradient for the other."""
    for first in (True, False):
        side, other = Side(2), Side(3).plain().detach()
        ours = kl(side.logits(), other) if first else kl(other, side.logits())
        simple = simple_kl(side.plain(), other) if first else simple_kl(other, side.plain())
        for a, b in zip(grads(value(ours), side), grads(value(simple), side), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_what_does_not_count_is_finite():
    p, q = Side(2).logits(), Side(3).logits()
    for x in (p, token_logprobs(p, TOKENS), kl(p, q), entropy(p)):
        assert torch.isfinite(x).all()
    with torch.inference_mode():
        assert torch.isfinite(kl(Side(2).logits(), Side(3).logits())).all()
