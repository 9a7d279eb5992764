"""LoRA: adapters beside frozen weights that all copies share, saved beside the identity of their base or merged into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import architectures
import pytest
import torch
import transformers
from architectures import CONFIGS, draw
from safetensors.torch import load_file, save_file
from tiny import left_padded, ragged_rows, tiny_gpt2

from harness.core.errors import BadData, BadSetting, MissingPrerequisite
from harness.core.settings import ModelSettings, resolve
from harness.core.types import Rollout
from harness.policy.loading import load_model
from harness.policy.models import adapters
from harness.policy.models.adapters import CONFIG, WEIGHTS, Lora
from harness.policy.models.ensemble import Ensemble
from harness.policy.models.setup import Setup, setup_of
from harness.policy.policy import Policy
from harness.runs import assemble

peft = pytest.importorskip("peft")
BASE = {"name": "a base", "sha256": "0123456789abcdef"}
KNOWN = [name for name in CONFIGS if name.split(",")[0] in ("GPT-2", "GPT-Neo", "GPT-NeoX", "OPT", "BLOOM", "Llama")]
KNOWN += ["Mistral with a sliding window", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3, text"]


def under_lora(policy: Policy, merge: bool = False) -> Policy:
    policy.setup = Setup(lora=Lora(2, 8.0, merge), base=BASE)
    return policy.requires_grad_(False)


def rollout() -> Rollout:
    response = torch.arange(20).view(4, 5) % 10 + 2
    return Rollout(left_padded(ragged_rows()), response, torch.ones(4, 5, dtype=torch.bool))


@pytest.fixture
def base() -> Policy:
    return under_lora(tiny_gpt2())


def moved(policy: Policy) -> Policy:
    """The policy with an adapter that does something."""
    with torch.no_grad():
        for i, weight in enumerate(adapters.trained(policy.model)):
            weight += torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight).roll(i, -1)
    return policy


@pytest.mark.parametrize("name", KNOWN)
def test_an_architecture_trains_its_adapter_and_comes_back(name, tmp_path):
    loaded = load_model(str(architectures.write(name, tmp_path / "model")))
    base = under_lora(loaded.policy, merge=True)
    before = {key: weight.clone() for key, weight in base.model.state_dict().items()}
    policy, reference = base.copy().requires_grad_(True), base.frozen_copy()
    torch.testing.assert_close(draw(policy).logprobs, draw(reference).logprobs, atol=2e-5, rtol=0)
    policy.tokenizer = loaded.tokenizer
    architectures.train(policy, reference)
    assert all(torch.equal(weight, before[key]) for key, weight in base.model.state_dict().items())
    said = draw(policy)
    assert (said.logprobs - draw(reference).logprobs).abs().max() > 1e-3
    policy.save(tmp_path / "adapter")
    assert torch.equal(draw(Policy.load(tmp_path / "adapter", base=base)).logprobs, said.logprobs)
    policy.published().save(tmp_path / "whole")
    whole = Policy.load(tmp_path / "whole")
    torch.testing.assert_close(whole.deployed_logits(said), policy.deployed_logits(said), atol=1e-4, rtol=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    ours = whole.model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_the_base_is_held_once(base):
    policy, reference, twin = base.copy().requires_grad_(True), base.frozen_copy(), base.copy().requires_grad_(True)
    places = {weight.data_ptr() for weight in base.parameters()}
    for each in (policy, twin, policy.copy()):
        own = {weight.data_ptr() for weight in each.parameters()} - places
        assert len(own) == len(list(adapters.trained(each.model))) and places <= {p.data_ptr() for p in each.parameters()}
        assert all(weight.requires_grad == (weight.data_ptr() in own) for weight in each.parameters())
    assert {weight.data_ptr() for weight in reference.parameters()} == places
    moved(policy)
    assert not torch.equal(policy.logits(rollout()), twin.logits(rollout()))


def test_without_lora_a_copy_has_its_own_weights():
    policy = tiny_gpt2()
    assert not {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in policy.copy().parameters()}


def test_peft_reads_what_is_saved(base, tmp_path):
    policy = moved(base.copy().requires_grad_(True))
    policy.save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 8.0, "a base")
    tokens = torch.tensor([[3, 4, 5, 6]])
    theirs = peft.PeftModel.from_pretrained(tiny_gpt2().model, str(tmp_path))
    torch.testing.assert_close(theirs(tokens).logits, policy.model(tokens).logits)
    assert (theirs(tokens).logits - tiny_gpt2().model(tokens).logits).abs().max() > 0.1


def test_an_ensemble_saves_its_adapters_and_finds_its_base(base, tmp_path):
    expert, anti = (moved(base.copy().requires_grad_(True)) for _ in range(2))
    with torch.no_grad():
        next(adapters.trained(anti.model)).mul_(2)
    policy = base.around(Ensemble(base.model, expert.model, anti.model, 1.5))
    policy.save(tmp_path)
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == []
    again = Policy.load(tmp_path, base=base)
    assert torch.equal(again.logits(rollout()), policy.logits(rollout())) and again.model.alpha == 1.5
    assert {p.data_ptr() for p in base.parameters()} <= {p.data_ptr() for p in again.model.expert.parameters()}
    policy.setup = policy.setup._replace(lora=Lora(2, 8.0, True))
    policy.published().save(tmp_path / "whole")
    torch.testing.assert_close(Policy.load(tmp_path / "whole").logits(rollout()), policy.logits(rollout()))


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    base.copy().requires_grad_(True).save(tmp_path)
    other = base.copy()
    other.setup = other.setup._replace(base={"name": "another", "sha256": "fedcba9876543210"})
    expected = r"holds an adapter of the base model 'a base' \(sha256 01234567\), not 'another' \(sha256 fedcba98\); choose"
    with pytest.raises(BadData, match=expected):
        Policy.load(tmp_path, base=other)
    with pytest.raises(BadData, match=r"none here; choose its base with --model"):
        Policy.load(tmp_path)
    with pytest.raises(BadData, match=r"model\.lora\.merge=true"):
        load_model(str(tmp_path))


def test_an_adapter_that_does_not_fit_is_refused(base, tmp_path):
    base.copy().requires_grad_(True).save(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    name = next(name for name in sorted(weights) if "lora_B" in name)
    for wrong in ({k: v for k, v in weights.items() if k != name}, weights | {name: weights[name][:1].clone()}):
        save_file(wrong, tmp_path / WEIGHTS)
        with pytest.raises(BadData, match=f"does not fit its base: {name}"):
            Policy.load(tmp_path, base=base)
    save_file(weights, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"r": 10**12}))
    with pytest.raises(BadData, match="its weights are not of rank 1000000000000"):
        Policy.load(tmp_path, base=base)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(BadData, match="cannot read the adapter"):
        Policy.load(tmp_path, base=base)


def test_an_architecture_without_known_layers_is_refused_by_name(tmp_path):
    model = transformers.MambaForCausalLM(CONFIGS["Mamba"]())
    with pytest.raises(
        BadSetting, match=r"the architecture 'mamba'; it knows bloom, gemma2, .* qwen3; set model\.lora\.rank=0"
    ):
        setup_of(ModelSettings(lora={"rank": 2}), model, "")


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[lora\]'"):
        setup_of(ModelSettings(lora={"rank": 2}), tiny_gpt2().model, "")
    with pytest.raises(MissingPrerequisite, match="needs the package peft"):
        assemble.check(resolve("micro", "quark", "toxicity", ["model.lora.rank=2"]), "quark")


def test_weights_are_not_drawn_anew_beside_an_adapter(base):
    with pytest.raises(BadSetting, match=r"set start=base, or model\.lora\.rank=0"):
        base.copy().requires_grad_(True).reset(torch.Generator())
    told = resolve("micro", "mle", "toxicity", ["start=scratch", "model.lora.rank=2"])
    with pytest.raises(BadSetting, match="start = scratch draws all weights anew"):
        assemble.check(told, "mle")


def test_a_method_that_changes_all_weights_is_refused_beside_an_adapter():
    with pytest.raises(BadSetting, match=r"undo changes all weights .* set model\.lora\.rank=0"):
        assemble.check(resolve("micro", "undo", "toxicity", ["model.lora.rank=2"]), "undo")


@pytest.mark.parametrize("extra", ["alpha=4", "merge=true"])
def test_a_setting_that_would_do_nothing_is_refused(extra):
    with pytest.raises(BadSetting, match="go with a rank of 1 or more"):
        resolve("micro", "quark", "toxicity", [f"model.lora.{extra}"])


def test_the_identity_of_a_run_names_a_setup_only_where_it_is_not_the_default():
    model = tiny_gpt2().model
    assert setup_of(ModelSettings(), model, "x").identity() == {} == Setup(base=BASE).identity()
    plain, told = (setup_of(ModelSettings(lora={"rank": 4} | more), model, "x") for more in ({}, {"alpha": 8}))
    assert plain.identity() == told.identity() == {"setup": {"lora": {"rank": 4, "alpha": 8.0, "merge": False}}}
    small = setup_of(ModelSettings(micro_batch=3, checkpointing=True, id="mine"), model, "x")
    assert small.identity() == {"setup": {"micro_batch": 3, "checkpointing": True}}
    assert small.base == {"name": "mine", "sha256": "x"}


def test_a_run_of_the_preset_micro_keeps_its_id(tmp_path):
    """The settings of the model enter no identity as long as they are the defaults."""
    told = [resolve("micro", "quark", "toxicity", more) for more in ([], ["model.micro_batch=8"])]
    cells = [assemble.cell(s, assemble.parts(s, "toxicity"), "quark", "toxicity", 0, tmp_path) for s in told]
    assert "setup" not in cells[0].identity and cells[1].identity["setup"] == {"micro_batch": 8}
    assert {k: v for k, v in cells[1].identity.items() if k != "setup"} == cells[0].identity


def test_the_folder_of_a_policy_is_made_where_it_is_missing(base, tmp_path):
    base.copy().requires_grad_(True).save(tmp_path / "new")
    assert Path(tmp_path / "new" / "policy.json").is_file()
