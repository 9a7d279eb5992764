"""Each method against a step worked by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from hand_worked import Bench, batch, picked, rows
from pydantic import ValidationError
from scipy import stats
from tiny import left_padded, tiny_gpt2

from harness.core.errors import RunFailed
from harness.core.types import Decoding, Prompts, Rollout
from harness.measure.frontier import best_of_n_kl
from harness.methods.best_of_n import BestOfNPolicy, pick
from harness.methods.best_quantile import BestQuantile, BestQuantileSettings
from harness.methods.quark import Quark, QuarkSettings
from harness.methods.unlikelihood import Unlikelihood, UnlikelihoodSettings
from harness.training.pool import Pool


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_loss_of_quark_by_hand(variant):
    bench = Bench()
    tokens = bench.policy.control_tokens(3, rng())
    quark = Quark(QuarkSettings(variant=variant, num_quantiles=3, kl_coef=0.3, entropy_coef=0.2))
    token = tokens[torch.tensor([0, 2, 1])]
    quark._learn(bench, batch(), token)
    ours, theirs = rows(bench.policy, batch(), token), rows(bench.reference, batch())
    total = 0.0
    for p, q, y in zip(ours, theirs, picked(ours, batch())):
        forward, backward = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
        extra = 0.3 * forward if variant == "paper" else 0.3 * backward + 0.2 * (p * p.log()).sum(-1)
        total = total + (-y.log() + extra).sum()
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)


def test_the_loss_of_best_quantile_by_hand():
    bench = Bench()
    BestQuantile(BestQuantileSettings(kl_coef=0.3))._learn(bench, batch())
    ours, theirs = rows(bench.policy, batch()), rows(bench.reference, batch())
    terms = [(-y.log() + 0.3 * (q * (q / p).log()).sum(-1)).sum() for p, q, y in zip(ours, theirs, picked(ours, batch()))]
    assert bench.loss.item() == pytest.approx(float(sum(terms).detach()) / 8, abs=1e-5)


def test_the_loss_of_unlikelihood_by_hand():
    bench, worst = Bench(), torch.tensor([False, True, False])
    bad = batch().response_mask & worst[:, None]
    Unlikelihood(UnlikelihoodSettings(kl_coef=0.3, alpha=2.0))._learn(bench, batch(), bad, batch().response_mask & ~bad)
    ours, theirs = rows(bench.policy, batch()), rows(bench.reference, batch())
    total = 0.0
    for p, q, y, bad in zip(ours, theirs, picked(ours, batch()), worst.tolist()):
        total = total + ((-2.0 * (1 - y).log() if bad else -y.log()) + 0.3 * (q * (q / p).log()).sum(-1)).sum()
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)


def test_unlikelihood_makes_the_worst_responses_less_likely():
    bench, part = Bench(), batch()
    before = sum(y.log().sum() for y in picked(rows(bench.policy, part), part)).item()
    Unlikelihood(UnlikelihoodSettings(kl_coef=0.0))._learn(bench, part, part.response_mask, ~part.response_mask)
    with torch.no_grad():
        for w in bench.policy.parameters():
            w -= 0.01 * w.grad
    assert sum(y.log().sum() for y in picked(rows(bench.policy, part), part)).item() < before


def test_pick_is_the_best_with_ties_at_random():
    reward = torch.tensor([[0.1, 0.9, 0.9, 0.2]]).repeat(4000, 1)
    chosen = Counter(pick(reward, rng()).tolist())
    assert set(chosen) == {1, 2} and stats.binomtest(chosen[1], 4000).pvalue > 1e-3


def test_best_of_n_has_the_law_that_its_formula_says():
    """First tokens of the best of 3 by a reward with ties, against the law worked out from the base policy."""
    policy, value = tiny_gpt2(vocab=5), torch.tensor([0.2, 0.5, 0.5, 0.9, 0.0])
    prompts = left_padded([[2, 3]])
    p = policy.logits(Rollout(prompts, torch.tensor([[0]]), torch.tensor([[True]]))).softmax(-1).flatten().detach().double()
    best = BestOfNPolicy(policy, lambda r: value[r.response[:, 0]], 3)
    drawn = best.sample(prompts, decoding=Decoding(max_new_tokens=1), rng=rng(3), n=20000)
    below = torch.stack([p[value < v].sum() for v in value])
    level = torch.stack([p[value == v].sum() for v in value])
    law = ((below + level) ** 3 - below**3) * p / level
    seen = torch.bincount(drawn.response[:, 0], minlength=5)
    assert stats.chisquare(seen.numpy(), (law * 20000 / law.sum()).numpy()).pvalue > 1e-3
    exact = float((law * (law / p).log()).sum())
    rewards = value.double()[torch.multinomial(p, 200000, replacement=True, generator=rng(4))].numpy()[None]
    assert best.kl_to_base(rewards)[0] == pytest.approx(exact, abs=0.01)
    assert best_of_n_kl(rewards, 1)[0] == 0.0


def test_an_unscored_candidate_is_chosen_last():
    policy = tiny_gpt2(vocab=5)
    value = torch.tensor([torch.nan, 0.0, torch.nan, 0.0, 0.0])
    best = BestOfNPolicy(policy, lambda r: value[r.response[:, 0]], 40)
    drawn = best.sample(left_padded([[2, 3]]), decoding=Decoding(max_new_tokens=1), rng=rng(), n=200)
    assert not value[drawn.response[:, 0]].isnan().any()


@pytest.mark.parametrize("wrong", [{"num_quantiles": 1}, {"lr": 0}, {"kl_coef": -0.1}, {"variant": "both"}, {"beta": 1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValidationError):
        QuarkSettings(**wrong)
