"""NPO: its loss in closed form, and its limit."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import KL_FROM_UNIFORM, gradient, half_quarter, padded_batch, responses
from tiny import tiny_gpt2
from trials import pair_trial

from harness.methods.npo import NPO, NPOSettings
from harness.policy.logprobs import masked_sum, token_logprobs


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_loss_of_npo_in_closed_form(beta):
    """[2, 3] has ratio 18."""
    trial, seen = pair_trial(*half_quarter()), []
    trial.update = lambda loss: seen.append(loss.item())
    NPO(NPOSettings(beta=beta, kl_coef=0.7))._learn(trial, responses([[2, 3]]), responses([[9, 8, 7], [5]]))
    assert seen == [pytest.approx(2 / beta * math.log(1 + 18**beta) + 0.7 * KL_FROM_UNIFORM, abs=1e-5)]


def test_npo_at_beta_0_is_gradient_ascent_on_whole_responses():
    policy, forget = tiny_gpt2(), padded_batch()
    trial = pair_trial(policy, tiny_gpt2(seed=1))
    trial.update = lambda loss: loss.backward()
    NPO(NPOSettings(beta=1e-4, kl_coef=0.0))._learn(trial, forget, forget)
    found = gradient(policy)
    policy.zero_grad()
    masked_sum(token_logprobs(policy.logits(forget), forget.response), forget.response_mask).mean().backward()
    assert torch.allclose(found, gradient(policy), atol=1e-3 * gradient(policy).abs().max().item())
