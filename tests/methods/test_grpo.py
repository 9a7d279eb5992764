"""GRPO: its advantages and its loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import REWARDS, eight, half_quarter
from trials import pair_trial

from harness.methods.grpo import GRPO, GRPOSettings
from harness.training import trl_bridge as ours


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_advantages_of_grpo_by_hand(scale):
    trainer = GRPO(GRPOSettings(scale=scale, kl_coef=0.0, group_size=4, batch_size=8))._trainer(pair_trial(*half_quarter()))
    deviation = 0.5 + 1e-4 if scale == "group" else 1  # of 1, 0 and 0.5, unbiased
    by_hand = [0.5 / deviation, -0.5 / deviation, 0, 0, 0, 0, 0, 0]
    assert ours.score(trainer, eight(), REWARDS)["advantages"].tolist() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_loss_of_grpo_by_hand(loss_type):
    """k3 is 1/6 + log 6 - 1 at a 2 and 1/3 + log 3 - 1 at a 3; the advantage counts once a token."""
    settings = GRPOSettings(loss_type=loss_type, scale="none", kl_coef=0.1, group_size=4, batch_size=8)
    trainer = GRPO(settings)._trainer(pair_trial(*half_quarter()))
    value, measured = ours.loss(trainer, ours.score(trainer, eight(), torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0])))
    two, three = 1 / 6 + math.log(6) - 1, 1 / 3 + math.log(3) - 1
    if loss_type == "dapo":  # of 10 tokens; the advantages +1/2, -1/2, +1/2 twice, -1/2 leave 1/2
        answer = -0.5 / 10 + 0.1 * (5 * two + 5 * three) / 10
    else:
        answer = 0.1 * (4 * two + 4 * three) / 8
    assert value.item() == pytest.approx(answer, abs=1e-6)
    assert measured["clip_ratio/region_mean"] == 0
