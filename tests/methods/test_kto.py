"""KTO: its loss in closed form, and how responses are labelled."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import half_quarter, responses
from trials import make_quick, pair_trial, run

from harness.methods.kto import KTO, labelled, mismatched
from harness.training import trl_bridge as ours


def test_the_loss_of_kto_in_closed_form():
    """h is log 6 for the desirable [2] and log 3 for the undesirable [3]; mismatched they are the same, so z = log(18)/2."""
    trial = pair_trial(*half_quarter())
    good = {"prompt_ids": [4], "completion_ids": [2], "label": True}
    bad = {"prompt_ids": [5, 6], "completion_ids": [3], "label": False}
    each = 1 / (1 + math.sqrt(2))  # 1 - sigmoid(log(2) / 2), for both
    for weights in [(1.0, 1.0), (2.0, 0.5)]:
        trainer = ours.preference_trainer("KTO", trial, beta=1.0, desirable_weight=weights[0], undesirable_weight=weights[1])
        value, measured = ours.loss(trainer, trainer.data_collator(mismatched([good, bad])))
        assert measured["kl"] == pytest.approx(math.log(18) / 2, abs=1e-5)
        assert value.item() == pytest.approx(each * sum(weights) / 2, abs=1e-6)


def test_labels_go_by_the_mean_and_what_equals_it_has_none():
    rollout = responses([[2], [3], [4, 4], [5], [6]], [[7]] * 5)
    examples, ties = labelled(rollout, torch.tensor([1.0, 0.0, 0.5, float("nan"), 0.5]))
    assert ties == 2
    assert [(e["completion_ids"], e["label"]) for e in examples] == [([2], True), ([3], False)]
    alike = responses([[2]] * 1000, [[7]] * 1000)
    assert labelled(alike, torch.full((1000,), 0.7)) == ([], 1000)  # though 0.7 is no float32


def test_mismatched_moves_responses_on_by_one():
    rows = [{"prompt_ids": [i], "completion_ids": [10 + i]} for i in range(3)]
    assert [(r["prompt_ids"], r["KL_completion_ids"]) for r in mismatched(rows)] == [([0], [12]), ([1], [10]), ([2], [11])]


def test_half_of_kto_s_batch_is_undesirable(monkeypatch):
    trial, labels = pair_trial(), []
    monkeypatch.setattr("harness.methods.kto.mismatched", lambda b: labels.extend(r["label"] for r in b) or mismatched(b))
    run(make_quick(KTO, batch_size=10), trial, 3)
    assert labels == ([True] * 5 + [False] * 5) * 3
