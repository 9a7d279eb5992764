"""REINFORCE++: its first step against the exact gradient, its advantages and its clipped step by hand, how it resumes."""

from __future__ import annotations

import math

import pytest
import torch
from exact_steps import BETA, DRAWS, agree
from tiny import tiny_gpt2
from trials import new_trial, pair_trial, resumed, run, same, weights

from harness.methods.reinforce_pp import ReinforcePP, ReinforcePPSettings, advantages
from harness.policy.logprobs import token_logprobs


def test_the_first_step_is_the_gradient_of_the_regularised_reward(moved, tables):
    """Whitening changes its length only."""
    settings = ReinforcePPSettings(kl_coef=BETA, explore_prompts=DRAWS, minibatches=1)
    cosine, _ = agree("reinforce_pp", ReinforcePP(settings), "regularised reward", moved, tables)
    assert cosine >= 0.99


def test_advantages_by_hand():
    """Scores 1 and 0, beta 0.5: before whitening 1 - 0.5 * (2 - 1), 1 + 0.5 and 0 - 0.5 * 4; their mean is 0, variance 3.25."""
    mask = torch.tensor([[True, True], [True, False]])
    got = advantages(torch.tensor([1.0, 0.0]), torch.tensor([[2.0, -1.0], [4.0, 0.0]]), mask, 0.5)
    assert got.flatten().tolist() == pytest.approx([x / math.sqrt(3.25) for x in (0.5, 1.5, -2.0, 0.0)])


@pytest.mark.parametrize(
    ("advantage", "old", "moves"), [(1.0, 0.5, False), (1.0, 1.5, True), (-1.0, 1.5, False), (-1.0, 0.5, True)]
)
def test_a_ratio_beyond_the_clip_range_stops_what_it_has_done_already(advantage, old, moves):
    """The old policy gave `old` times the present probability, so rho is 2 or 2 / 3: beyond 1 + eps or below 1 - eps."""
    policy = tiny_gpt2()
    trial = pair_trial(policy, tiny_gpt2(seed=1))
    trial.update = lambda loss: loss.backward()
    rollout = trial.sample(trial.prompts(4))
    now = token_logprobs(policy.logits(rollout), rollout.response).detach()
    part = {"tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask, "response": rollout.response}
    part |= {"response_mask": rollout.response_mask, "logprobs": now + math.log(old)}
    part["advantage"] = advantage * rollout.response_mask.float()
    facts = ReinforcePP(ReinforcePPSettings(clip_range=0.2))._learn(trial, part)
    steepest = max(p.grad.abs().max().item() for p in policy.model.parameters() if p.grad is not None)
    assert (steepest > 1e-6) == moves and facts["clipped"] == 1.0


@pytest.mark.parametrize("at", [1, 4])  # within a rollout, between two
def test_a_killed_reinforce_pp_goes_on_bit_for_bit(at, tmp_path):
    method = ReinforcePP(ReinforcePPSettings(explore_prompts=16, minibatches=4))
    whole, half = new_trial(updates=8), new_trial(updates=8)
    rows = run(method, whole, 8)
    assert run(method, half, at) == rows[:at]
    again = resumed(half, tmp_path)
    assert run(method, again, 8 - at) == rows[at:]
    assert same(weights(whole.policy), weights(again.policy)) and whole.cost == again.cost
