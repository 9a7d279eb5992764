"""The judge's score of the optimal policy at the same reward, by hand and against its definition."""

import numpy as np
import pytest

from harness.measure.frontier import estimate
from harness.measure.optimum import judge_along, judge_at_reward


@pytest.fixture
def base():
    rng = np.random.default_rng(0)
    reward = rng.integers(0, 6, (40, 64)) / 5
    return reward, (rng.random(reward.shape) < 0.2 + 0.7 * reward).astype(float)


def test_its_mean_is_the_judge_of_the_tilted_policy_with_that_reward(base):
    """Read off the curve of the frontier at the policy's mean reward, not at its KL."""
    reward, judge = base
    frontier = estimate(reward)
    along = judge_along(frontier, reward, judge)["judge"]
    for shift in (0.05, 0.2):
        policy = reward.mean(1) + shift
        lam = frontier.place(policy, np.full(40, 0.5)).lam
        found = judge_at_reward(reward, judge, policy, lam)
        assert found.mean() == pytest.approx(np.interp(policy.mean(), frontier.reward, along), abs=2e-3)


def test_its_spread_holds_the_error_of_the_reward(base):
    """A policy with a reward higher by d has a J* higher by the slope times d, whichever prompt d comes from."""
    reward, judge = base
    frontier = estimate(reward)
    policy, step = reward.mean(1) + 0.1, np.zeros(40)
    step[3] = 0.04

    def at(rewards):
        return judge_at_reward(reward, judge, rewards, frontier.place(rewards, np.full(40, 0.5)).lam)

    moved, before = at(policy + step), at(policy)
    influence = (before[3] + (moved.mean() - before.mean()) * 40 - before[3]) / 0.04
    lam = frontier.place(policy, np.full(40, 0.5)).lam
    one, two = (judge_at_reward(reward, judge, rewards, lam) for rewards in (policy, policy + step))
    assert influence == pytest.approx((two - one)[3] / 0.04 * 40 / 39, rel=0.05)


def test_unscored_responses_and_prompts_are_left_out():
    reward = np.array([[0.0, 1.0, np.nan], [0.5, 1.0, 1.0], [np.nan, np.nan, np.nan]])
    judge = np.array([[0.0, 0.5, 1.0], [np.nan, 1.0, 0.0], [1.0, 1.0, 1.0]])
    found = judge_at_reward(reward, judge, np.array([0.5, 1.0, 0.3]), 0.0)
    assert np.isnan(found[2]) and np.nanmean(found) == pytest.approx((0.25 + 0.5) / 2)
    assert np.nanmean(judge_at_reward(reward, judge, np.array([1.0, 1.0, 1.0]), np.inf)) == pytest.approx((0.5 + 0.5) / 2)
