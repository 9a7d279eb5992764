"""Random reward: its step is the KL's alone, and it gains nothing."""

from __future__ import annotations

import torch
import world
from exact_steps import BETA, DRAWS, MILD, agree, exact, expected, trained
from trials import new_trial

from harness.methods.random_reward import RandomReward, RandomRewardSettings
from harness.methods.reinforce import Reinforce, ReinforceSettings


def test_the_step_of_random_reward_is_the_kl_s_alone(moved, tables):
    """Noise adds nothing to the mean step; without the KL only noise is left, shorter by the root of the batch."""
    method = RandomReward(RandomRewardSettings(kl_coef=BETA, batch_size=DRAWS))
    silent = (tables[0], tables[1], torch.zeros_like(tables[2]))
    cosine, _ = agree("random_reward", method, "regularised reward", moved, silent)
    assert cosine >= 0.99
    noise = expected(RandomReward(RandomRewardSettings(kl_coef=0, batch_size=DRAWS)), moved).norm()
    assert noise < 0.1 * exact("regularised reward", moved, tables).norm()


def test_random_reward_gains_nothing():
    """Beside what reinforce gains in the same number of updates of the same size."""
    base, policy = trained(RandomReward(RandomRewardSettings(kl_coef=BETA, batch_size=192)), updates=40)
    _, real = trained(Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=192)), updates=40)
    gains = [(world.expected(p, MILD) - world.expected(base, MILD)).mean() for p in (policy, real)]
    print(f"\nreward gained: random {gains[0]:+.4f}, reinforce {gains[1]:+.4f}")
    assert abs(gains[0]) < 0.1 * gains[1]


def test_random_reward_asks_no_scorer():
    trial = new_trial()
    next(RandomReward(RandomRewardSettings(batch_size=4)).train(trial))
    assert trial.cost.scorer_calls == 0 and trial.cost.updates == 1
