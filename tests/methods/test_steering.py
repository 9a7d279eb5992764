"""Steering: the vector is the difference of two means, worked by hand, and it is added as often as the coefficient says."""

from __future__ import annotations

import pytest
import torch
from closed_forms import responses
from tiny import tiny_gpt2
from trials import new_trial, run

from harness.core.errors import RunFailed
from harness.methods.steering import Steering, SteeringSettings, mean_activation

REWARD = torch.tensor([0.9, 0.1, float("nan"), 0.2, 0.7])
ROWS = [[2, 3, 4], [5, 6], [7], [8], [9, 10]]


def worked(coefficient: float = 1.0, reward: torch.Tensor = REWARD):
    """A trial whose one exploration is these five responses to one prompt; the worst two fifths of the scored are bad."""
    trial, rollout = new_trial(tiny_gpt2()), responses(ROWS, [[4, 11]] * 5)
    trial.sample, trial.reward = lambda prompts, policy: rollout, lambda _: reward
    settings = SteeringSettings(coefficient=coefficient, depth=0.0, num_quantiles=3, explore_prompts=5)
    assert run(Steering(settings), trial, 1) == []
    return trial, rollout


@torch.no_grad()
def test_the_vector_is_the_mean_of_the_good_less_that_of_the_bad():
    """Of [2, 3, 4] and [9, 10] less that of [5, 6] and [8], each over all tokens; what has no reward is left out."""
    trial, _ = worked()
    model = tiny_gpt2().model

    def at(row):  # what the first of two layers leaves where each token of a response is predicted
        return model(input_ids=torch.tensor([[4, 11, *row]]), output_hidden_states=True).hidden_states[1][0, 1:-1]

    good, bad = (torch.cat([at(ROWS[i]) for i in rows]).mean(0) for rows in ((0, 4), (1, 3)))
    torch.testing.assert_close(trial.deployed.model.vector, good - bad, atol=1e-5, rtol=1e-4)
    assert trial.deployed.model.layer == 0 and trial.cost.updates == 0


@torch.no_grad()
def test_the_coefficient_multiplies_the_vector_and_0_is_the_base():
    (one, rollout), (three, _), (none, _) = worked(), worked(3.0), worked(0.0)
    torch.testing.assert_close(three.deployed.model.vector, 3 * one.deployed.model.vector)
    mask = rollout.response_mask
    torch.testing.assert_close(none.deployed.logits(rollout)[mask], none.reference.logits(rollout)[mask])
    assert not torch.allclose(one.deployed.logits(rollout)[mask], one.reference.logits(rollout)[mask])


def test_the_pass_over_the_exploration_is_charged():
    trial, _ = worked()
    assert trial.cost.forward_tokens == 4 * 2 + 8 and trial.cost.trained_tokens == 0  # without the one that has no reward


@torch.no_grad()
def test_means_do_not_depend_on_how_rows_are_batched(monkeypatch):
    policy, rollout = tiny_gpt2(), responses(ROWS, [[4, 11]] * 5)
    whole = mean_activation(policy, rollout, 1)
    monkeypatch.setattr("harness.methods.steering.BATCH", 2)
    torch.testing.assert_close(mean_activation(policy, rollout, 1), whole)


def test_equal_rewards_give_no_direction():
    with pytest.raises(RunFailed, match="nothing to forget"):
        worked(reward=torch.full((5,), 0.5))
