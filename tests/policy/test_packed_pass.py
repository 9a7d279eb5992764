"""The pass over packed tokens against the model's own forward, values and gradients, and which models take which way."""

from __future__ import annotations

import pytest
import torch
from families import GPT2, VARIANTS, Changed, policy_of
from tiny import left_padded, ragged_rows, rng, steered, tiny_gpt2
from transformers import GPT2Config

from harness.core.types import Rollout
from harness.policy.logprobs import blocks, entropy, head, kl, masked_mean, packed, token_logprobs
from harness.policy.policy import Policy

LENGTHS = (1, 4, 2, 6, 3, 5, 2, 1, 4)
ENDS = (3, 5, 1, 4, 2, 5, 5, 3, 1)


def batch(ends: tuple[int, ...] = ENDS) -> Rollout:
    response = torch.randint(2, 12, (len(LENGTHS), 5), generator=rng(4))
    return Rollout(left_padded(ragged_rows(LENGTHS)), response, torch.arange(5) < torch.tensor(ends)[:, None])


def by_own_forward(policy: Policy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    states = policy._own_states(rollout)
    return states @ policy.model.get_output_embeddings().weight[: policy.vocab_size].t(), states


def gradients(policy: Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of rows, the last one shorter."""
    monkeypatch.setattr(blocks, "ROWS", 7)
    monkeypatch.setattr(head, "ROWS", 4)


@pytest.mark.parametrize("ends", [ENDS, (5,) * 9], ids=["ragged", "to the end"])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_equal_those_of_the_own_forward(name, ends):
    policy, other, rollout = policy_of(name), policy_of(name), batch(ends)
    assert policy._direct() is not None
    logits, states = policy.logits_and_states(rollout)
    own, own_states = by_own_forward(other, rollout)
    mask, target = rollout.response_mask, torch.randn(own.shape, generator=rng(6))
    torch.testing.assert_close(logits.log_softmax(-1)[mask], own.log_softmax(-1)[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(states[mask], own_states[mask], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(logits).all() and torch.isfinite(states).all()

    terms = token_logprobs(logits, rollout.response) + kl(target, logits) - 2 * kl(logits, target) + 0.3 * entropy(logits)
    found = gradients(policy, masked_mean(terms + 0.1 * states.sum(-1), mask))
    p, q = own.log_softmax(-1), target.log_softmax(-1)
    simple = p.gather(-1, rollout.response[..., None])[..., 0] + (q.exp() * (q - p)).sum(-1)
    simple = simple - 2 * (p.exp() * (p - q)).sum(-1) - 0.3 * (p.exp() * p).sum(-1) + 0.1 * own_states.sum(-1)
    expected = gradients(other, masked_mean(simple, mask))
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, atol=2e-6 * max(1.0, float(grad.abs().max())), rtol=1e-4, msg=key)


def test_control_tokens_get_no_gradient_from_the_head():
    policy = steered(tiny_gpt2(tied=False))
    grads = gradients(policy, masked_mean(token_logprobs(policy.logits(batch()), batch().response), batch().response_mask))
    table = grads["model.lm_head.weight"]
    assert (table[policy.vocab_size :] == 0).all() and (table[: policy.vocab_size] != 0).any()


def test_a_policy_and_its_frozen_copy_agree_bit_for_bit():
    policy, rollout = policy_of("llama, grouped keys"), batch()
    with torch.no_grad():
        assert torch.equal(policy.frozen_copy().logits(rollout), policy.logits(rollout))
    assert torch.equal(policy.frozen_copy().logits(rollout), policy.logits(rollout).detach())


def test_packed_tokens_are_those_of_each_text_in_groups_of_similar_length(monkeypatch):
    monkeypatch.setattr(packed, "ROWS", 2)
    rollout = batch()
    found = packed.packed(rollout)
    lengths = sorted(n + m - 1 for n, m in zip(LENGTHS, ENDS, strict=True))
    assert [rows for rows, _ in found.groups] == [3, 3, 3] and [w for _, w in found.groups] == lengths[2::3]
    assert len(found.tokens) == len(found.position) == sum(rows * width for rows, width in found.groups)
    before = torch.cat([rollout.prompts.tokens[:, -1:], rollout.response[:, :-1]], 1)[rollout.response_mask]
    assert torch.equal(found.tokens[found.predicts], before)
    steps = torch.tensor(LENGTHS)[:, None] - 1 + torch.arange(5)
    assert torch.equal(found.position[found.predicts], steps[rollout.response_mask])
    assert torch.equal(found.real, rollout.response_mask.flatten().nonzero().flatten())


def test_other_models_and_precisions_are_read_by_their_own_forward():
    assert Policy(Changed(GPT2Config(**GPT2)), bos=0, eos=1)._direct() is None
    hooked = policy_of("gpt2")
    hooked.model.transformer.h[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert hooked._direct() is None
    narrow = policy_of("llama")
    narrow.precision = torch.bfloat16
    assert narrow._direct() is None and policy_of("llama").to(torch.bfloat16)._direct() is None


def test_the_own_forward_still_gives_only_what_counts():
    rollout, policy = batch(), policy_of("gpt2")
    expected = policy.logits(rollout)
    policy.model.transformer.h[0].register_forward_hook(lambda *_: None)
    assert policy._direct() is None
    torch.testing.assert_close(policy.logits(rollout), expected, atol=1e-5, rtol=0)
    assert (expected[~rollout.response_mask] == 0).all()
