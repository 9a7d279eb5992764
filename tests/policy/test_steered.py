"""The layers of a policy: what they leave, which of them learn, and a vector that is added to one."""

from __future__ import annotations

import architectures
import pytest
import torch
from hand_worked import batch
from tiny import TINY, left_padded, ragged_rows, rng, tiny_gpt2
from torch import nn

from harness.core.errors import BadSetting
from harness.core.types import Decoding
from harness.policy.load_check import check_model
from harness.policy.logprobs import token_logprobs
from harness.policy.models.layers import activations
from harness.policy.models.setup import Setup
from harness.policy.models.steered import Steered, layer_at, layers_of
from harness.policy.policy import Policy
from harness.policy.sampler import sample

VECTOR = torch.linspace(-1, 1, 16)


def steered(layer: int = 0, make=tiny_gpt2, scale: float = 1.0) -> Policy:
    base = make()
    return base.around(Steered(base.model, layer, scale * VECTOR))


@torch.no_grad()
def test_a_vector_is_a_bias_of_what_a_layer_adds():
    """GPT-2's layer ends in a sum with a projection that has a bias: the same vector there is the same policy."""
    plain, part = tiny_gpt2(), batch()
    plain.model.transformer.h[1].mlp.c_proj.bias.add_(VECTOR)
    mask = part.response_mask
    torch.testing.assert_close(steered(layer=1).logits(part)[mask], plain.logits(part)[mask], atol=1e-5, rtol=0)
    assert (steered(layer=0).logits(part)[mask] - plain.logits(part)[mask]).abs().max() > 0.01


@torch.no_grad()
def test_the_last_layer_of_llama_is_read_by_norm_and_head():
    base, part = TINY["llama"](), batch()
    states = activations(base, part, 1)
    expected = base.model.lm_head(base.model.model.norm(states + VECTOR))
    mask = part.response_mask
    torch.testing.assert_close(steered(1, TINY["llama"]).logits(part)[mask], expected[mask], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_with_its_cache_it_is_the_one_without_and_its_base_stays(make):
    policy, prompts, base = steered(make=make), left_padded(ragged_rows()), make()
    drawn = sample(policy, prompts, decoding=Decoding(max_new_tokens=9, temperature=3.0), rng=rng(), n=5)
    lengths = drawn.response_mask.sum(1)
    assert (lengths < 9).sum() > 5 and (lengths == 9).any()
    uncached = token_logprobs(policy.logits(drawn), drawn.response).masked_fill(~drawn.response_mask, 0)
    torch.testing.assert_close(drawn.logprobs, uncached, atol=1e-4, rtol=0)
    assert torch.equal(base.around(policy.model.base).logits(drawn), base.logits(drawn))
    none = steered(make=make, scale=0.0).logits(drawn)[drawn.response_mask]
    torch.testing.assert_close(none, base.logits(drawn)[drawn.response_mask], atol=1e-5, rtol=0)


def test_it_survives_its_folder(tmp_path):
    policy, part = steered(layer=1), batch()
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert isinstance(again.model, Steered) and again.passes == 1 and torch.equal(again.model.vector, VECTOR)
    assert torch.equal(again.logits(part), policy.logits(part))
    check_model(again, "here")


@torch.no_grad()
@pytest.mark.parametrize("name", ["GPT-2", "OPT", "Llama", "Mixtral", "Gemma 3, text and images", "Mamba"])
def test_the_layers_of_an_architecture_are_found(name):
    """What the first leaves is the library's second hidden state, and a policy with a vector there samples what it reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architectures.transformers.AutoModelForCausalLM.from_config(architectures.CONFIGS[name]())
    at = 0 if name == "Mamba" else 1  # whose list of hidden states has no embeddings
    policy = Policy(model, bos=0, eos=1)
    prompts = architectures.Words().train_prompts(4, rng())
    drawn = sample(policy, prompts, decoding=Decoding(max_new_tokens=4), rng=rng())
    found = activations(policy, drawn, 0)
    for i in range(4):
        prompt, said = prompts.tokens[i][prompts.mask[i]], drawn.response[i][drawn.response_mask[i]]
        states = model(input_ids=torch.cat([prompt, said])[None], output_hidden_states=True).hidden_states[at][0]
        torch.testing.assert_close(found[i, : len(said)], states[len(prompt) - 1 : -1].float(), atol=1e-4, rtol=1e-4)
    moved = policy.around(Steered(model, 0, torch.linspace(-1, 1, found.shape[-1])))
    check_model(moved, "here")
    assert (moved.logits(drawn) - policy.logits(drawn))[drawn.response_mask].abs().max() > 1e-4


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
def test_the_gradient_of_activations_is_the_same_in_parts_and_recomputed(make):
    found = []
    for setup in (Setup(), Setup(micro_batch=1, checkpointing=True)):
        policy, part = make(), batch()
        policy.setup = setup
        states = activations(policy, part, 1, trained=1)
        states[part.response_mask].square().sum().backward()
        found.append({name: w.grad for name, w in policy.model.named_parameters() if w.grad is not None})
    whole, parts = found
    assert whole.keys() == parts.keys() and all(".1." in name for name in whole)
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, atol=1e-4, rtol=1e-4)


def test_all_layers_below_learn_unless_told_otherwise_and_never_the_embeddings_when_told():
    policy, part = tiny_gpt2(), batch()
    activations(policy, part, 1, trained=5)[part.response_mask].square().sum().backward()
    learned = {name for name, w in policy.model.named_parameters() if w.grad is not None}
    assert any(".h.0." in name for name in learned) and not any("wte" in name for name in learned)
    activations(policy, part, 1)[part.response_mask].square().sum().backward()
    assert policy.model.transformer.wte.weight.grad is not None and gradient_of_head(policy) is None


def gradient_of_head(policy: Policy):
    return policy.model.transformer.ln_f.weight.grad


def test_a_pass_over_activations_is_charged():
    policy, told = tiny_gpt2(), []
    policy.on_forward = lambda tokens, trained: told.append((tokens, trained))
    activations(policy, batch(), 0)
    with torch.no_grad():
        activations(policy, batch(), 0)
    assert told == [(13, True), (13, False)]


def test_a_share_of_the_depth_names_a_layer_and_a_model_without_layers_is_refused():
    model = tiny_gpt2().model
    assert [layer_at(model, depth) for depth in (0.0, 0.4, 0.6, 1.0)] == [0, 0, 1, 1]
    model.transformer.h = nn.ModuleList()
    with pytest.raises(BadSetting, match=r"GPT2LMHeadModel has no list of 2 layers"):
        layers_of(model)
