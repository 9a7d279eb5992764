"""RLOO: its advantages by hand, and its mean update against the exact gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import world
from closed_forms import REWARDS, eight, gradient, half_quarter
from torch import Tensor
from toy_task import SameLength
from trials import make_quick, pair_trial, run

from harness.core.types import Decoding, Prompts, Rollout
from harness.methods.rloo import RLOO, RLOOSettings
from harness.policy.policy import Policy
from harness.training import trl_bridge as ours
from harness.training.trial import Budget, Trial


def test_the_advantages_of_rloo_by_hand():
    trial = pair_trial(*half_quarter())
    plain = ours.group_trainer("RLOO", trial, group_size=4, batch_size=8, kl_coef=0.0)
    by_hand = [1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0, 0, 0, 0, 0]
    assert ours.score(plain, eight(), REWARDS)["advantages"].tolist() == pytest.approx(by_hand, abs=1e-6)
    held = ours.group_trainer("RLOO", trial, group_size=4, batch_size=8, kl_coef=0.1)
    six, three = 0.1 * math.log(6), 0.1 * math.log(3)
    q = [1 - six, -three, 0.5 - 2 * six, 0.25 - six, 0.25 - three, 0.25 - 2 * three, 0.25 - six]
    first = [q[0] - (q[1] + q[2]) / 2, q[1] - (q[0] + q[2]) / 2, q[2] - (q[0] + q[1]) / 2, 0]
    second = [own - (sum(q[3:]) - own) / 3 for own in q[3:]]
    assert ours.score(held, eight(), REWARDS)["advantages"].tolist() == pytest.approx(first + second, abs=1e-5)


class WorldTask:
    """The enumerable world, every prompt equally often."""

    decoding = Decoding(max_new_tokens=world.STEPS)

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        every = world.prompts()
        return Prompts(*(x.repeat(n // len(world.PROMPTS), 1) for x in every))

    def reward(self, rollout: Rollout) -> Tensor:
        return torch.tensor(world.rewards()[world.index(rollout.response)], dtype=torch.float32)


def exact_log_probs(policy: Policy) -> Tensor:
    """log pi(y | x) of every response, with its gradient: -> [X, N]; a prompt at a time, no padding before it."""
    tokens = torch.tensor([[*r, *[world.EOS] * (world.STEPS - len(r))] for r in world.RESPONSES])
    counts = torch.tensor([[t < len(r) for t in range(world.STEPS)] for r in world.RESPONSES])
    table = []
    for prompt in world.PROMPTS:
        paths = torch.cat([torch.tensor(prompt).expand(len(tokens), -1), tokens], 1)
        logits = policy.model(input_ids=paths).logits[:, len(prompt) - 1 : -1]
        table.append((logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * counts).sum(1))
    return torch.stack(table)


def test_the_expected_update_of_rloo_is_the_exact_gradient():
    """Of E[r] - beta * KL(policy || reference), by enumeration of all 341 responses to 8 prompts."""
    base, beta = world.policy(), 0.3
    policy = world.perturbed(base, 0.2, seed=3).requires_grad_(True)
    trial = Trial(policy, base.frozen_copy(), WorldTask(), seed=0, budget=Budget(updates=9), lr=1.0)
    trial.update = lambda loss: loss.backward()
    method = RLOO(RLOOSettings(kl_coef=beta, group_size=4, batch_size=8 * 4 * 256))
    run(method, trial, 2)  # 16,384 responses
    found = -gradient(policy)
    policy.zero_grad()
    log_p, log_q = exact_log_probs(policy), torch.tensor(world.log_probs(base))
    assert np.allclose(log_p.detach(), world.log_probs(policy), atol=1e-4)
    value = torch.tensor(world.rewards()) - beta * (log_p - log_q)
    (log_p.exp() * value).sum(1).mean().backward()
    cosine = torch.cosine_similarity(found, gradient(policy), dim=0).item()
    length = (found.norm() / 2 / gradient(policy).norm()).item()
    print(f"\nrloo: cosine {cosine:.4f} with the exact gradient, length ratio {length:.3f}")
    assert cosine >= 0.99 and length == pytest.approx(1, abs=0.05)


def test_a_second_update_on_a_rollout_samples_nothing():
    trial = pair_trial(task=SameLength())
    run(make_quick(RLOO, explore_every=3), trial, 3)
    assert (trial.cost.sampled_tokens, trial.cost.forward_tokens, trial.cost.trained_tokens) == (80, 8 + 2 * 112, 3 * 112)
