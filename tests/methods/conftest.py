"""What the exact gradients of several methods are taken at, made once a process."""

import pytest
import torch
import world
from exact_steps import BETA


@pytest.fixture(scope="session")
def moved():
    """A policy some way from the base, at which gradients are taken: neither a start nor an optimum."""
    return world.perturbed(world.policy(), 0.1, seed=1)


@pytest.fixture(scope="session")
def tables():
    """log pi0, the posterior and the rewards: [X, N], [X, N], [N]."""
    base, reward = world.log_probs(world.policy()), world.rewards()
    return torch.tensor(base), torch.tensor(world.tilted(base, reward, 1 / BETA)), torch.tensor(reward)
