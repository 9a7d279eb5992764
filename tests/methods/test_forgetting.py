"""Methods that push bad samples down forget what is as bad as at the start, never the worst of what has become good."""

from __future__ import annotations

import pytest
import torch
from trials import new_trial

from harness.methods.gradient_ascent import GradientAscent, GradientAscentSettings
from harness.methods.npo import NPO, NPOSettings
from harness.methods.rmu import RMU, RMUSettings
from harness.methods.simnpo import SimNPO, SimNPOSettings
from harness.methods.unlikelihood import Unlikelihood, UnlikelihoodSettings

SMALL = {"explore_every": 1, "explore_prompts": 10, "batch_size": 10, "num_quantiles": 5}
METHODS = {
    "gradient_ascent": GradientAscent(GradientAscentSettings(**SMALL)),
    "npo": NPO(NPOSettings(**SMALL)),
    "rmu": RMU(RMUSettings(**SMALL)),
    "simnpo": SimNPO(SimNPOSettings(**SMALL)),
    "unlikelihood": Unlikelihood(UnlikelihoodSettings(**SMALL)),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_forgotten_lies_below_the_line_of_the_first_exploration(name, monkeypatch):
    """Half of the first exploration has the top reward; later ones have nothing else: the worst fifth becomes good."""
    trial, rewards, forgotten = new_trial(updates=6), {}, []

    def reward(rollout):
        found = torch.ones(len(rollout.response))
        if not rewards:
            found[: len(found) // 2] = torch.tensor([0.0, 0.2, 0.2, 0.4, 0.6])
        for row, value in zip(rollout.response.tolist(), found.tolist(), strict=True):
            rewards.setdefault(tuple(row), value)
            rewards[tuple(row)] = min(rewards[tuple(row)], value)
        return found

    def learned(trial, first, second, *rest):
        bad = first if name != "unlikelihood" else first.rows(second.any(1))  # unlikelihood has one batch and masks
        forgotten.append([rewards[tuple(row)] for row in bad.response.tolist()])
        trial.update(trial.policy.logits(first).sum() * 0)
        return {}

    monkeypatch.setattr(trial, "reward", reward)
    monkeypatch.setattr(METHODS[name], "_learn", learned)
    for _, _ in zip(range(6), METHODS[name].train(trial), strict=False):
        pass
    assert len(forgotten) == 6 and all(forgotten)
    assert max(max(found) for found in forgotten) <= 0.2 + 1e-6
    if name == "unlikelihood":
        assert [len(found) for found in forgotten] == [2] * 6  # a fifth of the batch, whatever the pool has become
