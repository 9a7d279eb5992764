"""What transformers has renamed or may rename next: models that know an argument by one name only, or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import architectures
import pytest
import torch
from tiny import TINY, left_padded, ragged_rows, tiny_gpt2
from transformers import GPT2LMHeadModel

from harness.core.types import Decoding, Rollout
from harness.policy import caches
from harness.policy.load_check import check_model
from harness.policy.logprobs import token_logprobs
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy
from harness.policy.sampler import sample


def forward(model: GPT2LMHeadModel, name: str, cache: Any, inputs: dict[str, Any]) -> SimpleNamespace:
    """GPT-2's own forward, whatever this transformers calls its cache; the output names it as asked."""
    if known := set(inputs) & set(caches.NAMES):
        raise TypeError(f"unexpected keyword argument {sorted(known)}")
    here = caches.cache_name(tiny_gpt2().model)
    out = GPT2LMHeadModel.forward(model, **inputs, **{here: cache})
    return SimpleNamespace(logits=out.logits, hidden_states=out.hidden_states, **{name: getattr(out, here)})


class Tomorrow(GPT2LMHeadModel):
    def forward(self, input_ids=None, cache=None, **inputs):
        return forward(self, "cache", cache, {"input_ids": input_ids, **inputs})


class Yesterday(GPT2LMHeadModel):
    def forward(self, input_ids=None, past_key_values=None, **inputs):
        return forward(self, "past_key_values", past_key_values, {"input_ids": input_ids, **inputs})


class Strict(GPT2LMHeadModel):
    """Neither `logits_to_keep` nor anything else that it does not name."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, output_hidden_states=None, cache=None):
        named = {"attention_mask": attention_mask, "position_ids": position_ids, "output_hidden_states": output_hidden_states}
        return forward(self, "cache", cache, {"input_ids": input_ids, "use_cache": use_cache} | named)


class Deaf(GPT2LMHeadModel):
    """Takes `logits_to_keep` and gives all logits nevertheless."""

    def forward(self, input_ids=None, cache=None, logits_to_keep=0, **inputs):
        return forward(self, "cache", cache, {"input_ids": input_ids, **inputs})


KINDS = [Tomorrow, Yesterday, Strict, Deaf]
kinds = pytest.mark.parametrize("kind", KINDS)


def policy_of(kind: type[GPT2LMHeadModel]) -> Policy:
    """The tiny GPT-2, the same weights, behind another door."""
    plain = tiny_gpt2(vocab=64)
    model = kind(plain.model.config)
    model.load_state_dict(plain.model.state_dict())
    return Policy(model, bos=plain.bos, eos=plain.eos)


def draw(policy: Policy) -> Rollout:
    decoding, rng = Decoding(max_new_tokens=8), torch.Generator().manual_seed(0)
    return sample(policy, left_padded(ragged_rows()), decoding=decoding, rng=rng, n=9)


def same(found: Policy, plain: Policy) -> None:
    """The same responses, log-probabilities, logits and gradient as from the plain model."""
    theirs, ours = draw(plain), draw(found)
    assert torch.equal(ours.response, theirs.response)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-5, rtol=0)
    assert (~ours.response_mask).any()
    logits = found.deployed_logits(ours)
    counts = ours.response_mask
    torch.testing.assert_close(logits[counts], plain.deployed_logits(ours)[counts], atol=1e-5, rtol=0)
    (-token_logprobs(logits, ours.response)).mean().backward()
    assert all(p.grad is not None for p in found.parameters())


@kinds
def test_a_model_is_sampled_read_and_trained_by_the_names_that_it_knows(kind):
    policy = policy_of(kind)
    check_model(policy, "here")
    same(policy, tiny_gpt2(vocab=64))
    trial = architectures.train(policy_of(kind), policy_of(kind).requires_grad_(False))
    assert trial.cost.updates == 2


@pytest.mark.parametrize("kind", [Tomorrow, Yesterday, Strict])
def test_so_is_an_ensemble(kind):
    plain = tiny_gpt2(vocab=64)
    same(
        *(
            Policy(Ensemble(*three, alpha=0.5), bos=plain.bos, eos=plain.eos)
            for three in ([policy_of(kind).model for _ in range(3)], [tiny_gpt2(vocab=64).model for _ in range(3)])
        )
    )


def test_a_model_without_a_cache_is_called_without_one():
    assert caches.cache_name(SimpleNamespace(forward=lambda input_ids: None)) is None
    out, cache = caches.forward(SimpleModel(), None, input_ids=1, logits_to_keep=1)
    assert out == {"input_ids": 1, "use_cache": True} and cache is None


class SimpleModel:
    def forward(self, input_ids, use_cache):
        return {"input_ids": input_ids, "use_cache": use_cache}

    __call__ = forward


def test_the_parameters_of_a_class_are_read_once_and_those_of_another_forward_anew(monkeypatch):
    model, calls = SimpleModel(), []
    read = caches.inspect.signature
    monkeypatch.setattr(caches.inspect, "signature", lambda forward: calls.append(forward) or read(forward))
    monkeypatch.setattr(SimpleModel, "forward", lambda self, input_ids, cache: None)
    assert [caches.cache_name(model) for _ in range(3)] == ["cache"] * 3 and calls == [SimpleModel.forward]
    monkeypatch.setattr(SimpleModel, "forward", lambda self, input_ids, past_key_values: None)
    assert caches.cache_name(model) == "past_key_values"
    model.forward = lambda input_ids, cache_params: None
    assert caches.cache_name(model) == "cache_params"


class Growing:
    """A cache that rows can be neither repeated in nor left out of."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache


class Stubborn(GPT2LMHeadModel):
    def forward(self, input_ids=None, cache=None, **inputs):
        out = forward(self, "cache", cache and cache.cache, {"input_ids": input_ids, **inputs})
        if out.cache is not None:
            out.cache = Growing(out.cache)
        return out


def test_a_cache_that_can_only_grow_is_made_anew_for_the_copies_and_keeps_all_rows():
    same(policy_of(Stubborn), tiny_gpt2(vocab=64))
    check_model(policy_of(Stubborn), "here")


@pytest.mark.parametrize("kind", TINY)
def test_rows_of_a_cache_are_taken_as_named(kind):
    policy, rows = TINY[kind](), torch.tensor([2, 0, 2])
    tokens = torch.tensor([[3, 4], [5, 6], [7, 8]])
    _, cache = caches.forward(policy.model, None, input_ids=tokens)
    _, taken = caches.forward(policy.model, None, input_ids=tokens[rows])
    assert caches.movable(cache) and not caches.recurrent(cache)
    caches.take(cache, rows)
    step = {"input_ids": torch.tensor([[9]] * 3), "attention_mask": torch.ones(3, 3).long()}
    found, expected = (caches.forward(policy.model, each, **step)[0].logits for each in (cache, taken))
    assert torch.equal(found, expected)
