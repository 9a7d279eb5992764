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
from harness.policy.models.steered import Steered, layer_at, layers_of
from harness.policy.policy import Policy
from harness.policy.sampler import sample
from harness.training.activations import activations

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


def test_a_share_of_the_depth_names_a_layer_and_a_model_without_layers_is_refused():
    model = tiny_gpt2().model
    assert [layer_at(model, depth) for depth in (0.0, 0.4, 0.6, 1.0)] == [0, 0, 1, 1]
    model.transformer.h = nn.ModuleList()
    with pytest.raises(BadSetting, match=r"GPT2LMHeadModel has no list of 2 layers"):
        layers_of(model)
