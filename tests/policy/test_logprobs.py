"""Log-probability arithmetic against coins counted by hand, and against float64."""

from __future__ import annotations

import math
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import rng

from harness.policy.logprobs import entropy, kl, log_not, log_nots, masked_mean, masked_sum, terms, token_logprobs


def coin(p: float) -> torch.Tensor:
    return torch.tensor([[[p, 1 - p]]]).log()


def test_token_logprobs_by_hand():
    logits = torch.tensor([[[1.0, 1.0], [0.0, log(3.0)]]]) + 5  # logits are free up to a constant
    got = token_logprobs(logits, torch.tensor([[0, 1]]))
    torch.testing.assert_close(got, torch.tensor([[log(0.5), log(0.75)]]))


def test_kl_of_a_coin_and_its_direction():
    fair, loaded = coin(0.5), coin(0.9)
    assert kl(fair, loaded).item() == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1), rel=1e-5)  # 0.5108
    assert kl(loaded, fair).item() == pytest.approx(0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5), rel=1e-5)  # 0.3681
    assert kl(loaded, loaded).item() == 0
    assert kl(fair, loaded).shape == (1, 1)


def test_kl_is_infinite_only_where_q_lacks_what_p_has():
    """A policy that puts e^-90 on a token costs 45 nats against a fair coin, not infinity."""
    sharp = torch.tensor([[[0.0, -90.0]]])
    assert kl(coin(0.5), sharp).item() == pytest.approx(45 - log(2), rel=1e-5)
    assert kl(sharp, coin(0.5)).item() == pytest.approx(log(2), rel=1e-5)


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=8))
def test_kl_is_never_negative(pairs):
    p, q = torch.tensor(pairs, dtype=torch.float64).T
    assert kl(p[None, None], q[None, None]).item() >= -1e-12


def test_entropy_by_hand():
    assert entropy(coin(0.5)).item() == pytest.approx(log(2))
    assert entropy(coin(0.9)).item() == pytest.approx(-0.9 * log(0.9) - 0.1 * log(0.1), rel=1e-5)
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(log(8))
    assert entropy(torch.tensor([[[0.0, -90.0]]])).item() == pytest.approx(0, abs=1e-6)


def test_log_not_by_hand():
    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    for token, p in enumerate((0.5, 0.3, 0.2)):
        assert log_not(logits, torch.tensor([[token]])).item() == pytest.approx(log(1 - p), rel=1e-5)


@pytest.mark.parametrize("rest", [1e-3, 1e-9, 1e-12, 1e-20])
def test_log_not_keeps_its_value_and_gradient_near_certainty(rest):
    """At p = 1 - rest: log(1 - p) = log(rest), and its gradient is -p for the token and p * q_j/(1 - p) for the others.

    In float32 such a p is 1, so log(1 - p) would be -inf, and a clamp would leave a gradient of 0.
    """
    logits = torch.tensor([[[0.0, log(rest / 4), log(3 * rest / 4)]]], requires_grad=True)  # the others share 1 : 3
    value = log_not(logits, torch.tensor([[0]]))
    value.sum().backward()
    p = 1 / (1 + rest)
    assert value.item() == pytest.approx(log(rest) + log(p), rel=1e-5)
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([-p, p / 4, 3 * p / 4]), rtol=1e-4, atol=0)


