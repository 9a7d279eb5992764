"""Gradient ascent: its loss in closed form, and what it does to likelihoods."""

from __future__ import annotations

import math

import pytest
from closed_forms import KL_FROM_UNIFORM, half_quarter, responses
from trials import pair_trial

from harness.core.types import Rollout
from harness.methods.gradient_ascent import GradientAscent, GradientAscentSettings
from harness.policy.logprobs import token_logprobs
from harness.training.trial import Trial


def test_the_loss_of_gradient_ascent_in_closed_form():
    trial, seen = pair_trial(*half_quarter()), []
    trial.update = lambda loss: seen.append(loss.item())
    method = GradientAscent(GradientAscentSettings(kl_coef=0.7))
    method._learn(trial, responses([[2, 3], [2]]), responses([[9, 8, 7], [5]]))
    assert seen == [pytest.approx((2 * math.log(0.5) + math.log(0.25)) / 3 + 0.7 * KL_FROM_UNIFORM, abs=1e-6)]


def test_gradient_ascent_makes_the_worst_less_likely_and_holds_the_rest():
    forget, retain = responses([[5, 5, 5]]), responses([[7, 8, 9]])
    trial, held = pair_trial(lr=1e-2), pair_trial(lr=1e-2)

    def likelihood(t: Trial, part: Rollout) -> float:
        return token_logprobs(t.policy.logits(part), part.response).sum().item()

    before = likelihood(trial, forget), likelihood(trial, retain)
    for _ in range(10):
        GradientAscent(GradientAscentSettings(kl_coef=0.0))._learn(trial, forget, retain)
        GradientAscent(GradientAscentSettings(kl_coef=100.0))._learn(held, forget, retain)
    assert likelihood(trial, forget) < before[0] - 1
    assert abs(likelihood(held, retain) - before[1]) < 0.2 * abs(likelihood(trial, retain) - before[1])
