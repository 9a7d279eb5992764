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
from tiny import TINY, left_padded, ragged_rows, rng, tiny_gpt2
from together import together

from harness.conformance.toy import ToyTask
from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout
from harness.policy.policy import Policy, tokens_of
from harness.training import pool as pool_module
from harness.training.pool import Pool, packed, unpacked
from harness.training.trial import Budget, Trial


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


def ragged(n: int, seed: int = 0) -> Rollout:
    """Prompts of 1 to 5 tokens and responses of 1 to 6, of the toy policy's vocabulary."""
    prompts = left_padded(ragged_rows(tuple(1 + i % 5 for i in range(n)), seed=seed))
    response = torch.randint(2, 12, (n, 6), generator=rng(seed))
    return Rollout(prompts, response, torch.arange(6) < 1 + torch.randint(6, (n, 1), generator=rng(seed + 1)))


@pytest.mark.parametrize("largest", [11, 2**15 + 7, 2**16 - 1, 2**16 + 3])
def test_what_is_packed_is_unpacked(largest):
    """Ids beyond 15 bits are read without a sign, those beyond 16 bits in a wider type."""
    given = ragged(9)
    given.response[0, 0] = largest
    found = unpacked(packed(given))
    for ours, theirs, counts in (
        (found.response, given.response, given.response_mask),
        (*_tokens(found, given), given.prompts.mask),
    ):
        assert torch.equal(ours[counts], theirs[counts])
    assert torch.equal(found.response_mask, given.response_mask) and torch.equal(found.prompts.mask, given.prompts.mask)


def _tokens(*rollouts: Rollout) -> list[torch.Tensor]:
    return [rollout.prompts.tokens for rollout in rollouts]


def test_a_checkpoint_that_holds_masks_is_read():
    given, pool = ragged(8), Pool()
    old = {"tokens": given.prompts.tokens, "mask": given.prompts.mask, "response": given.response}
    old |= {"response_mask": given.response_mask, "reward": torch.arange(8) / 8}
    pool.load_state_dict({"parts": [old], "quantile": torch.arange(8)})
    drawn, quantile = pool.draw(20, rng())
    assert torch.equal(drawn.response, given.response[quantile]) and torch.equal(
        drawn.response_mask, given.response_mask[quantile]
    )


def test_explorations_lie_across_blocks_as_in_one(monkeypatch):
    """Explorations of 0 to 21 responses in blocks of 8: the same quantiles, draws, means and state as in one block."""
    sizes = (5, 3, 0, 21, 8, 0, 2)

    def explored() -> tuple[Pool, list[float]]:
        pool, means = Pool(), []
        for i, n in enumerate(sizes):
            pool.add(ragged(21, seed=i), (torch.randint(4, (21,), generator=rng(i)) / 4).where(torch.arange(21) < n, NAN))
            means += [pool.mean_reward()] if n else []
        pool.quantize(3, rng())
        return pool, means

    def drawn(pool: Pool) -> list[torch.Tensor]:
        return [pool.quantile, *flat(pool.draw(60, rng(2))), *flat(pool.draw_scored(60, rng(2)))]

    plain, means = explored()
    expected = drawn(plain)
    monkeypatch.setattr(pool_module, "BLOCK", 8)
    pool, found = explored()
    twin = Pool()
    twin.load_state_dict(pool.state_dict())
    assert len(pool) == 39 and found == means
    for one in (pool, twin):
        assert all(torch.equal(a, b) for a, b in zip(drawn(one), expected, strict=True))


