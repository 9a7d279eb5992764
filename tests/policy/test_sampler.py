"""The sampler against counting, against Hugging Face's `generate`, and against a plain forward pass."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny import EOS, TINY, left_padded, ragged_rows, steered, tiny_gpt2

from harness.core.types import Decoding, Prompts, Rollout
from harness.policy import sampler
from harness.policy.logprobs import token_logprobs
from harness.policy.sampler import choose, sample, until_eos

VOCAB = 6  # 216 responses of three tokens, all of them counted
DECODINGS = {
    "plain": Decoding(max_new_tokens=3),
    "top_p": Decoding(max_new_tokens=3, top_p=0.8),
    "top_k": Decoding(max_new_tokens=3, top_k=3),
    "hot": Decoding(max_new_tokens=3, temperature=1.7),
    "cold, cut twice": Decoding(max_new_tokens=3, temperature=0.7, top_k=5, top_p=0.9),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(policy, prompts, *, n=1, seed=0, steps=8, batch_size=1024, **decoding) -> Rollout:
    decoding = Decoding(max_new_tokens=steps, **decoding)
    return sample(policy, prompts, decoding=decoding, rng=seeded(seed), n=n, batch_size=batch_size)


def distribution(logits: np.ndarray, d: Decoding) -> np.ndarray:
    """Temperature, top-k and top-p written the slow way, in float64."""
    p = np.exp((logits - logits.max()) / d.temperature)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = order[: d.top_k] if d.top_k else order
    kept, mass, total = [], 0.0, sum(p[i] for i in order)
    for i in order:
        if mass < d.top_p:
            kept.append(i)
            mass += p[i] / total
    cut = np.array([p[i] if i in kept else 0.0 for i in range(len(p))])
    return cut / cut.sum()


@torch.no_grad()
def exact(policy, row: list[int], d: Decoding) -> dict[tuple[int, ...], float]:
    """The probability of each response, by a plain forward pass over the prompt alone, without padding."""
    every = torch.tensor(list(product(range(VOCAB), repeat=d.max_new_tokens)))
    prompts = Prompts(*(x.expand(len(every), -1) for x in left_padded([row])))
    logits = policy.deployed_logits(Rollout(prompts, every, torch.ones_like(every, dtype=torch.bool))).double().numpy()
    total: dict[tuple[int, ...], float] = {}
    for response, steps in zip(every.tolist(), logits, strict=True):
        end = response.index(EOS) + 1 if EOS in response else len(response)
        key = (*response[:end], *[EOS] * (len(response) - end))
        total[key] = np.prod([distribution(steps[t], d)[response[t]] for t in range(end)])
    return total


def fit(counts: dict[tuple[int, ...], int], probs: dict[tuple[int, ...], float], rows: int) -> float:
    """p-value of a chi-square test; cells that expect fewer than five share one."""
    assert not [k for k in counts if probs[k] == 0]
    often = [k for k, p in probs.items() if p * rows >= 5]
    seen, expected = [counts.get(k, 0) for k in often], [probs[k] * rows for k in often]
    if (rest := rows - sum(expected)) > 1e-6 * rows:
        seen, expected = [*seen, rows - sum(seen)], [*expected, rest]
    assert len(seen) > 3  # otherwise there is little to test
    return chisquare(seen, expected).pvalue


@pytest.mark.parametrize("rows", [[[3, 2]], [[3, 2], [4, 5, 2, 3, 5]]], ids=["alone", "padded"])
@pytest.mark.parametrize("steering", [False, True], ids=["bare", "prefix"])
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("kind", TINY)
def test_frequencies_match_the_policy(kind, decoding, steering, rows):
    policy = TINY[kind](vocab=VOCAB, seed=4)  # at this seed no distribution is nearly one token
    policy = steered(policy) if steering else policy
    n = 20_000 // len(rows)
    rollout = sample(policy, left_padded(rows), decoding=DECODINGS[decoding], rng=seeded(), n=n, batch_size=n)
    for row, responses in zip(rows, rollout.response.view(len(rows), n, -1), strict=True):
        unique, counts = responses.unique(dim=0, return_counts=True)
        probs = exact(policy, row, DECODINGS[decoding])
        assert fit(dict(zip(map(tuple, unique.tolist()), counts.tolist(), strict=True)), probs, n) > 1e-4


@pytest.mark.parametrize("kind", TINY)
def test_greedy_equals_generate(kind):
    prompts = left_padded(ragged_rows((1, 5, 2, 8, 3, 8, 1, 4) * 4, vocab=50))
    options = {"attention_mask": prompts.mask.long(), "do_sample": False, "pad_token_id": EOS, "eos_token_id": EOS}
    ended = []
    for seed in range(6):
        policy = TINY[kind](vocab=50, seed=seed)
        theirs = policy.model.generate(prompts.tokens, max_new_tokens=12, **options)[:, prompts.tokens.shape[1] :]
        ours = draw(policy, prompts, steps=12, temperature=0).response
        assert torch.equal(ours[:, : theirs.shape[1]], theirs)
        assert (ours[:, theirs.shape[1] :] == EOS).all()
        ended += (ours[:, -1] == EOS).tolist()
    assert 0 < sum(ended) < len(ended)


@pytest.mark.parametrize("decoding", [{}, {"top_p": 0.5}, {"temperature": 0.5}, {"temperature": 0}], ids=str)
@pytest.mark.parametrize("lengths", [(4, 4, 4), (1, 6, 3)], ids=["even", "ragged"])
@pytest.mark.parametrize("kind", TINY)
def test_logprobs_equal_a_plain_forward(kind, lengths, decoding):
    policy = steered(TINY[kind]())
    rollout = draw(policy, left_padded(ragged_rows(lengths)), n=50, **decoding)
    with torch.no_grad():
        plain = token_logprobs(policy.deployed_logits(rollout), rollout.response)
    assert (~rollout.response_mask).any() or decoding == {"temperature": 0}
    torch.testing.assert_close(rollout.logprobs, plain.where(rollout.response_mask, 0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", TINY)
def test_control_tokens_are_never_sampled(kind):
    policy = steered(TINY[kind](tied=True))
    with torch.no_grad():  # tied, so the control tokens' logits grow with their embeddings
        policy.model.get_input_embeddings().weight[-3:] *= 100
    prompts = left_padded(ragged_rows())
    raw = policy.model(input_ids=prompts.tokens).logits
    assert (raw.argmax(-1) >= policy.vocab_size).any()
    assert (draw(policy, prompts, n=100).response < policy.vocab_size).all()
    assert (draw(policy, prompts, temperature=0).response < policy.vocab_size).all()


def test_responses_to_a_prompt_stand_in_a_row():
    policy, rows = tiny_gpt2(), ragged_rows()
    rollout = draw(policy, left_padded(rows), n=3)
    assert torch.equal(rollout.prompts.tokens, left_padded([r for r in rows for _ in range(3)]).tokens)
    greedy = draw(policy, left_padded(rows), n=3, temperature=0).response.view(4, 3, -1)
    one = draw(policy, left_padded(rows), temperature=0).response
    assert all(torch.equal(greedy[:, j], one) for j in range(3))
    assert len(one.unique(dim=0)) > 1


def test_the_rollout_holds_the_prompts_without_the_prefix():
    prompts = left_padded(ragged_rows())
    rollout = draw(steered(tiny_gpt2()), prompts)
    assert torch.equal(rollout.prompts.tokens, prompts.tokens) and torch.equal(rollout.prompts.mask, prompts.mask)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", TINY)
def test_a_response_does_not_depend_on_the_batch(kind, n):
    policy, prompts = steered(TINY[kind]()), left_padded(ragged_rows((1, 4, 2, 6, 3, 5, 2)))
    whole = draw(policy, prompts, n=n)
    for batch_size in (1, 2, 7, 9):
        part = draw(policy, prompts, n=n, batch_size=batch_size)
        assert torch.equal(part.response, whole.response)
        assert torch.equal(part.response_mask, whole.response_mask)
        torch.testing.assert_close(part.logprobs, whole.logprobs, atol=1e-5, rtol=0)


def test_eos_ends_a_response():
    rollout = draw(tiny_gpt2(), left_padded(ragged_rows()), n=200)
    ended = 0
    for response, mask, logprobs in zip(*(x.tolist() for x in rollout[1:4]), strict=True):
        length = response.index(EOS) + 1 if EOS in response else len(response)
        assert mask == [True] * length + [False] * (len(response) - length)
        assert set(response[length:]) <= {EOS}
        assert set(logprobs[length:]) <= {0.0} and 0.0 not in logprobs[:length]
        ended += length < len(response)
    assert 0 < ended < len(rollout.response)


def test_rows_that_have_ended_do_not_move_the_others():
    """A policy that rarely ends and one that often does: rows are dropped at other steps, their tokens are the same."""
    often, never = tiny_gpt2(), tiny_gpt2(eos=99)  # 99 cannot be sampled
    prompts = left_padded(ragged_rows())
    ended, endless = draw(often, prompts, n=200), draw(never, prompts, n=200)
    assert endless.response_mask.all()
    assert torch.equal(ended.response[ended.response_mask], endless.response[ended.response_mask])
    assert torch.equal(ended.response_mask, until_eos(endless.response, EOS))


def test_the_seed_decides():
    policy, prompts = tiny_gpt2(), left_padded(ragged_rows())
    first, again, other = draw(policy, prompts, n=5), draw(policy, prompts, n=5), draw(policy, prompts, n=5, seed=1)
    assert torch.equal(first.response, again.response) and torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.response, other.response)


def test_the_generator_moves_on_by_the_same_amount_whatever_is_sampled():
    policy, prompts, left = tiny_gpt2(), left_padded(ragged_rows()), []
    for temperature in (0.0, 1.0):
        rng = seeded()
        sample(policy, prompts, decoding=Decoding(max_new_tokens=4, temperature=temperature), rng=rng)
        left.append(torch.rand(1, generator=rng))
    assert torch.equal(*left)


def test_a_pad_that_is_the_eos():
    """What stands under the padding is not read, and an EOS inside a prompt ends nothing."""
    policy = tiny_gpt2()
    policy.model.config.pad_token_id = EOS
    rows = [[5], [3, EOS, 4, 2], [EOS]]
    zeros, eoses = draw(policy, left_padded(rows, pad=0), n=50), draw(policy, left_padded(rows, pad=EOS), n=50)
    assert torch.equal(zeros.response, eoses.response) and torch.equal(zeros.logprobs, eoses.logprobs)
    assert eoses.response_mask[:, 0].all() and eoses.response_mask[:, 1].any()
    assert torch.equal(eoses.response_mask, until_eos(eoses.response, EOS))


def test_a_policy_may_bring_its_own_sampler():
    policy = tiny_gpt2()
    policy.sample = lambda prompts, *, decoding, rng, n: (prompts, decoding.max_new_tokens, n)
    assert draw(policy, "prompts", n=3, steps=4) == ("prompts", 4, 3)


INF = float("inf")


def chosen(logits: torch.Tensor, **cuts: float) -> list[int]:
    """The tokens that are kept, by the function and by draws at a hundred places."""
    decoding = Decoding(max_new_tokens=1, **cuts)
    found = sampler.kept(sampler.weighed(logits), decoding)[0].nonzero().flatten().tolist()
    noise = torch.arange(0.005, 1, 0.01, dtype=torch.float64)
    assert set(choose(logits.expand(100, -1), decoding, noise).tolist()) <= set(found)
    return [i for i in found if logits[0, i] > -INF]


@pytest.mark.parametrize(
    ("probs", "top_p", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.125], 0.75, [0, 1]),  # reached exactly: the next one is out
        ([0.5, 0.25, 0.125, 0.125], 0.76, [0, 1, 2]),  # a tie: the first by index
        ([0.125, 0.125, 0.25, 0.5], 0.76, [0, 2, 3]),
        ([0.25, 0.25, 0.25, 0.25], 0.5, [0, 1]),
        ([0.5, 0.25, 0.125, 0.125], 0.01, [0]),  # never empty
        ([0.5, 0.25, 0.125, 0.125], 1.0, [0, 1, 2, 3]),
        ([0.75, 0.25, 0.0, 0.0], 0.9, [0, 1]),
    ],
)
def test_nucleus_by_hand(probs, top_p, kept):
    assert chosen(torch.tensor([probs]).log(), top_p=top_p) == kept


@pytest.mark.parametrize(
    ("logits", "k", "kept"),
    [
        ([1.0, 3.0, 2.0], 1, [1]),
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([2.0, 2.0, 2.0, 3.0], 2, [0, 3]),  # a tie: the first by index
        ([0.0] * 40, 3, [0, 1, 2]),
        ([1.0, 3.0, 2.0], 0, [0, 1, 2]),
        ([1.0, 3.0, 2.0], 3, [0, 1, 2]),
        ([1.0, 3.0, 2.0], 9, [0, 1, 2]),
    ],
)
def test_top_k_by_hand(logits, k, kept):
    assert chosen(torch.tensor([logits]), top_k=k) == kept


def test_choose_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, -1)
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999], dtype=torch.float64)
    assert choose(logits, Decoding(max_new_tokens=1), noise).tolist() == [0, 0, 2, 2, 3, 3]


def test_choose_reaches_a_tail_that_float32_cannot_add_up():
    """The last token has a mass of 1e-9: in float32 the cumulative mass before it is 1 already."""
    logits, decoding = torch.tensor([[0.0, -20.7232658], [0.0, -20.7232658]]), Decoding(max_new_tokens=1)
    assert choose(logits, decoding, torch.tensor([1 - 2e-9, 1 - 5e-10], dtype=torch.float64)).tolist() == [0, 1]


LOGIT = st.one_of(st.floats(-200, 200, width=32, allow_subnormal=False), st.just(-INF))
NOISE = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53, 5e-324]))
CUTS = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([1.0, 0.9, 0.3, 1e-6]), st.sampled_from([1.0, 0.5, 2.0]))


@given(st.lists(LOGIT, min_size=1, max_size=12).filter(lambda x: max(x) > -INF), NOISE, CUTS)
def test_choose_never_takes_a_token_of_probability_zero(logits, noise, cuts):
    top_k, top_p, temperature = cuts
    decoding = Decoding(max_new_tokens=1, top_k=top_k, top_p=top_p, temperature=temperature)
    token = choose(torch.tensor([logits]), decoding, torch.tensor([noise], dtype=torch.float64)).item()
    scaled = torch.tensor(logits).double() / temperature  # a weight of float32 may be subnormal, which softmax takes for 0
    assert 0 <= token < len(logits) and scaled.softmax(-1)[token] > 0
    assert not top_k or sorted(logits, reverse=True).index(logits[token]) < top_k


def test_until_eos_on_every_sequence_of_four_tokens():
    every = list(product(range(3), repeat=4))
    for sequence, mask in zip(every, until_eos(torch.tensor(every), eos=2).tolist(), strict=True):
        assert mask == [2 not in sequence[:t] for t in range(4)]
