"""SimNPO: its loss and its gradient in closed form, and its limit."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import KL_FROM_UNIFORM, gradient, half_quarter, padded_batch, responses
from tiny import tiny_gpt2
from trials import pair_trial

from harness.methods.simnpo import SimNPO, SimNPOSettings
from harness.policy.logprobs import masked_sum, token_logprobs


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.0), (2.0, 0.0), (2.0, 0.5)])
def test_the_loss_of_simnpo_in_closed_form(beta, gamma):
    """[2, 3] has probability 1/8 of two tokens, so its mean log-probability is log(8) / -2; [3] has log(1/4)."""
    trial, seen = pair_trial(*half_quarter()), []
    trial.update = lambda loss: seen.append(loss.item())
    settings = SimNPOSettings(beta=beta, gamma=gamma, kl_coef=0.7)
    SimNPO(settings)._learn(trial, responses([[2, 3], [3]]), responses([[9, 8, 7], [5]]))
    cost = [2 / beta * math.log(1 + math.exp(gamma) * p**beta) for p in (1 / math.sqrt(8), 1 / 4)]
    assert seen == [pytest.approx(sum(cost) / 2 + 0.7 * KL_FROM_UNIFORM, abs=1e-5)]


def test_the_gradient_weighs_a_response_by_its_probability_and_length():
    """The paper's equation 5: 2 p / (1 + p) / |y| times the gradient of log p(y), p the mean probability to the power beta."""
    policy, beta = tiny_gpt2(), 1.7
    trial = pair_trial(policy, tiny_gpt2(seed=1))
    trial.update = lambda loss: loss.backward()
    forget = padded_batch()
    SimNPO(SimNPOSettings(beta=beta, kl_coef=0.0))._learn(trial, forget, forget)
    found = gradient(policy)
    expected = torch.zeros_like(found)
    for row in range(4):
        part = forget.rows(torch.tensor([row]))
        policy.zero_grad()
        logp = masked_sum(token_logprobs(policy.logits(part), part.response), part.response_mask).sum()
        logp.backward()
        length = int(part.response_mask.sum())
        p = math.exp(beta * logp.item() / length)
        expected += 2 * p / (1 + p) / length * gradient(policy) / 4
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


def test_simnpo_at_beta_0_is_gradient_ascent_on_the_mean_token():
    policy, forget = tiny_gpt2(), padded_batch()
    trial = pair_trial(policy, tiny_gpt2(seed=1))
    trial.update = lambda loss: loss.backward()
    SimNPO(SimNPOSettings(beta=1e-4, kl_coef=0.0))._learn(trial, forget, forget)
    found = gradient(policy)
    policy.zero_grad()
    lengths = forget.response_mask.sum(1)
    (masked_sum(token_logprobs(policy.logits(forget), forget.response), forget.response_mask) / lengths).mean().backward()
    assert torch.allclose(found, gradient(policy), atol=1e-3 * gradient(policy).abs().max().item())
