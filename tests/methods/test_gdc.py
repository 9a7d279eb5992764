"""Distributional control: its step against the exact gradient of each divergence, and its weights by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_steps import BETA, DIVERGENCES, DRAWS, agree
from pydantic import ValidationError
from toy_task import ToyTask
from trials import new_trial

from harness.methods import gdc
from harness.methods.gdc import GDC, GDCSettings


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_step_of_gdc_is_the_gradient_of_its_divergence(divergence, moved, tables):
    method = GDC(GDCSettings(divergence=divergence, kl_coef=BETA, samples=128, batch_size=DRAWS))
    cosine, ratio = agree(f"gdc, {divergence}", method, divergence, moved, tables)
    assert cosine >= 0.99 and ratio == pytest.approx(1, abs=0.15)  # Z is estimated: a bias of order 1/128


def test_gdc_asks_nothing_of_a_policy_at_its_target():
    """All weights of a prompt are then one: t is 1, whatever Z is."""
    log_w = torch.tensor([3.0, 3.0, -40.0, -40.0])
    assert gdc.log_t(log_w, 2).flatten().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert gdc.log_t(torch.tensor([0.0, 3.0]).log(), 2)[0, 1].item() == pytest.approx(-np.log(2))  # Z is 1.5, w is 3


def test_an_unscored_response_leaves_its_whole_prompt_out():
    trial = new_trial(task=ToyTask(unscored=5))
    rollout, reward = GDC(GDCSettings(batch_size=12, samples=4))._sample(trial)
    assert len(reward) == len(rollout.response) == 4 and not reward.isnan().any()


def test_a_batch_of_part_of_a_prompt():
    with pytest.raises(ValidationError, match="batch_size 10 should be a multiple of samples 4"):
        GDCSettings(batch_size=10, samples=4)


def test_the_baseline_of_a_prompt_leaves_the_response_itself_out():
    """Any baseline would pass the test of the mean step; this one is what keeps the noise down."""
    rows = gdc.against_the_others(torch.tensor([[1.0, 3.0], [0.0, 5.0]]))
    assert rows.flatten().tolist() == pytest.approx([-2, 2, -5, 5])
