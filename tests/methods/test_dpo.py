"""DPO: its loss in closed form, and which responses make a pair."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import half_quarter, responses
from trials import pair_trial

from harness.methods.dpo import preferences
from harness.training import trl_bridge as ours


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_loss_of_dpo_in_closed_form(beta):
    """Chosen [2, 2] has ratio 6 * 6, rejected [3] has 3: the margin is log 12."""
    trial = pair_trial(*half_quarter())
    pair = {"prompt_ids": [4, 5], "chosen_ids": [2, 2], "rejected_ids": [3]}
    for variant, answer in {
        "sigmoid": math.log(1 + 12**-beta),
        "ipo": (math.log(2) - 1 / (2 * beta)) ** 2,  # means over tokens: log 6 - log 3
    }.items():
        trainer = ours.preference_trainer("DPO", trial, beta=beta, loss_type=[variant])
        value, measured = ours.loss(trainer, trainer.data_collator([pair, pair]))
        assert value.item() == pytest.approx(answer, abs=1e-6)
        assert measured["rewards/margins"] == pytest.approx(beta * math.log(12), abs=1e-5)


def test_the_better_response_is_chosen_and_ties_are_dropped():
    nan = float("nan")
    reward = torch.tensor([[0.2, 0.9], [0.9, 0.2], [0.5, 0.5], [nan, 0.4], [nan, nan]])
    rollout = responses([[i, i] if i % 2 else [i] for i in range(2, 12)], [[2] * (1 + i // 2) for i in range(10)])
    pairs, ties = preferences(rollout, reward)
    assert ties == 1
    assert pairs == [
        {"prompt_ids": [2], "chosen_ids": [3, 3], "rejected_ids": [2]},
        {"prompt_ids": [2, 2], "chosen_ids": [4], "rejected_ids": [5, 5]},
    ]


def test_of_many_responses_the_best_and_the_worst_make_the_pair():
    rollout = responses([[i] for i in range(2, 10)], [[2]] * 4 + [[3, 4]] * 4)
    reward = torch.tensor([[0.3, float("nan"), 0.1, 0.8], [0.5, 0.5, float("nan"), 0.5]])
    assert preferences(rollout, reward) == ([{"prompt_ids": [2], "chosen_ids": [5], "rejected_ids": [4]}], 1)