def flat(drawn: tuple[Rollout, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    rollout, beside = drawn
    return *rollout.prompts, rollout.response, rollout.response_mask, beside


def test_quantiles_are_the_ranks_among_shuffled_rewards():
    reward = torch.randint(7, (500,), generator=rng()) / 7
    pool = Pool()
    pool.add(rollout(500), reward)
    pool.quantize(5, rng(3))
    shuffled = torch.randperm(500, generator=rng(3))
    order = shuffled[reward[shuffled].argsort(stable=True)]
    assert torch.equal(pool.quantile[order], torch.arange(500) * 5 // 500)


@pytest.mark.parametrize("block", [4, 2**16])
@pytest.mark.parametrize("largest", [(2**15 + 7, 2**16 + 3), (2**16 + 3, 2**15 + 7), (2**15 + 7, 5)])
def test_tokens_of_16_and_32_bits_are_drawn_from_one_pool(largest, block, monkeypatch):
    monkeypatch.setattr(pool_module, "BLOCK", block)
    pool, given = Pool(), []
    for i, token in enumerate(largest):
        part = ragged(4, seed=i)
        part.response[:, 0] = token
        given.append(part.response)
        pool.add(part, torch.rand(4, generator=rng(i)))
    pool.quantize(8, rng())
    drawn, quantile = pool.draw(50, rng())
    of = {int(q): response for q, response in zip(pool.quantile, torch.cat(given), strict=True)}
    assert torch.equal(drawn.response[:, 0], torch.stack([of[int(q)][0] for q in quantile]))
    assert set(drawn.response[:, 0].tolist()) == set(largest)


def filled(policy: Policy, parts: tuple[int, ...] = (40, 21)) -> Pool:
    pool = Pool(reference=policy)
    for i, n in enumerate(parts):
        pool.add(ragged(n, seed=i), torch.rand(n, generator=rng(i)))
    pool.quantize(3, rng())
    return pool


@pytest.mark.parametrize("kind", TINY)
def test_reference_logits_from_kept_states_are_those_of_a_pass(kind):
    reference = TINY[kind]().requires_grad_(False)
    trial = Trial(reference.copy(), reference, ToyTask(), seed=0, budget=Budget(updates=1))
    pool = filled(reference)
    drawn, _ = pool.draw(50, rng(), quantile=range(1, 3))
    spent = trial.cost.forward_tokens
    kept = trial.reference_logits(drawn)
    charged = trial.cost.forward_tokens - spent
    plain = trial.reference_logits(drawn._replace(reference_states=None))
    torch.testing.assert_close(kept[drawn.response_mask], plain[drawn.response_mask], atol=1e-5, rtol=0)
    assert trial.cost.forward_tokens == spent + 2 * charged == spent + 2 * tokens_of(drawn)
    assert not kept.requires_grad


def test_states_are_computed_once_a_response(monkeypatch):
    reference, computed = tiny_gpt2().requires_grad_(False), []
    states = type(reference).uncounted_states
    monkeypatch.setattr(
        type(reference), "uncounted_states", lambda self, r: computed.append(len(r.response)) or states(self, r)
    )
    pool = filled(reference)
    for seed in range(9):
        pool.draw(30, rng(seed))
    assert sum(computed) == 61 and max(computed) <= 16


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_compute_the_states_of_one_bit_for_bit(processes):
    """Of 40 and of 21 responses: pages of 16 and of fewer, drawn twice."""

    def drawn() -> list[torch.Tensor]:
        pool, generator = filled(tiny_gpt2()), rng(4)
        return [pool.draw(n, generator)[0].reference_states for n in (3, 30)]

    for found in together(processes, drawn):
        assert all(torch.equal(x, y) for x, y in zip(found, drawn(), strict=True))


def test_a_resumed_pool_has_the_same_states_bit_for_bit():
    reference = tiny_gpt2().requires_grad_(False)
    pool, twin = filled(reference), Pool(reference=reference)
    for seed in range(3):
        pool.draw(7, rng(seed))
    twin.load_state_dict(pool.state_dict())
    assert torch.equal(pool.draw(30, rng(9))[0].reference_states, twin.draw(30, rng(9))[0].reference_states)


def test_beyond_the_memory_for_states_none_are_kept(monkeypatch):
    reference = tiny_gpt2().requires_grad_(False)
    monkeypatch.setattr(pool_module, "MOST_STATES", 2 * 4 * 16 * 6 * reference.width)  # two pages
    pool = filled(reference, (32, 5))
    assert pool.draw(60, rng())[0].reference_states is None  # some of it lies in the third page
    assert filled(reference, (32,)).draw(60, rng())[0].reference_states is not None


def test_a_reference_whose_head_is_not_a_product_keeps_no_states(monkeypatch):
    monkeypatch.setattr("harness.policy.policy.PLAIN_HEADS", ())
    reference = tiny_gpt2().requires_grad_(False)
    assert filled(reference).draw(3, rng())[0].reference_states is None
    with pytest.raises(ValueError, match="scales its logits"):
        reference.head(torch.zeros(1, 1, reference.width))


def test_the_line_is_the_quantile_and_keeps_equal_rewards_on_one_side():
    for rewards, share, line in (
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1 / 3, 0.2), ([0.0, 0.5, 0.5, 0.5, 1.0], 0.2, 0.0),
        ([0.5, 0.5, 0.5, 1.0, 1.0], 0.2, 0.5), ([0.7, 1.0, 1.0, 1.0, 1.0, 1.0], 0.5, 0.7),
    ):  # fmt: skip
        pool = Pool()
        pool.add(rollout(len(rewards)), torch.tensor(rewards))
        assert pool.line(share) == pytest.approx(line)
        pool.divide(pool.line(share))
        assert pool.quantile.tolist() == [int(r > line) for r in rewards]


def test_a_line_stays_where_it_is_while_the_pool_improves():
    pool = Pool()
    pool.add(rollout(4), torch.tensor([0.0, 0.2, 1.0, 1.0]))
    line = pool.line(0.5)
    pool.add(rollout(8, 4), torch.ones(8))
    pool.divide(line)
    drawn, side = pool.draw_both(20, 40, rng())
    assert set(drawn.response[:20, 0].tolist()) == {0, 1} and set(drawn.response[20:, 0].tolist()) == set(range(2, 12))
    assert side.tolist() == [0] * 20 + [1] * 40


def test_a_pool_without_bad_responses_has_no_line():
    pool = Pool()
    pool.add(rollout(3), torch.ones(3))
    with pytest.raises(RunFailed, match="of 3 responses all have reward 1, so there is nothing to forget"):
        pool.line(0.5)
    empty = Pool()
    empty.add(rollout(3), torch.full((3,), NAN))
    with pytest.raises(RunFailed, match="of 0 responses none could be scored"):
        empty.line(0.5)
