"""The direct decoding of GPT-2 and Llama against the model's own forward, and which models take which way."""

from __future__ import annotations

import pytest
import torch
from families import GPT2, VARIANTS, Changed, policy_of
from tiny import left_padded, ragged_rows, rng, steered, tiny_gpt2, tiny_llama
from transformers import GPT2Config

from harness.core.types import Decoding
from harness.policy import sampler
from harness.policy.decoding import Captured, Decoder, Direct, OwnForward, decoder, direct
from harness.policy.decoding.keys import PerPrompt
from harness.policy.policy import Policy

CLOSE = 5e-5  # nats: float32 sums depend on the order, which differs from one kind of processor to the next; 1.4e-5 was seen


def both(policy: Policy, rows: list[list[int]], n: int, precision: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    """The logits of each step by both decoders, with responses left out on the way."""
    policy.precision = precision
    prompts, found = policy.condition(left_padded(rows)), []
    tokens = torch.randint(2, 12, (6, len(rows) * n), generator=rng(5))
    with torch.no_grad():
        for made in (OwnForward(policy), decoder(policy)):
            logits, kept = [made.start(prompts, n, 6)], torch.arange(len(rows) * n)
            for t in range(5):
                if t in (1, 3):
                    going = torch.arange(len(kept))[torch.arange(len(kept)) % 3 != t - 1]
                    made.keep(going)
                    kept = kept[going]
                logits.append(made.step(tokens[t, kept]))
            found.append(logits)
    return found


@pytest.mark.parametrize("lengths", [(3, 3), (1, 4, 2, 6)], ids=["even", "ragged"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_step_equals_the_model_s_own_forward(name, n, lengths):
    policy = policy_of(name)
    assert isinstance(decoder(policy), Direct)
    own, direct = both(policy, ragged_rows(lengths), n)
    assert max(float(a.abs().max()) for a in own) > 1
    for a, b in zip(own, direct, strict=True):
        torch.testing.assert_close(b.log_softmax(-1), a.log_softmax(-1), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("kind", [tiny_gpt2, tiny_llama])
def test_control_tokens_and_bfloat16(kind):
    policy = steered(kind())
    own, direct = both(policy, ragged_rows(), 2)
    assert own[0].shape[-1] == policy.vocab_size
    for a, b in zip(own, direct, strict=True):
        torch.testing.assert_close(b.log_softmax(-1), a.log_softmax(-1), atol=CLOSE, rtol=0)
    own, direct = both(policy, ragged_rows(), 2, torch.bfloat16)
    for a, b in zip(own, direct, strict=True):
        assert (a.softmax(-1) - b.softmax(-1)).abs().max() < 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped keys"])
def test_the_same_responses_either_way(name, monkeypatch):
    policy, prompts = policy_of(name), left_padded(ragged_rows())
    how = {"decoding": Decoding(max_new_tokens=12, top_p=0.9), "n": 25, "batch_size": 40}
    direct = sampler.sample(policy, prompts, rng=rng(), **how)
    monkeypatch.setattr(sampler, "decoder", lambda policy, rows: OwnForward(policy))
    own = sampler.sample(policy, prompts, rng=rng(), **how)
    assert torch.equal(direct.response, own.response)
    torch.testing.assert_close(direct.logprobs, own.logprobs, atol=CLOSE, rtol=0)


def repeated(step):
    """What a CUDA graph does: the same kernels on the same tensors, whose logits always lie in one place."""
    logits = step().clone()
    return lambda: logits.copy_(step()), logits


def captured(policy: Policy) -> Decoder:
    plain = decoder(policy)
    assert isinstance(plain, Direct)
    return Captured(policy, plain.steps, capture=repeated)


@pytest.mark.parametrize("lengths", [(3, 3), (1, 4, 2, 6)], ids=["even", "ragged"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama, grouped keys", "llama, one key"])
def test_keys_per_prompt_as_on_a_gpu(name, n, lengths, monkeypatch):
    monkeypatch.setattr(direct, "PerResponse", PerPrompt)
    for a, b in zip(*both(policy_of(name), ragged_rows(lengths), n), strict=True):
        torch.testing.assert_close(b.log_softmax(-1), a.log_softmax(-1), atol=CLOSE, rtol=0)


def test_attention_may_leave_its_output_in_another_order_in_memory(monkeypatch):
    """As a GPU's kernels for bfloat16 do: positions before heads."""
    plain = torch.nn.functional.scaled_dot_product_attention
    turned = lambda *given, **how: plain(*given, **how).transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    monkeypatch.setattr(direct, "PerResponse", PerPrompt)
    policy = policy_of("llama, grouped keys")
    usual = both(policy, ragged_rows(), 3)[1]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", turned)
    for a, b in zip(usual, both(policy, ragged_rows(), 3)[1], strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("name", ["gpt2", "gpt2, unscaled", "llama, grouped keys", "llama, scaled rope"])
def test_the_captured_step_serves_batches_of_its_shape_and_smaller_ones(name):
    policy = policy_of(name)
    tokens, graph = torch.randint(2, 12, (6, 12), generator=rng(5)), captured(policy)
    for lengths, n in (((1, 4, 2, 6), 3), ((2, 6, 3, 1), 3), ((4, 4), 3), ((1, 1), 1), ((7, 3, 5, 4), 3)):
        prompts, own = left_padded(ragged_rows(lengths)), OwnForward(policy)
        with torch.no_grad():
            a, b = own.start(prompts, n, 6), graph.start(prompts, n, 6)
            for t in range(6):
                torch.testing.assert_close(b.log_softmax(-1), a.log_softmax(-1), atol=CLOSE, rtol=0)
                a, b = (made.step(tokens[t, : len(a)]) for made in (own, graph))
    assert graph.movable is False
    with pytest.raises(NotImplementedError, match="captured in"):
        graph.keep(torch.arange(1))


def test_a_graph_is_captured_once_for_all_batches(monkeypatch):
    policy, prompts, graphs = policy_of("gpt2"), left_padded(ragged_rows()), []

    def counted(step):
        graphs.append(step)
        return repeated(step)

    def chosen(policy, rows):
        return Captured(policy, decoder(policy).steps, capture=counted)

    how = {"decoding": Decoding(max_new_tokens=12, top_p=0.9), "n": 25, "batch_size": 30}
    direct = sampler.sample(policy, prompts, rng=rng(), **how)
    monkeypatch.setattr(sampler, "decoder", chosen)
    assert torch.equal(sampler.sample(policy, prompts, rng=rng(), **how).response, direct.response)
    assert len(prompts.tokens) > 1 and len(graphs) == 1


def test_other_models_are_decoded_by_their_own_forward():
    assert isinstance(decoder(policy_of("gpt2")), Direct)
    assert isinstance(decoder(Policy(Changed(GPT2Config(**GPT2)), bos=0, eos=1)), OwnForward)

    hooked = policy_of("gpt2")
    hooked.model.transformer.h[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert isinstance(decoder(hooked), OwnForward)

    everywhere = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: None)
    try:
        assert isinstance(decoder(policy_of("gpt2")), OwnForward)
    finally:
        everywhere.remove()

    replaced = policy_of("llama")
    replaced.model.model.layers[0].mlp.up_proj = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    assert isinstance(decoder(replaced), OwnForward)

    windowed = policy_of("llama")
    windowed.model.config.sliding_window = 8
    assert isinstance(decoder(windowed), OwnForward)


def test_recording_of_hidden_states_does_not_change_the_way():
    policy = policy_of("llama")
    policy.model(input_ids=torch.tensor([[2, 3]]), output_hidden_states=True)
    assert isinstance(decoder(policy), Direct)