def test_log_not_against_autograd_in_float64():
    rng = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(3, 5, 7, generator=rng, dtype=torch.float64)).requires_grad_()
    tokens = torch.randint(7, (3, 5), generator=rng)
    plain = (1 - token_logprobs(logits, tokens).exp()).log()
    (expected,) = torch.autograd.grad(plain.sum(), logits)
    ours = log_not(logits, tokens)
    (got,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


def test_masked_mean_and_sum_ignore_what_is_masked():
    x = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("inf"), float("nan")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)  # over positions, not over rows
    assert masked_sum(x, mask).tolist() == [3.0, 4.0]
    assert masked_sum(x, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


def test_the_gradient_of_a_masked_mean_is_zero_under_the_mask():
    x = torch.ones(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    masked_mean(x, mask).backward()
    torch.testing.assert_close(x.grad, mask / 3)


def test_the_functions_agree_with_one_another():
    """KL(p || q) = cross entropy - entropy, both by summing over the vocabulary."""
    rng = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 1, 1, 6, generator=rng)
    cross = -sum(exp(token_logprobs(p, i).item()) * token_logprobs(q, i).item() for i in torch.arange(6).view(6, 1, 1))
    assert kl(p, q).item() == pytest.approx(cross - entropy(p).item(), abs=1e-5)


def test_log_nots_against_float64():
    logits = torch.randn(2, 3, 7, generator=rng()) * 4
    exact = (-logits.double().softmax(-1)).log1p()
    torch.testing.assert_close(log_nots(logits).double(), exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("token", [0, 3])
@pytest.mark.parametrize("function", [log_not, lambda z, t: log_nots(z)[..., int(t)]], ids=["one", "all"])
def test_the_gradient_of_unlikelihood_where_p_is_nearly_1(function, token):
    """p of token 0 is 1 - 1e-12. In closed form the gradient of -log(1 - p_c) is p_c at c, -p_c p_k / (1 - p_c) elsewhere."""
    others = math.log(1e-12 / 4)
    logits = torch.tensor([[[0.0, others, others, others, others]]], requires_grad=True)
    (loss,) = -function(logits, torch.tensor([[token]])).flatten()
    loss.backward()
    z = logits.detach().double().flatten()
    rest = torch.cat([z[:token], z[token + 1 :]]).exp().sum()  # 1 - p without cancellation
    p = z.exp() / z.exp().sum()
    expected = -p[token] * z.exp() / rest
    expected[token] = p[token]
    assert loss.item() == pytest.approx(float(z.exp().sum().log() - rest.log()), rel=1e-5, abs=1e-11)
    torch.testing.assert_close(logits.grad.double().flatten(), expected, rtol=1e-4, atol=1e-12)


SIMPLE = {  # as autograd would differentiate them
    "token_logprobs": lambda p, q, t: p.log_softmax(-1).gather(-1, t[..., None]).squeeze(-1),
    "kl": lambda p, q, t: (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1),
    "entropy": lambda p, q, t: -(p.softmax(-1) * p.log_softmax(-1)).sum(-1),
}
OURS = {
    "token_logprobs": lambda p, q, t: token_logprobs(p, t),
    "kl": lambda p, q, t: kl(p, q),
    "entropy": lambda p, q, t: entropy(p),
}


@pytest.mark.parametrize("laid_out", ["in a row", "a part of a wider tensor"])
@pytest.mark.parametrize("name", SIMPLE)
def test_values_and_gradients_equal_autograd_s(name, laid_out, monkeypatch):
    monkeypatch.setattr(terms, "ELEMENTS", 30)  # parts of several positions, the last one shorter
    wide = 3 * torch.randn(2, 4, 5, 9, generator=rng(), dtype=torch.float64)
    p, q = (x.contiguous() if laid_out == "in a row" else x for x in wide[..., :7])
    t, weight = torch.randint(7, (4, 5), generator=rng(1)), torch.randn(4, 5, generator=rng(2), dtype=torch.float64)
    found = []
    for of in (SIMPLE, OURS):
        inputs = [x.detach().requires_grad_() for x in (p, q)]
        value = of[name](*inputs, t)
        found.append([value, *torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)])
    for simple, ours in zip(*found, strict=True):
        assert (simple is None) == (ours is None)
        if simple is not None:
            torch.testing.assert_close(ours, simple, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SIMPLE)
def test_only_gradients_that_are_asked_for_are_made(name):
    p, q, t = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    value = OURS[name](p, q, t)
    assert value.requires_grad == (name == "kl")
    if name == "kl":
        value.sum().backward()
        torch.testing.assert_close(q.grad, q.detach().softmax(-1) - p.softmax(-1))
