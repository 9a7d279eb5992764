"""A folder of a model is data: no code in it runs, nothing that it names is followed, and it fits its own config."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import folders
import pytest
import torch
import transformers
from folders import edit_json
from safetensors.torch import load_file, save_file

from harness.core.errors import BadData, Interrupted, refusing
from harness.policy.loading import load_model
from harness.policy.models.ensemble import Ensemble
from harness.policy.policy import Policy
from harness.policy.tokenizers import GROWTH, PROBE, read_tokenizer
from harness.policy.weights import read_model
from harness.tasks.data.prompt_files import tokenize
from harness.tasks.scorers.classifier import ClassifierScorer

SMALL = (
    "task.fluency=none", "task.decoding.max_new_tokens=6", "evaluation.base_samples=50",
    "evaluation.samples=2", "evaluation.points=0", "evaluation.paper_samples=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A whole model, which is a policy of its own too."""
    folder = folders.gpt2_folder(tmp_path_factory.mktemp("models") / "tiny")
    Policy(transformers.GPT2LMHeadModel.from_pretrained(folder), bos=0, eos=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat number {i} sat"}) + "\n" for i in range(120)))
    return path


@pytest.fixture
def mine(model, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(model, tmp_path / "mine")


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """The file that a payload makes; asking on stdin fails too."""

    def ask(*words):
        raise AssertionError(f"asked on stdin: {words}")

    monkeypatch.setattr("builtins.input", ask)
    return tmp_path / "ran"


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def code(file: str, *, of_a_known_kind: bool = True):
    """Code beside the weights, named in one of the configs."""

    def spoil(folder: Path, marker: Path) -> None:
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
        kind = {} if of_a_known_kind else {"model_type": "evil"}
        edit_json(folder / file, auto_map={name: "evil.X" for name in kinds}, **kind)

    return spoil


def pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload(marker)}, folder / "pytorch_model.bin")


def nested_code(folder: Path, marker: Path) -> None:
    code("config.json")(folder, marker)
    edit_json(folder / "config.json", auto_map=None, text_config={"auto_map": {"AutoConfig": "evil.X"}})


def other_weights(folder: Path, marker: Path) -> None:
    torch.save({"transformer.wte.weight": Payload(marker)}, folder / "evil.bin")
    edit_json(folder / "config.json", transformers_weights="evil.bin")


def adapter(folder: Path, marker: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))


PAYLOADS = {
    "code of a new kind": (code("config.json", of_a_known_kind=False), "config.json names code of its own"),
    "code of a known kind": (code("config.json"), "config.json names code of its own"),
    "code of a tokenizer": (code("tokenizer_config.json"), "tokenizer_config.json names code of its own"),
    "code deep in a config": (nested_code, "config.json names code of its own"),
    "a pickle": (pickle, "cannot load a causal language model"),
    "weights under another name": (other_weights, "config.json names a file of weights"),
    "an adapter": (adapter, "holds an adapter"),
}
ways = pytest.mark.parametrize("read", [lambda f: load_model(str(f)), Policy.load], ids=["load_model", "Policy.load"])


@ways
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_that_a_folder_brings_is_run_or_followed(payload, read, mine, marker):
    spoil, words = PAYLOADS[payload]
    spoil(mine, marker)
    with pytest.raises(BadData, match=words) as caught:
        read(mine)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert not marker.exists()


@pytest.mark.parametrize("payload", ["code of a new kind", "a pickle"])
@pytest.mark.parametrize("command", ["run", "eval"])
def test_the_command_line_runs_nothing_that_a_folder_brings(command, payload, mine, model, prompts, marker, tmp_path, harness):
    spoil, said = PAYLOADS[payload]
    spoil(mine, marker)
    common = ["--task", "toxicity", "--prompts", prompts, "--out", tmp_path / "out", *(w for s in SMALL for w in ("--set", s))]
    chosen = {"run": ["--method", "base", "--model", mine], "eval": ["--policy", mine, "--model", model]}[command]
    found, _, err = harness(command, *chosen, *common)
    assert found == 3 and said in err and err.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err and not marker.exists()


def test_every_part_of_an_ensemble_is_read_with_the_same_care(mine, marker, tmp_path):
    parts = [transformers.GPT2LMHeadModel.from_pretrained(mine) for _ in range(3)]
    Policy(Ensemble(*parts, alpha=1.0), bos=0, eos=0).save(tmp_path / "policy")
    assert Policy.load(tmp_path / "policy").passes == 3
    code("config.json")(tmp_path / "policy" / "expert", marker)
    with pytest.raises(BadData, match=r"expert.*names code of its own"):
        Policy.load(tmp_path / "policy")
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_chooses_no_kernel(key, model, mine):
    """It may name one on the hub, which is code; what computes the attention is transformers' own choice."""
    edit_json(mine / "config.json", **{key: "kernels-community/no-such-kernel"})
    tokens = torch.tensor([[1, 2, 3]])
    own, plain = (read_model(folder, None) for folder in (mine, model))
    assert own.config._attn_implementation == plain.config._attn_implementation != "kernels-community/no-such-kernel"
    assert torch.equal(own(tokens).logits, plain(tokens).logits)


def test_the_config_of_a_classifier_chooses_no_kernel(tmp_path):
    folder = folders.classifier_folder(tmp_path / "classifier", "Bert", ("mild", "rude"))
    edit_json(folder / "config.json", _attn_implementation="kernels-community/no-such-kernel")
    ClassifierScorer(str(folder), "rude")


def test_the_file_that_is_hashed_is_the_one_that_is_read(mine):
    """Weights under a name that transformers does not know are not passed over for a pickle beside them."""
    torch.save(load_file(mine / "model.safetensors"), mine / "pytorch_model.bin")
    (mine / "model.safetensors").rename(mine / "other.safetensors")
    with pytest.raises(BadData, match="cannot load a causal language model"):
        load_model(str(mine))


