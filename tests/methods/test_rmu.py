"""RMU: its loss by hand, its target, and which weights it reaches."""

from __future__ import annotations

import pytest
import torch
from closed_forms import responses
from hand_worked import Bench
from tiny import tiny_gpt2
from trials import new_trial

from harness.methods.rmu import RMU, RMUSettings

FORGET, RETAIN = [[2, 3], [5]], [[9, 8, 7], [4]]
PROMPTS = [[4, 11], [6]]
SETTINGS = RMUSettings(depth=0.0, layers=1, retain_coef=0.7, coefficient=2.0)


def by_hand(policy, rows: list[list[int]]) -> torch.Tensor:
    """What the first of two layers leaves where each response token is predicted, each text read alone: [tokens, D]."""
    found = []
    for prompt, row in zip(PROMPTS, rows, strict=True):
        states = policy.model(input_ids=torch.tensor([prompt + row]), output_hidden_states=True).hidden_states[1][0]
        found.append(states[len(prompt) - 1 : -1])
    return torch.cat(found)


def test_the_loss_by_hand():
    """Squares are means over the 16 dimensions and over tokens, so that a long response counts for more than a short one."""
    bench, target = Bench(), torch.linspace(-1, 1, 16)
    scalars = RMU(SETTINGS)._learn(bench, responses(FORGET, PROMPTS), responses(RETAIN, PROMPTS), target)
    with torch.no_grad():
        forget = (by_hand(bench.policy, FORGET) - target).square().mean()
        retain = (by_hand(bench.policy, RETAIN) - by_hand(bench.reference, RETAIN)).square().mean()
    assert bench.loss.item() == pytest.approx((forget + 0.7 * retain).item(), rel=1e-5)
    assert scalars == {"misdirection": pytest.approx(forget.item()), "drift": pytest.approx(retain.item())}


def test_only_its_layers_learn():
    bench = Bench()
    RMU(SETTINGS)._learn(bench, responses(FORGET, PROMPTS), responses(RETAIN, PROMPTS), torch.ones(16))
    learned = {name for name, w in bench.policy.model.named_parameters() if w.grad is not None}
    assert learned and all(".h.0." in name or "wpe" in name for name in learned)  # a table of positions goes with the first


def test_the_target_has_a_length_in_norms_of_the_activations_and_no_negative_part():
    bench = Bench()
    target = RMU(SETTINGS)._target(bench, responses(RETAIN, PROMPTS))
    with torch.no_grad():
        norm = by_hand(bench.reference, RETAIN).norm(dim=-1).mean()
    assert target.norm().item() == pytest.approx(2.0 * norm.item(), rel=1e-5)
    assert (target >= 0).all() and len(target.unique()) == 16


def test_the_target_is_drawn_once_and_activations_of_bad_samples_come_closer_to_it():
    trial = new_trial(tiny_gpt2(), updates=40)
    settings = RMUSettings(depth=0.0, retain_coef=0.1, explore_every=10, explore_prompts=32, batch_size=8)
    rows, targets = [], set()
    for row, _ in zip(RMU(settings).train(trial), range(12), strict=False):
        rows.append(row)
        targets.add(tuple(trial._kept["target"].tolist()))
    assert len(targets) == 1 and rows[-1]["misdirection"] < 0.8 * rows[0]["misdirection"]
