"""Best of n: which response is taken, and the law of what is taken."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from tiny import left_padded, rng, tiny_gpt2

from harness.core.types import Decoding, Rollout
from harness.measure.frontier import best_of_n_kl
from harness.methods.best_of_n import BestOfNPolicy, pick


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
