"""Steering: the vector is the difference of two means, worked by hand, and it is added as often as the coefficient says."""

from __future__ import annotations

import pytest
import torch
from closed_forms import responses
from tiny import tiny_gpt2
from trials import new_trial, run

from harness.core.errors import RunFailed
from harness.methods.steering import Steering, SteeringSettings, mean_activation, pairs

NAN = float("nan")
REWARD = torch.tensor([0.9, 0.1, NAN, 0.15, 0.2, 0.7, 0.8, 0.9])  # two responses to each of four prompts
ROWS = [[2, 3, 4], [5, 6], [7], [3], [8], [9, 10], [2, 2], [6]]
PROMPTS = [row for prompt in ([4, 11], [5, 11], [6, 11], [7, 11]) for row in (prompt, prompt)]


def worked(coefficient: float = 1.0, reward: torch.Tensor = REWARD):
    """A trial whose one exploration gives these responses; 0.2 and below is bad: the first and third prompt have pairs."""
    trial, rollout = new_trial(tiny_gpt2()), responses(ROWS, PROMPTS)
    trial.sample, trial.reward = lambda prompts, policy, n: rollout, lambda _: reward
    settings = SteeringSettings(coefficient=coefficient, depth=0.0, num_quantiles=3, explore_prompts=4)
    assert run(Steering(settings), trial, 1) == []
    return trial, rollout


@torch.no_grad()
def test_the_vector_is_what_sets_the_good_apart_from_the_bad_under_one_prompt():
    """Of [2, 3, 4] less [5, 6] and of [9, 10] less [8], each its mean over tokens; a prompt with two good says nothing."""
    trial, _ = worked()
    model = tiny_gpt2().model

    def at(i):  # what the first of two layers leaves where the tokens of a response are predicted
        ids = torch.tensor([[*PROMPTS[i], *ROWS[i]]])
        return model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, 1:-1].mean(0)

    expected = ((at(0) - at(1)) + (at(5) - at(4))) / 2
    torch.testing.assert_close(trial.deployed.model.vector, expected, atol=1e-5, rtol=1e-4)
    assert trial.deployed.model.layer == 0 and trial.cost.updates == 0


@torch.no_grad()
def test_the_good_and_the_bad_of_a_pair_have_one_prompt():
    """Prompts with much of the habit have other activations whatever the response; two responses to each share that."""
    good, bad = pairs(torch.tensor([0.1, 0.9, 0.8, 0.9, 0.9, 0.2, 0.1, 0.2, NAN, 0.1]), 0.2)
    assert good.tolist() == [1, 4] and bad.tolist() == [0, 5] and (good // 2).tolist() == (bad // 2).tolist()


@torch.no_grad()
def test_the_coefficient_multiplies_the_vector_and_0_is_the_base():
    (one, rollout), (three, _), (none, _) = worked(), worked(3.0), worked(0.0)
    torch.testing.assert_close(three.deployed.model.vector, 3 * one.deployed.model.vector)
    mask = rollout.response_mask
    torch.testing.assert_close(none.deployed.logits(rollout)[mask], none.reference.logits(rollout)[mask])
    assert not torch.allclose(one.deployed.logits(rollout)[mask], one.reference.logits(rollout)[mask])


def test_the_pass_over_the_exploration_is_charged():
    trial, _ = worked()
    assert trial.cost.forward_tokens == 4 * 2 + 8 and trial.cost.trained_tokens == 0  # two pairs, of 3, 2, 1 and 2 tokens


@torch.no_grad()
def test_means_do_not_depend_on_how_rows_are_batched(monkeypatch):
    policy, rollout = tiny_gpt2(), responses(ROWS, PROMPTS)
    whole = mean_activation(policy, rollout, 1)
    monkeypatch.setattr("harness.methods.steering.BATCH", 2)
    torch.testing.assert_close(mean_activation(policy, rollout, 1), whole)


def test_equal_rewards_give_no_direction():
    with pytest.raises(RunFailed, match="nothing to forget"):
        worked(reward=torch.full((8,), 0.5))


def test_without_a_pair_there_is_no_direction():
    with pytest.raises(RunFailed, match="none of 4 prompts has a good and a bad response among its two"):
        worked(reward=torch.tensor([0.1, 0.1, 0.9, 0.9, NAN, 0.1, 0.9, 0.9]))
