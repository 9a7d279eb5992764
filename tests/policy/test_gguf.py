"""A .gguf file is a whole model: its weights de-quantised, its tokenizer, its name the hash of its bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

import folders
import gguf_files
import numpy as np
import quick
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from harness.core import hub
from harness.core.errors import BadData, BadSetting, MissingPrerequisite
from harness.core.types import Decoding
from harness.policy.load_check import check_model
from harness.policy.loading import LoadedModel, load_model
from harness.policy.logprobs.families import family_of
from harness.policy.sampler import sample
from harness.tasks.data.prompt_files import tokenize

TEXT = "the cat sat on the mat"
ODD = "the cat  12 sat\n\n34 on don't <|im_end|> x1y"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(file) -> LoadedModel:
    return load_model(str(file))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 30)[None]).logits


def test_it_is_the_model_that_was_written(loaded, file):
    torch.testing.assert_close(logits(loaded.policy.model), logits(gguf_files.llama()), atol=1e-6, rtol=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    assert torch.equal(logits(loaded.policy.model), logits(theirs))
    assert (loaded.policy.bos, loaded.policy.eos, loaded.policy.context) == (1, 2, 64)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_weights_are_those_that_the_format_defines(tmp_path, kind):
    model, expected = gguf_files.llama(tied=False), gguf_files.llama(tied=False)
    with torch.no_grad():
        for weight in expected.parameters():
            if weight.ndim == 2:
                weight.copy_(gguf_files.rounded(weight, kind))
    found = load_model(str(gguf_files.write(tmp_path / "model.gguf", model, kind=kind))).policy.model
    assert not torch.allclose(logits(found), logits(model), atol=0.1)
    torch.testing.assert_close(logits(found), logits(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_sampled_and_read_log_probabilities_are_those_of_transformers(loaded):
    """Grouped keys, tied tables: the direct arithmetic of Llama against the model's own forward, prompts of two lengths."""
    policy, model = loaded.policy, gguf_files.llama()
    assert family_of(policy.model) == "LlamaForCausalLM"
    prompts = tokenize([TEXT, "you silly goose, the"], loaded.tokenizer, max_new_tokens=9, context=64)
    rollout = sample(policy, prompts, decoding=Decoding(max_new_tokens=9), rng=torch.Generator().manual_seed(0), n=3)
    read = policy.logits(rollout).log_softmax(-1).gather(-1, rollout.response[..., None])[..., 0]
    for row in range(6):
        seen, said = rollout.prompts.mask[row], rollout.response_mask[row]
        text = torch.cat([rollout.prompts.tokens[row, seen], rollout.response[row, said]])[None]
        own = model(text).logits[0, int(seen.sum()) - 1 : -1].log_softmax(-1).gather(-1, rollout.response[row, said, None])
        torch.testing.assert_close(read[row, said], own[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(rollout.logprobs[row, said], own[:, 0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_likeliest_tokens_are_those_of_generate(loaded):
    prompts = tokenize([TEXT, "you silly goose, the"], loaded.tokenizer, max_new_tokens=12, context=64)
    cold = Decoding(max_new_tokens=12, top_k=1)
    ours = sample(loaded.policy, prompts, decoding=cold, rng=torch.Generator().manual_seed(0))
    theirs = gguf_files.llama().generate(
        prompts.tokens, attention_mask=prompts.mask.long(), max_new_tokens=12, do_sample=False, pad_token_id=2
    )[:, prompts.tokens.shape[1] :]
    assert torch.equal(ours.response[:, : theirs.shape[1]], theirs)


def test_the_tokenizer_reads_as_the_one_that_was_written(loaded, file, tmp_path):
    written = gguf_files.bpe()
    written.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    ids = loaded.tokenizer(ODD).input_ids
    assert ids == written.encode(ODD).ids and loaded.tokenizer.decode(ids) == ODD
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (1, 2)
    pieces = [piece for piece, _ in loaded.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3")]
    assert pieces == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]  # GPT-2's way parts the line ends and keeps the digits together
    loaded.tokenizer.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(ODD).input_ids == ids


def test_another_way_to_split_a_text_is_left_to_transformers(tmp_path):
    tokenizer = load_model(str(gguf_files.write(tmp_path / "gpt2.gguf", pre="gpt-2"))).tokenizer
    assert "Digits" not in str(tokenizer.backend_tokenizer.pre_tokenizer)


def test_it_is_known_by_its_bytes_whatever_lies_beside_it(loaded, file, tmp_path):
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.identity == {"sha256": sha256, "tokenizer_sha256": sha256}
    folder = folders.gpt2_folder(tmp_path / "gpt2")
    (folder / "policy.json").write_text("{}")
    moved = load_model(str(shutil.copy(file, folder / "other.gguf")))
    assert moved.identity == loaded.identity and torch.equal(logits(moved.policy.model), logits(loaded.policy.model))
    assert moved.tokenizer(ODD).input_ids == loaded.tokenizer(ODD).input_ids


def test_nothing_is_shown_while_it_loads(file, capfd):
    load_model(str(file))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"left_out": "blk.1.ffn_up.weight"}, "lack"),
        ({"more": {"rope_freqs.weight": np.ones(8, "float32")}}, "does not read this file in full"),
        ({"tokenizer": False}, "no readable tokenizer"),
    ],
)
def test_a_file_that_transformers_would_not_read_in_full_is_refused(tmp_path, options, said):
    file = gguf_files.write(tmp_path / "mine.gguf", **options)
    with pytest.raises(BadData, match=said) as caught:
        load_model(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 44, -5000], ids=["empty", "header", "cut"])