def change_weights(folder: Path, **added: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors") | {name.replace("__", "."): x for name, x in added.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@ways
def test_weights_of_more_layers_than_the_config_has_are_refused(read, mine):
    edit_json(mine / "config.json", n_layer=1)
    with pytest.raises(BadData, match=r"are 11 more than a GPT2LMHeadModel with this config has, such as transformer\.h\.1\."):
        read(mine)


def test_a_head_that_the_model_has_no_place_for_is_refused(mine):
    change_weights(mine, v_head__summary__weight=torch.zeros(1, 16))
    with pytest.raises(BadData, match="1 more than a GPT2LMHeadModel"):
        load_model(str(mine))


def test_constants_that_older_releases_saved_are_no_weights(mine):
    """GPT-2 and its children on the hub hold their causal masks; Llama's first releases their frequencies."""
    mask = {f"transformer__h__{i}__attn__bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    masked = {f"transformer__h__{i}__attn__masked_bias": torch.tensor(-1e4) for i in range(2)}
    change_weights(mine, **mask, **masked, transformer__h__0__attn__rotary_emb__inv_freq=torch.ones(4))
    load_model(str(mine))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json", "policy.json"])
@pytest.mark.parametrize("levels", [1000, 100_000])
def test_a_file_of_a_thousand_levels_is_one_line(file, levels, mine):
    start = (mine / file).read_text().rstrip().removesuffix("}")
    (mine / file).write_text(start + ', "deep": ' + '{"a": ' * levels + "1" + "}" * levels + "}")
    with pytest.raises(BadData) as caught:
        Policy.load(mine) if file == "policy.json" else load_model(str(mine))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize("eos", [[], ["</s>"], "</s>", -1, 1.5])
def test_an_eos_that_is_no_id_is_one_line(eos, mine):
    edit_json(mine / "tokenizer_config.json", eos_token=None, bos_token=None)
    edit_json(mine / "config.json", eos_token_id=eos)
    (mine / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(BadData) as caught:
        load_model(str(mine))
    assert "\n" not in str(caught.value)


def change_tokenizer(folder: Path, **parts: object) -> None:
    edit_json(folder / "tokenizer.json", **parts)


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


EVIL = r"(a+a+)+b"


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": EVIL}, "behavior": "Isolated", "invert": False}},
        {"normalizer": replace({"Regex": EVIL}, "x")},
        {"normalizer": replace({"Regex": "("}, "x")},
        {"normalizer": {"type": "nothing like it"}},
    ],
    ids=["split", "normalizer", "no pattern", "no normalizer"],
)
def test_a_tokenizer_that_panics_is_one_line(parts, mine, capfd):
    """And none beside it: the library's own words on the standard error say nothing to a user."""
    change_tokenizer(mine, **parts)
    capfd.readouterr()
    with pytest.raises(BadData, match="tokenizer") as caught:
        load_model(str(mine))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert capfd.readouterr().err == ""


def test_a_tokenizer_is_read_where_the_standard_error_is_closed(model, monkeypatch):
    def closed(number):
        raise OSError("bad file descriptor")

    monkeypatch.setattr("harness.policy.tokenizers.os.dup", closed)
    assert len(read_tokenizer(model)) > 300


def test_a_prompt_that_a_tokenizer_panics_at_is_one_line(mine):
    """What the text at loading does not show: a pattern that fails on another letter."""
    pattern = {"Regex": EVIL.replace("a", "q")}
    change_tokenizer(mine, pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    tokenizer = load_model(str(mine)).tokenizer
    with pytest.raises(BadData, match="the tokenizer fails on the prompts"):
        tokenize(["q" * 60], tokenizer, max_new_tokens=1, context=64)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 60},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replace({"Regex": "."}, "xx")] * 40}]},
        replace({"String": "a"}, "b" * 200_000),
        replace({"String": "ж"}, "b" * 200_000),
        {"type": "Sequence", "normalizers": [replace({"String": "ж"}, "a" * 20_000), replace({"String": "a"}, "bbb")]},
        {"type": "Sequence", "normalizers": [replace({"Regex": ""}, "é")] * 60},
    ],
    ids=["doubles", "nested", "one letter", "a letter of its own", "a letter of its own in two steps", "between all"],
)
def test_a_normalizer_that_lets_a_text_grow_is_refused(normalizer, mine):
    change_tokenizer(mine, normalizer=normalizer)
    with pytest.raises(BadData, match=f"more than {GROWTH} characters of one"):
        load_model(str(mine))


def test_a_decoder_that_lets_a_text_grow_is_refused(mine):
    change_tokenizer(mine, decoder={"type": "Sequence", "decoders": [replace({"String": "a"}, "b" * GROWTH * len(PROBE))]})
    with pytest.raises(BadData, match=f"more than {GROWTH} characters of one"):
        load_model(str(mine))


def test_the_normalizers_of_known_tokenizers_pass(mine):
    plain = [{"type": kind} for kind in ("NFKC", "Lowercase", "NFD", "StripAccents")]
    spaces = [{"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"), replace({"Regex": " {2,}"}, " ")]
    usual = [*plain, *spaces, {"type": "Strip", "strip_left": True, "strip_right": True}]
    change_tokenizer(mine, normalizer={"type": "Sequence", "normalizers": usual})
    load_model(str(mine))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Interrupted, GeneratorExit])
def test_an_interruption_is_no_fault_of_a_folder(error):
    with pytest.raises(error), refusing("cannot load", "copy it again"):
        raise error("stop")
