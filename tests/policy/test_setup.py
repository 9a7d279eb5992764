"""Micro-batches and gradient checkpointing: the same gradient from less memory; logits are held once a policy."""

from __future__ import annotations

import pytest
import torch
import transformers
from allocations import allocations
from tiny import TINY, left_padded, ragged_rows, rng, tiny_llama

from harness.core.errors import BadSetting
from harness.core.settings import ModelSettings
from harness.core.types import Decoding, Rollout
from harness.policy.logprobs import entropy, kl, masked_mean, token_logprobs
from harness.policy.models import setup as setups
from harness.policy.models.setup import Setup, setup_of
from harness.policy.policy import Policy
from harness.policy.sampler import sample

SETUPS = {"parts": Setup(2), "layers": Setup(checkpointing=True), "both": Setup(3, True)}
ROWS, STEPS = 7, 6


def rollout(rows: int = ROWS, steps: int = STEPS, vocab: int = 12) -> Rollout:
    """Prompts and responses of several lengths."""
    prompts = left_padded(ragged_rows(tuple(1 + i % 5 for i in range(rows))))
    mask = torch.arange(steps) < 1 + torch.arange(rows)[:, None] % steps
    return Rollout(prompts, torch.randint(2, vocab, (rows, steps), generator=rng(3)), mask)


def gradient(policy: Policy, batch: Rollout) -> torch.Tensor:
    """That of a loss on logits, hidden states and both together."""
    logits, states = policy.logits_and_states(batch)
    values = (states + policy.states(batch)).square().mean(-1)
    loss = masked_mean(-token_logprobs(logits, batch.response) + values * entropy(logits), batch.response_mask)
    policy.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def gemma() -> Policy:
    """A model whose logits are no product of its states, so that its own forward gives them."""
    config = transformers.Gemma2Config(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(transformers.Gemma2ForCausalLM(config), bos=0, eos=1)


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("make", [*TINY.values(), gemma], ids=[*TINY, "gemma2"])
def test_the_gradient_is_that_of_the_whole_batch(make, name):
    policy = make()
    whole = gradient(policy, rollout())
    policy.setup = SETUPS[name]
    assert (gradient(policy, rollout()) - whole).norm() < 1e-5 * whole.norm()


def test_the_passes_are_charged_once(monkeypatch):
    policy, seen = tiny_llama(), []
    policy.on_forward = lambda tokens, trained: seen.append((tokens, trained))
    policy.setup = SETUPS["both"]
    gradient(policy, rollout())
    assert len(seen) == 2 and {trained for _, trained in seen} == {True}


def test_only_passes_that_a_gradient_follows_are_split(monkeypatch):
    policy = tiny_llama()
    policy.setup = SETUPS["both"]
    monkeypatch.setattr(setups, "checkpoint", None)  # raises where it is called
    with torch.no_grad():
        policy.logits(rollout())
    policy.requires_grad_(False).logits(rollout())
    with pytest.raises(TypeError):
        policy.requires_grad_(True).logits(rollout())


def test_checkpointed_layers_sample_as_others_do():
    """In training mode a layer would lose its cache; it is in that mode within a training pass only."""
    drawn = []
    for setup in (Setup(), Setup(checkpointing=True)):
        policy = gemma()
        policy.setup = setup
        gradient(policy, rollout())
        drawn.append(sample(policy, rollout().prompts, decoding=Decoding(max_new_tokens=6), rng=rng(1)))
        assert not any(module.training for module in policy.model.modules())
    assert torch.equal(drawn[0].response, drawn[1].response) and torch.equal(drawn[0].logprobs, drawn[1].logprobs)


def peak(policy: Policy, batch: Rollout) -> int:
    with allocations() as found:
        policy.states(batch).square().mean().backward()
    return found.peak


def test_less_memory_is_held():
    """Activations of a part of the rows, or of one layer, instead of all."""
    batch = rollout(64, 24)
    policy = tiny_llama()
    peak(policy, batch)  # gradients are allocated by the first pass
    whole = peak(policy, batch)
    policy.setup = Setup(micro_batch=8)
    assert peak(policy, batch) < 0.5 * whole
    held = []
    for checkpointing in (False, True):
        policy = deep()
        policy.setup = Setup(checkpointing=checkpointing)
        peak(policy, batch)
        held.append(peak(policy, batch))
    assert held[1] < 0.6 * held[0]


def deep() -> Policy:
    """A GPT-2 of eight layers, read by its own forward because a hook watches it."""
    config = transformers.GPT2Config(vocab_size=12, n_positions=64, n_embd=16, n_layer=8, n_head=2)
    policy = Policy(transformers.GPT2LMHeadModel(config), bos=0, eos=1)
    policy.model.register_forward_hook(lambda *_: None)
    return policy


def test_a_model_without_layers_to_checkpoint_is_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(
        BadSetting, match=r"^Linear has no layers that transformers can checkpoint; set model\.checkpointing=false"
    ):
        setup_of(ModelSettings(checkpointing=True), model, "")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_logits_are_held_once_a_policy(precision):
    """With a vocabulary of 49,152: those of policy and reference, and what is allocated beside them a few positions'."""
    vocab, rows, steps = 49_152, 12, 24
    policy, batch = tiny_llama(vocab=vocab), rollout(rows, steps, vocab)
    batch = batch._replace(response_mask=torch.ones_like(batch.response_mask))
    reference = policy.frozen_copy()
    policy.precision = reference.precision = precision
    with allocations() as found:
        logits = policy.logits(batch)
        with torch.no_grad():
            other = reference.logits(batch)
        loss = masked_mean(-token_logprobs(logits, batch.response) + kl(other, logits) - entropy(logits), batch.response_mask)
        loss.backward()
    one = rows * steps * vocab * 4
    beside = 256 * vocab * (4 if precision == torch.float32 else 8)  # the gradient at 256 positions, and its narrow copies
    assert found.largest <= one and found.peak < 2 * one + beside + 0.2 * one


def test_a_narrow_head_computes_as_autocast_does():
    policy, batch = tiny_llama(), rollout()
    policy.precision = torch.bfloat16
    logits = policy.logits(batch)
    states = policy.logits_and_states(batch)[1].detach()
    weight = policy.model.get_output_embeddings().weight
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.nn.functional.linear(states, weight).float()
    mask = batch.response_mask
    assert torch.equal(logits[mask], expected[mask])
    (ours,) = torch.autograd.grad(masked_mean(token_logprobs(logits, batch.response), mask), weight)
    (theirs,) = torch.autograd.grad(
        masked_mean(expected.log_softmax(-1).gather(-1, batch.response[..., None])[..., 0], mask), weight
    )
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
