"""REINFORCE: its step against the exact gradient, and what becomes of it without the KL."""

from __future__ import annotations

import pytest
import torch
import world
from exact_steps import BETA, DRAWS, agree, trained

from harness.methods import reinforce
from harness.methods.reinforce import Reinforce, ReinforceSettings


def test_the_step_of_reinforce_is_the_gradient_of_its_objective(moved, tables):
    method = Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=DRAWS))
    cosine, ratio = agree("reinforce", method, "regularised reward", moved, tables)
    assert cosine >= 0.99 and ratio == pytest.approx(1, abs=0.05)


def test_without_the_kl_reinforce_collapses():
    base, policy = trained(Reinforce(ReinforceSettings(kl_coef=0, batch_size=64)), 100, world.rewards(), lr=1e-2)
    before, after = world.entropy(base).mean(), world.entropy(policy).mean()
    gain = (world.expected(policy, world.rewards()) - world.expected(base, world.rewards())).mean()
    print(f"\nentropy {before:.3f} -> {after:.3f} nats, reward +{gain:.3f}")
    assert after < before / 10 and gain > 0.2


def test_the_baseline_leaves_the_response_itself_out():
    """Any baseline would pass the test of the mean step; this one is what keeps the noise down."""
    assert reinforce.against_the_others(torch.tensor([1.0, 2.0, 6.0])).tolist() == pytest.approx([-3, -1.5, 4.5])
