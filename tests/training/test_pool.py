"""The pool of scored responses: its quantiles, what it draws, and its state."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from closed_forms import responses
from hand_worked import batch
from scipy import stats
from scored_documents import NAN
from tiny import rng

from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout
from harness.training.pool import Pool


def rollout(n: int, offset: int = 0) -> Rollout:
    """n responses, each of which carries its own number as its first token."""
    prompts = Prompts(torch.full((n, 2), 3), torch.ones(n, 2, dtype=torch.bool))
    response = torch.stack([torch.arange(n) + offset, torch.ones(n, dtype=torch.long)], 1)
    return Rollout(prompts, response, torch.ones(n, 2, dtype=torch.bool))


def test_quantiles_are_equal_parts_by_rank_worst_first():
    pool = Pool()
    pool.add(rollout(5), torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7]))
    pool.add(rollout(5, 5), torch.tensor([0.0, 1.0, 0.2, 0.8, 0.6]))
    pool.quantize(5, rng())
    assert pool.quantile.tolist() == [2, 0, 4, 1, 3, 0, 4, 1, 3, 2]
    drawn, _ = pool.draw(200, rng(), quantile=4)
    assert set(drawn.response[:, 0].tolist()) == {2, 6}
    drawn, quantile = pool.draw(2000, rng())
    assert stats.chisquare(list(Counter(quantile.tolist()).values())).pvalue > 1e-3


def test_ties_fall_at_random_and_not_by_age():
    """4 old and 6 new of one reward: the authors' stable sort puts every old one into the best quantiles."""
    old = np.zeros(5)
    for seed in range(400):
        pool = Pool()
        pool.add(rollout(4), torch.full((4,), 0.5))
        pool.add(rollout(6, 4), torch.full((6,), 0.5))
        pool.quantize(5, rng(seed))
        assert torch.bincount(pool.quantile).tolist() == [2] * 5
        old += torch.bincount(pool.quantile[:4], minlength=5).numpy()
    assert stats.chisquare(old).pvalue > 1e-3


def test_unscored_responses_stay_out_of_the_pool():
    pool = Pool()
    pool.add(rollout(6), torch.tensor([0.1, torch.nan, 0.3, torch.nan, 0.5, 0.6]))
    pool.quantize(2, rng())
    assert pool.quantile.tolist() == [0, 0, 1, 1]
    assert {r[0] for r in pool.draw(100, rng())[0].response.tolist()} == {0, 2, 4, 5}
    assert pool.mean_reward() == pytest.approx(0.375)


def test_a_pool_smaller_than_its_quantiles():
    pool = Pool()
    pool.add(rollout(3), torch.zeros(3))
    with pytest.raises(RunFailed, match=r"3 scored responses, fewer than its 5 quantiles; raise explore_prompts"):
        pool.quantize(5, rng())


def test_a_pool_survives_its_state():
    pool, twin = Pool(), Pool()
    pool.add(rollout(6), torch.rand(6, generator=rng()))
    pool.quantize(3, rng())
    twin.load_state_dict(pool.state_dict())
    a, b = pool.draw(20, rng(5)), twin.draw(20, rng(5))
    assert torch.equal(a[0].response, b[0].response) and torch.equal(a[1], b[1])


def test_the_pool_draws_with_rewards_and_not_from_nothing():
    pool = Pool()
    pool.add(batch(), torch.tensor([0.1, NAN, 0.7]))
    rollout, reward = pool.draw_scored(200, rng())
    first = {2: 0.1, 10: 0.7}
    assert [first[int(t)] for t in rollout.response[:, 0]] == pytest.approx(reward.tolist()) and len(set(reward.tolist())) == 2
    empty = Pool()
    empty.add(batch(), torch.tensor([NAN, NAN, NAN]))
    with pytest.raises(RunFailed, match="no scored response"):
        empty.draw_scored(2, rng())


def test_a_pool_is_drawn_from_a_range_of_quantiles():
    pool = Pool()
    pool.add(responses([[i] for i in range(2, 12)], [[2]] * 10), torch.arange(10) / 10)
    pool.quantize(5, rng())
    drawn, quantile = pool.draw(300, rng(), quantile=range(1, 5))
    assert set(quantile.tolist()) == {1, 2, 3, 4} and set(drawn.response.flatten().tolist()) == set(range(4, 12))
