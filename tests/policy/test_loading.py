"""Any local Hugging Face folder of a causal language model loads; whatever else is there is refused in one line."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import folders
import huggingface_hub
import pytest
import torch
import transformers
from folders import edit_json
from places import ROOT

from harness.core.errors import BadData, BadSetting, BenchError, MissingPrerequisite
from harness.core.types import Decoding
from harness.policy.configs import UNLIMITED, context_length
from harness.policy.loading import load_model
from harness.policy.sampler import sample
from harness.tasks.data.prompt_files import tokenize


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return folders.gpt2_folder(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return folders.llama_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def mine(gpt2, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(gpt2, tmp_path / "mine")


def refused(where: Path | str, kind: type[BenchError], *words: str, **options) -> None:
    with pytest.raises(kind) as caught:
        load_model(str(where), **options)
    assert type(caught.value) is kind and caught.value.exit_code == 3
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("name", "bos", "eos"), [("gpt2", 0, 0), ("llama", 0, 1)])
def test_local_folders_load_without_network_and_answer(name, bos, eos, request, monkeypatch):
    tried = folders.block_network(monkeypatch)
    folder = request.getfixturevalue(name)
    policy, tokenizer, identity = load_model(str(folder))
    assert (policy.bos, policy.eos, policy.context) == (bos, eos, 64)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert set(identity) == {"sha256", "tokenizer_sha256"} and {len(digest) for digest in identity.values()} == {64}
    prompts = tokenize(["the cat", "a quiet garden is"], tokenizer, max_new_tokens=5, context=policy.context)
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=5), rng=torch.Generator().manual_seed(0))
    again = policy.logits(rollout).log_softmax(-1).gather(-1, rollout.response[..., None]).squeeze(-1)
    torch.testing.assert_close(again[rollout.response_mask], rollout.logprobs[rollout.response_mask])
    assert tried == []


def test_dropout_is_off_even_in_training(gpt2):
    policy = load_model(str(gpt2)).policy.train()
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(policy.model(tokens).logits, policy.model(tokens).logits)


def test_the_dtype_is_float32_unless_told_otherwise(mine):
    model = transformers.GPT2LMHeadModel.from_pretrained(mine, dtype=torch.bfloat16)
    model.save_pretrained(mine)
    assert next(load_model(str(mine)).policy.parameters()).dtype is torch.float32
    assert next(load_model(str(mine), dtype=torch.bfloat16).policy.parameters()).dtype is torch.bfloat16


def test_identity_follows_the_bytes(gpt2, mine):
    before = load_model(str(gpt2)).identity
    assert load_model(str(mine)).identity == before
    edit_json(mine / "tokenizer_config.json", model_max_length=64)
    after = load_model(str(mine)).identity
    assert after["sha256"] == before["sha256"] and after["tokenizer_sha256"] != before["tokenizer_sha256"]
    edit_json(mine / "config.json", layer_norm_epsilon=1e-4)
    assert load_model(str(mine)).identity["sha256"] != before["sha256"]


def test_weights_may_be_pickled(mine):
    (mine / "model.safetensors").unlink()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained(mine))
    torch.save(model.state_dict(), mine / "pytorch_model.bin")
    assert torch.equal(load_model(str(mine)).policy.model.transformer.wte.weight, model.transformer.wte.weight)


def test_a_relative_folder_is_known_by_the_same_bytes(mine, monkeypatch):
    before = load_model(str(mine)).identity
    monkeypatch.chdir(mine)
    assert load_model(".").identity == before


def test_ends_of_a_text(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "ends")
    edit_json(folder / "tokenizer_config.json", bos_token=None, eos_token=None)
    edit_json(folder / "config.json", bos_token_id=3, eos_token_id=[7, 8])
    policy = load_model(str(folder)).policy
    assert (policy.bos, policy.eos) == (3, 7)  # the first of several ends
    edit_json(folder / "config.json", bos_token_id=5000)
    assert load_model(str(folder)).policy.bos == 7
    edit_json(folder / "config.json", eos_token_id=5000)
    refused(folder, BadData, "eos", "config.json")


def test_a_tokenizer_of_another_model(mine):
    tokenizer = transformers.AutoTokenizer.from_pretrained(mine)
    tokenizer.add_tokens(["neologism"])
    tokenizer.save_pretrained(mine)
    refused(mine, BadData, "ids up to 320", "only 320 embeddings")


def test_context_by_any_name():
    assert context_length(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=9, n_layer=1, vocab_size=2))) == 9
    mpt = transformers.MptConfig(d_model=8, n_heads=2, n_layers=1, max_seq_len=11, vocab_size=2)
    assert context_length(transformers.MptForCausalLM(mpt)) == 11
    bloom = transformers.BloomConfig(hidden_size=8, n_head=2, n_layer=1, vocab_size=2)
    assert context_length(transformers.BloomForCausalLM(bloom)) == UNLIMITED


@pytest.mark.parametrize(
    "where", ["", "./nope", "../nope", "~/nope", "/no/such/folder", "one/two/three", "nope/", "two words", "x\n"]
)
def test_what_looks_like_a_path_is_not_looked_up(where, monkeypatch):
    tried = folders.block_network(monkeypatch)
    refused(where, MissingPrerequisite, "no model folder", "looked in", "give a folder")
    assert tried == []


def test_a_slip_in_a_path_is_not_looked_up(gpt2, monkeypatch):
    tried = folders.block_network(monkeypatch)
    monkeypatch.chdir(gpt2.parent.parent)
    refused(f"{gpt2.parent.name}/tiny-gpt3", MissingPrerequisite, "looked in")
    assert tried == []


def test_a_folder_has_no_revisions(mine):
    with pytest.raises(BadSetting, match="is a folder, which has no revision 'v1'; leave it out, or give a hub id"):
        load_model(str(mine), revision="v1")


def test_missing_parts(mine, tmp_path):
    refused(mine / "config.json", BadData, "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", BadData, "no config.json")
    (mine / "model.safetensors").unlink()
    refused(mine, BadData, "no weights", "*.safetensors")


def test_missing_tokenizers(mine, llama, tmp_path):
    # transformers makes a GPT-2 tokenizer without a vocabulary when there are no files
    (mine / "tokenizer.json").unlink()
    (mine / "tokenizer_config.json").unlink()
    refused(mine, BadData, "no tokenizer", "tokenizer.json")
    folder = shutil.copytree(llama, tmp_path / "llama")
    (folder / "tokenizer.json").unlink()
    refused(folder, BadData, "no readable tokenizer", "tokenizer.json")


def test_corrupt_files(mine):
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    refused(mine, BadData, "cannot load", str(mine))
    config = (mine / "config.json").read_text()
    for broken in ("{", "[1]", "", "\udcff"):
        (mine / "config.json").write_text(broken, errors="surrogateescape")
        refused(mine, BadData, "config.json", "copy the model again")
    (mine / "config.json").write_text(config)
    (mine / "tokenizer.json").write_text("{")
    refused(mine, BadData, "tokenizer")


def test_weights_that_are_missing_do_not_start_at_random(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "trunk")
    model = transformers.LlamaModel.from_pretrained(folder)
    model.save_pretrained(folder)
    refused(folder, BadData, "lack", "lm_head.weight")
    folder = shutil.copytree(llama, tmp_path / "narrow")
    edit_json(folder / "config.json", intermediate_size=31)
    refused(folder, BadData, "another shape", "mlp")


def test_weights_that_are_not_finite(mine):
    model = transformers.GPT2LMHeadModel.from_pretrained(mine)
    model.transformer.ln_f.weight.data[0] = torch.nan
    model.save_pretrained(mine)
    refused(mine, BadData, "not finite")


def test_models_that_are_not_causal(mine, tmp_path):
    bert = folders.bert_folder(tmp_path / "bert")
    edit_json(bert / "config.json", eos_token_id=3)
    refused(bert, BadData, "looks ahead")
    size = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**size)).save_pretrained(mine)
    refused(mine, BadData, "cannot load a causal language model", "T5Config")


def test_hub_ids_are_found_in_the_cache(gpt2, tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    cache = folders.fake_hub(tmp_path, "someone/tiny", gpt2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    identity = load_model("someone/tiny", offline=True).identity
    assert identity == load_model(str(gpt2)).identity
    refused("someone/else", MissingPrerequisite, "'someone/else'", "offline", "hf download someone/else", offline=True)
    assert tried == []


def test_hub_ids_without_network_fail_at_once(tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    refused("gpt2", MissingPrerequisite, "'gpt2'", "hf download gpt2")
    refused("-", MissingPrerequisite)
    assert time.perf_counter() - start < 5 and tried


def test_pickled_weights_are_downloaded_only_where_there_are_no_others(mine, monkeypatch):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    asked = []

    def download(name, *, allow_patterns, **options):
        asked.append(allow_patterns)
        return str(mine)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_model("someone/tiny")
    assert len(asked) == 1 and "pytorch_model*.bin" not in asked[0]
    (mine / "model.safetensors").unlink()
    refused("someone/tiny", BadData, "no weights")
    assert asked[-1] == ["pytorch_model*.bin"]


def python(code: str, **env: str) -> str:
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hub_ids_offline_by_the_hubs_own_setting(gpt2, tmp_path, monkeypatch):
    cache = folders.fake_hub(tmp_path, "gpt2", gpt2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(load_model("gpt2").identity["sha256"]) == 64
    refused("gpt2-large", MissingPrerequisite, "gpt2-large", "offline")


@pytest.mark.slow  # a new interpreter, as the variable is read on import
def test_hub_ids_under_the_offline_variable(gpt2, tmp_path):
    folders.fake_hub(tmp_path, "gpt2", gpt2)
    code = """
from harness.core.errors import MissingPrerequisite
from harness.policy.loading import load_model
print(len(load_model("gpt2").identity["sha256"]))
try:
    load_model("gpt2-large")
except MissingPrerequisite as e:
    print(e)
"""
    digits, message = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert digits == "64" and "gpt2-large" in message and "offline" in message


def test_importing_the_loaders_is_cheap():
    code = """
import sys, harness.policy.loading, harness.tasks.data.prompt_files, harness.tasks.scorers.detoxify
print(sorted({"torch", "transformers", "huggingface_hub", "detoxify"} & set(sys.modules)))
"""
    assert python(code).strip() == "[]"
