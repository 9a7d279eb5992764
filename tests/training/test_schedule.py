"""The schedule of a base policy's training: that of PyTorch, whose steps a run can take up anywhere."""

from __future__ import annotations

import pytest
import torch

from harness.core.errors import BadSetting
from harness.training.schedule import one_cycle
from harness.training.trial import OptimizerSettings


@pytest.mark.parametrize(("updates", "warm"), [(40, 2), (40, 8), (7, 3)])
def test_one_cycle_is_pytorch_s(updates, warm):
    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=3e-3, total_steps=updates, pct_start=warm / updates)
    for lr, first in one_cycle(3e-3, updates, warm):
        group = adam.param_groups[0]
        assert (lr, first) == (group["lr"], group["betas"][0])
        adam.step()
        cycle.step()


@pytest.mark.parametrize(("updates", "warm"), [(1, 0), (1, 1), (2, 1), (6, 10), (2, 2), (3, 3)])
def test_short_cycles_and_long_warm_ups_have_rates(updates, warm):
    rates = one_cycle(1e-2, updates, warm)
    assert len(rates) == updates and all(0 < lr <= 1e-2 and 0.8 < first < 1 for lr, first in rates)


def test_one_cycle_needs_a_number_of_updates():
    with pytest.raises(BadSetting, match=r"give budget\.updates"):
        one_cycle(1e-2, None, 10)


def test_weight_decay_enters_the_identity_only_where_there_is_some():
    assert "weight_decay" not in OptimizerSettings().identity()
    assert OptimizerSettings(weight_decay=0.1).identity()["weight_decay"] == 0.1
