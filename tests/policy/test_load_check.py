"""A model is checked on what it is used for; each fault here is planted in a model that passes without it."""

from __future__ import annotations

import inspect
import json

import folders
import pytest
import torch
import transformers
from tiny import EOS, TINY, steered, tiny_gpt2, tiny_llama

from harness.core.errors import BadData
from harness.policy import caches, load_check, sampler
from harness.policy.decoding import OwnForward
from harness.policy.load_check import check_model
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy

HALVES = [torch.bfloat16, torch.float16]


def refused(policy: Policy, *words: str) -> None:
    with pytest.raises(BadData) as caught:
        check_model(policy, "here")
    message = str(caught.value)
    assert message.startswith("the model in here ") and "\n" not in message
    assert all(word in message for word in words), message


def windowed(kind: str, window: int) -> Policy:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=24, max_position_embeddings=64, num_key_value_heads=2, initializer_range=0.4, sliding_window=window, **size
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(getattr(transformers, f"{kind}ForCausalLM")(config), bos=0, eos=EOS)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("kind", TINY)
def test_sound_models_pass_and_nothing_is_drawn(kind, dtype):
    policy = steered(TINY[kind]()).to(dtype)
    before = torch.get_rng_state()
    check_model(policy, "here")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("context", [2, 3, 9, 20])
def test_a_short_context_is_checked_as_far_as_it_goes(context):
    config = transformers.GPT2Config(vocab_size=12, n_positions=context, n_embd=8, n_layer=1, n_head=1)
    check_model(Policy(transformers.GPT2LMHeadModel(config), bos=0, eos=1), "here")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("window", [8, 60])
def test_a_window_that_only_the_cache_knows_of(window, dtype):
    """Llama has none: its cache forgets what lies beyond the config's, and its attention does not."""
    policy = windowed("Llama", window).to(dtype)
    refused(policy, "when sampled than alone", f"sliding_window={window}: set it to null")
    assert policy.model.config.sliding_window == window  # narrowed for the check alone
    check_model(windowed("Mistral", window).to(dtype), "here")


def test_a_window_in_one_part_of_an_ensemble():
    parts = [windowed("Mistral", 8).model for _ in range(3)]
    check_model(Policy(Ensemble(*parts, alpha=1.0), bos=0, eos=EOS), "here")
    parts[1] = windowed("Llama", 8).model
    refused(Policy(Ensemble(*parts, alpha=1.0), bos=0, eos=EOS), "when sampled than alone")


def without_positions(policy: Policy) -> None:
    forward = policy.model.forward

    def counted(position_ids=None, **inputs):
        return forward(**inputs)

    counted.__signature__ = inspect.signature(forward)
    policy.model.forward = counted


def other_states(policy: Policy) -> None:
    states = policy.states
    policy.states = lambda rollout: 2 * states(rollout)


def wider_states(policy: Policy) -> None:
    states = policy.states
    policy.states = lambda rollout: torch.cat([states(rollout)] * 2, -1)


def logits_that_depend_on_the_batch(policy: Policy) -> None:
    logits = policy.logits
    policy.logits = lambda rollout: logits(rollout) * (1 + 0.1 * (len(rollout.response) > 2))


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (without_positions, "when sampled than alone"),
        (other_states, "hidden states other than those"),
        (wider_states, "hidden states other than those"),
        (logits_that_depend_on_the_batch, "when padded on the right than alone"),
    ],
)
def test_planted_faults_are_found(plant, words):
    policy = tiny_gpt2()
    check_model(policy, "here")
    plant(policy)
    refused(policy, words)


@pytest.mark.parametrize("rows", ["repeated", "dropped"])
def test_a_cache_that_keeps_the_wrong_rows_is_found(rows, monkeypatch):
    """Both where responses are made of a prompt and where those that have ended leave the batch."""
    monkeypatch.setattr(sampler, "decoder", lambda policy, rows: OwnForward(policy))
    take = caches.take

    def wrong(cache, kept):
        grows = bool((kept.diff() == 0).any())
        take(cache, kept.flip(0) if grows == (rows == "repeated") else kept)

    monkeypatch.setattr(load_check.caches, "take", wrong)
    refused(tiny_llama(), "when sampled than alone", "expected an architecture")


def test_a_model_that_does_not_run_is_one_line():
    policy = tiny_gpt2()

    def broken(*args, **kwargs):
        raise IndexError("index out of\nrange")

    policy.model.forward = broken
    refused(policy, "does not run as a causal language model (index out of range)")


def test_a_policy_that_is_to_be_measured_is_checked_too(tmp_path, harness):
    model = folders.gpt2_folder(tmp_path / "base")
    windowed("Llama", 8).save(tmp_path / "policy")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"the cat number {i} sat"}) + "\n" for i in range(120)))
    words = ["--policy", tmp_path / "policy", "--task", "toxicity", "--model", model, "--prompts", prompts]
    options = ["--set", "task.fluency=none", "--set", "task.decoding.max_new_tokens=6", "--out", tmp_path / "out"]
    code, _, err = harness("eval", *words, *options)
    assert code == 3 and "sliding_window=8: set it to null" in err and "Traceback" not in err
