"""A saved policy is a whole Hugging Face folder: what other programs read from it, and what a run may start from."""

from __future__ import annotations

import json
from pathlib import Path

import folders
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import left_padded

from harness.core.errors import BadData, RunFailed
from harness.core.types import Rollout
from harness.policy.loading import load_model
from harness.policy.models.ensemble import PARTS, Ensemble
from harness.policy.policy import Policy, naming

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A GPT-2 with a tokenizer of 320 ids."""
    return load_model(str(folders.gpt2_folder(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
def policy(loaded) -> Policy:
    """A copy of it that knows its tokenizer, as the harness makes it."""
    twin = loaded.policy.copy()
    twin.tokenizer = loaded.tokenizer
    return twin


def steered(policy: Policy, n: int = 3) -> Policy:
    policy.prefix = (int(policy.control_tokens(n, torch.Generator().manual_seed(0))[-1]),)
    return policy


def wider(policy: Policy, rows: int) -> Policy:
    """The policy with an embedding table larger than its tokenizer."""
    policy.model.resize_token_embeddings(rows, mean_resizing=False)
    return Policy(policy.model, bos=policy.bos, eos=policy.eos, tokenizer=policy.tokenizer)


def read(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)


def rollout_of(rows: list[list[int]]) -> Rollout:
    response = torch.tensor([[5, 9, 12]] * len(rows))
    return Rollout(left_padded(rows), response, torch.ones_like(response, dtype=torch.bool))


@pytest.mark.parametrize("rows", [320, 327], ids=["as many rows as ids", "rows that no id has"])
def test_the_tokenizer_knows_the_control_tokens_by_their_embeddings(policy, loaded, rows, tmp_path):
    steered(wider(policy, rows)).save(tmp_path)
    tokenizer, model = read(tmp_path)
    names = [f"<|control_{i}|>" for i in range(rows, rows + 3)]
    assert tokenizer.convert_tokens_to_ids(names) == [rows, rows + 1, rows + 2]
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == rows + 3
    ids = loaded.tokenizer(TEXT).input_ids
    assert tokenizer(names[2] + TEXT).input_ids == [rows + 2, *ids] and tokenizer(TEXT).input_ids == ids
    assert tokenizer.decode([rows + 2, *ids], skip_special_tokens=True) == TEXT
    assert len(loaded.tokenizer) == 320  # the task's own is left alone


@torch.no_grad()
def test_the_model_as_others_load_it_is_the_policy(policy, tmp_path):
    steered(policy).save(tmp_path)
    tokenizer, model = read(tmp_path)
    ids = tokenizer(f"<|control_322|>{TEXT}").input_ids
    rollout = rollout_of([ids[1:]])
    whole = model(torch.tensor([[*ids, 5, 9, 12]])).logits[:, len(ids) - 1 : -1, :320]
    torch.testing.assert_close(policy.deployed_logits(rollout), whole, atol=1e-5, rtol=0)


def test_the_tokenizer_changes_no_byte_of_the_weights(policy, tmp_path):
    steered(policy).save(tmp_path / "with")
    policy.tokenizer = None
    policy.save(tmp_path / "without")
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    with_, without = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert with_ == without
    assert load_file(tmp_path / "with" / "model.safetensors")["transformer.wte.weight"].dtype == torch.float32


def test_others_draw_from_the_policy_as_it_is_measured(policy, tmp_path):
    """At temperature 1 with nothing cut off; no control token, even where its logit is the largest."""
    steered(policy)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[320:] *= 100
    policy.save(tmp_path)
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    found = (config.do_sample, config.temperature, config.top_k, config.top_p, config.eos_token_id, config.pad_token_id)
    assert found == (True, 1.0, 0, 1.0, 0, 0)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path))
    ids = pipe(f"<|control_322|>{TEXT}", max_new_tokens=20, return_tensors=True)[0]["generated_token_ids"]
    assert 322 in ids and max(ids[ids.index(322) + 1 :]) < 320


def test_a_base_whose_own_decoding_settings_contradict_each_other_can_be_saved(policy, tmp_path):
    policy.model.generation_config.temperature = 0.6  # as some chat models are shipped: Hugging Face refuses to save that
    policy.model.generation_config.do_sample = False
    policy.save(tmp_path)
    assert transformers.GenerationConfig.from_pretrained(tmp_path).temperature == 1.0


def test_a_model_with_several_ends_is_saved_with_all(policy, tmp_path):
    twin = Policy(policy.model, bos=0, eos=0, ends=(7, 0), tokenizer=policy.tokenizer)
    twin.save(tmp_path)
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [0, 7]
    assert Policy.load(tmp_path).ends == twin.around(twin.model).ends == (0, 7)


@torch.no_grad()
def test_a_run_may_start_from_a_policy_without_control_tokens(policy, loaded, tmp_path):
    for p in policy.parameters():
        p += 0.01
    policy.save(tmp_path)
    again = load_model(str(tmp_path))
    rollout = rollout_of([[3, 4], [5]])
    assert torch.equal(again.policy.logits(rollout), policy.logits(rollout))
    assert (again.policy.vocab_size, again.policy.bos, again.policy.ends) == (320, 0, (0,))
    assert again.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_no_run_starts_from_a_policy_that_needs_its_prefix(policy, tmp_path):
    steered(policy).save(tmp_path)
    with pytest.raises(BadData, match=r"3 control tokens, .*; measure it with harness eval --policy") as caught:
        load_model(str(tmp_path))
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_a_policy_json_that_is_broken_is_refused_and_one_of_somebody_else_is_not(policy, tmp_path):
    policy.save(tmp_path)
    (tmp_path / "policy.json").write_text('{"rules": []}')
    assert load_model(str(tmp_path)).policy.vocab_size == 320
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(BadData, match=r"policy\.json is not readable JSON"):
        load_model(str(tmp_path))


@torch.no_grad()
def test_an_ensemble_is_three_whole_folders(policy, tmp_path):
    models = [policy.copy().model for _ in PARTS]
    models[1].get_input_embeddings().weight.mul_(1.5)
    together = policy.around(Ensemble(*models, 2.0))
    together.save(tmp_path)
    rollout = rollout_of([[3, 4], [5]])
    assert torch.equal(Policy.load(tmp_path).logits(rollout), together.logits(rollout))
    for part in PARTS:
        assert read(tmp_path / part)[0](TEXT).input_ids == policy.tokenizer(TEXT).input_ids
    expert = load_model(str(tmp_path / "expert")).policy
    assert torch.equal(expert.logits(rollout), policy.around(models[1]).logits(rollout))
    with pytest.raises(BadData, match=r"ensemble of models, expected one; .*/expert"):
        load_model(str(tmp_path))


class Gaps:
    """A tokenizer that numbers new tokens from another place than behind its last."""

    def get_vocab(self):
        return {"a": 0, "b": 9}

    def add_tokens(self, tokens, special_tokens):
        return len(tokens)

    def convert_tokens_to_ids(self, names):
        return list(range(2, 2 + len(names)))


def test_a_tokenizer_that_cannot_name_the_control_tokens_is_refused_before_training(policy):
    policy.tokenizer = Gaps()
    with pytest.raises(RunFailed, match=r"cannot name the control tokens 320 to 322: .*gaps"):
        policy.control_tokens(3, torch.Generator())
    assert policy.num_control == 0 and policy.model.config.vocab_size == 320


def test_naming_nothing_needs_no_tokenizer(loaded):
    assert naming(loaded.tokenizer, 320, 0) is loaded.tokenizer and naming(None, 320, 3) is None


def test_copies_share_the_tokenizer(policy):
    assert policy.copy().tokenizer is policy.frozen_copy().tokenizer is policy.tokenizer


def test_what_a_folder_does_not_hold_comes_from_the_base(policy, tmp_path):
    base = policy.copy()
    base.precision = torch.bfloat16
    steered(policy).save(tmp_path)
    again = Policy.load(tmp_path)
    assert again.tokenizer is None and again.precision == torch.float32
    again.like(base)
    assert again.precision == torch.bfloat16 and len(again.tokenizer) == 323
    assert json.loads((tmp_path / "policy.json").read_text()) == {"bos": 0, "eos": 0, "num_control": 3, "prefix": [322]}