def test_a_damaged_file_is_refused(file, tmp_path, size):
    (mine := tmp_path / "mine.gguf").write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadData, match=r"mine\.gguf"):
        load_model(str(mine))


def test_a_missing_file_is_no_hub_id(tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    with pytest.raises(MissingPrerequisite, match=r"no model file at 'nope\.gguf'"):
        load_model("nope.gguf")
    assert tried == [] and hub.model("nope.gguf").local


def test_a_file_has_no_revision(file):
    with pytest.raises(BadSetting, match="is a file, which has no revision"):
        load_model(str(file), revision="main")


def test_packages_that_are_missing_are_named_with_their_extra(file, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda module: None)
    with pytest.raises(MissingPrerequisite, match=r"package gguf .*unlearning-harness\[small\]"):
        load_model(str(file))
    needs = hub.models(str(file))
    assert [need.there for need in needs] == [True, False, False] and needs[1].what == "package gguf"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat number {i} sat"}) + "\n" for i in range(120)))
    return path


def test_a_run_resumes_and_its_policy_is_read_by_all(harness, file, prompts, tmp_path, monkeypatch):
    from harness.training.trial import Trial

    more = {"task__fluency": "none", "evaluation__split": "test", "evaluation__base_samples": 50, "budget__updates": 4}
    more |= {"task__decoding__max_new_tokens": 8, "task__paper_tokens": 8, "evaluation__points": 2}
    words = ["--model", file, "--prompts", prompts, "--task", "toxicity", "--json"]
    run = ["run", "--method", "quark", *words, *quick.flags("quark", **more), "--out"]
    code, out, _ = harness(*run, tmp_path / "whole")
    whole = json.loads(out.splitlines()[-1])
    assert code == 0 and whole["final"]["kl"]["value"] > 0

    update, left = Trial.update, iter([None] * 3)

    def stopped(self, *args, **kwargs):
        if next(left, 0) is not None:
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trial, "update", stopped)
        assert harness(*run, tmp_path / "two")[0] == 130
    code, out, err = harness(*run, tmp_path / "two")
    resumed = json.loads(out.splitlines()[-1])
    assert code == 0 and "resum" in err and resumed["final"] == whole["final"]

    policy = tmp_path / "whole" / whole["run_dir"] / "policy"
    code, out, _ = harness("eval", "--policy", policy, *words, *quick.flags("base", **more), "--out", tmp_path / "whole")
    assert code == 0 and json.loads(out.splitlines()[-1])["final"] == whole["final"]
    pipe = transformers.pipeline("text-generation", model=str(policy))
    assert pipe(TEXT, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    check_model(load_model(str(file)).policy, file)
