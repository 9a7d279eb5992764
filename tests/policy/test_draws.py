"""The draw of a token without a sort of the vocabulary, against the definition: sort, cut, add up, invert."""

from __future__ import annotations

import pytest
import torch
from tiny import rng

from harness.core.errors import NotFinite
from harness.core.types import Decoding
from harness.policy import sampler
from harness.policy.logprobs import token_logprobs
from harness.policy.sampler import choose, distribution

DECODINGS = {
    "plain": {},
    "top-p": {"top_p": 0.9},
    "top-p near 1": {"top_p": 0.999},
    "top-k": {"top_k": 40},
    "top-k beyond the vocabulary": {"top_k": 10_000, "top_p": 0.5},
    "both, hot": {"temperature": 1.7, "top_k": 100, "top_p": 0.8},
    "cold": {"temperature": 0.3, "top_p": 0.95},
}
SCALES = {"flat": 0.1, "usual": 3.0, "sharp": 30.0}


def by_definition(logits: torch.Tensor, decoding: Decoding, noise: torch.Tensor) -> torch.Tensor:
    """A stable sort, top-k, then the fewest whose sum reaches top-p, in float64."""
    values, index = (logits.double() / decoding.temperature).sort(dim=1, descending=True, stable=True)
    if decoding.top_k:
        values[:, decoding.top_k :] = -torch.inf
    p = values.softmax(1)
    p[p.cumsum(1) - p >= decoding.top_p] = 0
    cdf = torch.zeros_like(p).scatter(1, index, p).cumsum(1)
    return torch.searchsorted(cdf, (noise * cdf[:, -1])[:, None], right=True).squeeze(1)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("vocab", [12, 300, 1024])  # less than a block, no multiple of one, a multiple
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", DECODINGS)
def test_the_token_is_that_of_the_definition(name, scale, vocab, shortlist, monkeypatch):
    monkeypatch.setattr(sampler, "SORTED", 0 if shortlist else 4096)
    logits = SCALES[scale] * torch.randn(400, vocab, generator=rng(vocab))
    noise = torch.rand(400, generator=rng(1), dtype=torch.float64)
    decoding = Decoding(max_new_tokens=1, **DECODINGS[name])
    ours, wanted = choose(logits, decoding, noise), by_definition(logits, decoding, noise)
    # a cumulative sum may round to the other side of the noise or of the cut, in a row in a thousand
    assert int((ours != wanted).sum()) <= (1 if scale == "flat" else 0)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("decoding", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 90, "top_p": 0.5}])
def test_equal_logits_are_kept_in_the_order_of_the_vocabulary(decoding, shortlist, monkeypatch):
    monkeypatch.setattr(sampler, "SORTED", 0 if shortlist else 4096)
    logits = torch.randn(50, 200, generator=rng()).round()  # many ties, at the cut too
    noise = torch.rand(50, generator=rng(1), dtype=torch.float64)
    decoding = Decoding(max_new_tokens=1, **decoding)
    assert torch.equal(choose(logits, decoding, noise), by_definition(logits, decoding, noise))


def test_only_rows_that_need_it_are_sorted(monkeypatch):
    logits = torch.zeros(3, 5000)
    logits[0, 5], logits[1, 7] = 20.0, 20.0
    sorted_rows, by_sort = [], sampler._descending
    monkeypatch.setattr(sampler, "_descending", lambda x: sorted_rows.append(len(x)) or by_sort(x))
    choose(logits, Decoding(max_new_tokens=1, top_p=0.9), torch.full((3,), 0.4, dtype=torch.float64))
    assert sorted_rows == [1]


def test_equal_logits_at_the_cut_need_no_sort_while_the_shortlist_holds_them_all(monkeypatch):
    """As logits of a pass in bfloat16 are: a few hundred values for tens of thousands of tokens."""
    logits = (6 * torch.randn(200, 6000, generator=rng())).bfloat16().float()
    noise = torch.rand(200, generator=rng(1), dtype=torch.float64)
    decoding, by_sort = Decoding(max_new_tokens=1, top_p=0.6), []
    monkeypatch.setattr(sampler, "_descending", lambda x: by_sort.append(len(x)) or x.sort(1, descending=True).values)
    assert torch.equal(choose(logits, decoding, noise), by_definition(logits, decoding, noise))
    ties = (logits.topk(20).values.diff(dim=1) == 0).any(1)
    assert ties.float().mean() > 0.9 and sum(by_sort) < 20


@pytest.mark.parametrize("vocab", [12, 300, 1024])
def test_logprobs_are_those_of_the_whole_vocabulary(vocab):
    logits = 5 * torch.randn(30, vocab, generator=rng())
    token = torch.randint(vocab, (30,), generator=rng(1))
    torch.testing.assert_close(distribution(logits)[0].logprobs(token), token_logprobs(logits, token), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_is_an_error(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    at, finite = distribution(logits)
    assert int(choose(at, Decoding(max_new_tokens=1), torch.full((2,), 0.5, dtype=torch.float64)).max()) < 5  # a token still
    assert not finite
    with pytest.raises(NotFinite, match="not finite"):
        sampler.Count(2)(torch.ones(2, dtype=torch.bool), finite, last=False)
