"""Unlikelihood: its losses by hand, on own samples and on the corpus, and which tokens it pushes down."""

from __future__ import annotations

import pytest
import torch
from hand_worked import Bench, batch, picked, rows
from scored_documents import WHOLE, distributions, documents, finite, known, mean
from torch import Tensor

from harness.core.types import Rollout
from harness.methods.unlikelihood import Unlikelihood, UnlikelihoodSettings, repeated
from harness.policy.logprobs import said_before
from harness.training import corpus


def test_the_loss_of_unlikelihood_by_hand():
    bench, worst = Bench(), torch.tensor([False, True, False])
    bad = batch().response_mask & worst[:, None]
    Unlikelihood(UnlikelihoodSettings(kl_coef=0.3, alpha=2.0))._learn(bench, batch(), bad, batch().response_mask & ~bad)
    ours, theirs = rows(bench.policy, batch()), rows(bench.reference, batch())
    total = 0.0
    for p, q, y, bad in zip(ours, theirs, picked(ours, batch()), worst.tolist(), strict=True):
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


def corpus_masks(threshold: float) -> tuple[Rollout, Tensor, Tensor]:
    found = corpus.whole(documents())
    bad = corpus.scored(found) & (found.reward < threshold)
    return found.rollout, bad, (corpus.plain(found) | corpus.scored(found)) & ~bad


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_loss_of_unlikelihood_on_the_corpus_by_hand(level):
    """Candidates of a row are its own tokens: the others' would change the sum."""
    bench, (rollout, bad, good) = Bench(), corpus_masks(0.5)
    method = Unlikelihood(UnlikelihoodSettings(source="corpus", level=level, alpha=2.0, kl_coef=0.3))
    method._learn(bench, rollout, bad, good)
    terms = []
    for p, q, (tokens, rewards) in zip(distributions(bench.policy), distributions(bench.reference), WHOLE, strict=True):
        for t, (token, r) in enumerate(zip(tokens, rewards, strict=True)):
            if not known(r):
                continue
            is_bad = r is not None and r < 0.5
            candidates = ({token} if is_bad else set()) if level == "sequence" else set(tokens[:t]) - {token}
            cost = sum((-2 * (1 - p[t, c]).log() for c in candidates), -p[t, token].log() * (not is_bad))
            terms.append(cost + 0.3 * (q[t] * (q[t] / p[t]).log()).sum())
    assert bench.loss.item() == pytest.approx(mean(terms), abs=1e-5)
    assert finite(bench.policy)


def test_candidates_stay_in_their_row():
    response = torch.tensor([[2, 3, 2, 4], [5, 5, 6, 7]])
    found = said_before(response, 8)
    assert [[set(t.nonzero().flatten().tolist()) for t in row] for row in found] == [
        [set(), {2}, {3}, {2, 3}],
        [set(), set(), {5}, {5, 6}],
    ]
    other = torch.tensor([[2, 3, 2, 4], [7, 6, 5, 4]])
    assert torch.equal(said_before(other, 8)[0], found[0])


def test_repeated_ngrams():
    response = torch.tensor([[2, 3, 4, 2, 3, 5, 2, 3], [2, 2, 2, 6, 7, 2, 2, 2], [2, 3, 2, 3, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    expected = [[0, 0, 0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1], [0] * 8]  # "3 0" in the padding is none
    assert repeated(response, mask, 2).long().tolist() == expected


def test_only_repeated_ngrams_of_bad_text():
    part = batch()
    part = part._replace(response=torch.tensor([[2, 2, 2], [4, 1, 1], [3, 3, 3]]))
    bad = torch.tensor([[True] * 3, [False] * 3, [False] * 3])
    bench = Bench()
    method = Unlikelihood(UnlikelihoodSettings(kl_coef=0.0, ngram=1))
    scalars = method._learn(bench, part, bad, part.response_mask & ~bad)
    total = 0.0
    for y, is_bad in zip(picked(rows(bench.policy, part), part), [True, False, False], strict=True):
        total = total - ((1 - y[1:]).log().sum() if is_bad else y.log().sum())
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)
    assert "drift" not in scalars
