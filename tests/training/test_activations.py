"""Activations at a layer: their gradient, which layers it reaches, and what a pass is charged."""

from __future__ import annotations

import pytest
import torch
from hand_worked import batch
from tiny import TINY, tiny_gpt2

from harness.policy.models.setup import Setup
from harness.policy.policy import Policy
from harness.training.activations import activations


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_the_gradient_of_activations_is_the_same_in_parts_and_recomputed(make):
    found = []
    for setup in (Setup(), Setup(micro_batch=1, checkpointing=True)):
        policy, part = make(), batch()
        policy.setup = setup
        states = activations(policy, part, 1, trained=1)
        states[part.response_mask].square().sum().backward()
        found.append({name: w.grad for name, w in policy.model.named_parameters() if w.grad is not None})
    whole, parts = found
    assert whole.keys() == parts.keys() and all(".1." in name for name in whole)
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, atol=1e-4, rtol=1e-4)


def test_all_layers_below_learn_unless_told_otherwise_and_never_the_embeddings_when_told():
    policy, part = tiny_gpt2(), batch()
    activations(policy, part, 1, trained=5)[part.response_mask].square().sum().backward()
    learned = {name for name, w in policy.model.named_parameters() if w.grad is not None}
    assert any(".h.0." in name for name in learned) and not any("wte" in name for name in learned)
    activations(policy, part, 1)[part.response_mask].square().sum().backward()
    assert policy.model.transformer.wte.weight.grad is not None and gradient_of_head(policy) is None


def gradient_of_head(policy: Policy):
    return policy.model.transformer.ln_f.weight.grad


def test_a_pass_over_activations_is_charged():
    policy, told = tiny_gpt2(), []
    policy.on_forward = lambda tokens, trained: told.append((tokens, trained))
    activations(policy, batch(), 0)
    with torch.no_grad():
        activations(policy, batch(), 0)
    assert told == [(13, True), (13, False)]
