"""The memory of a run, estimated before anything is loaded: shapes against real models, parts against hand-worked ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from harness.core.types import Settings
from harness.runs import named, session
from harness.runs.cost import memory, shapes
from harness.runs.cost.memory import Load, estimate, fits, load_of, smaller

MODELS = {
    "gpt2": transformers.GPT2Config(),
    "gpt2-xl": transformers.GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "codeparrot/codeparrot-small": transformers.GPT2Config(vocab_size=32768),
    "smollm2": transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(MODELS[name])
    assert shapes.parameters(name) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_a_low_rank_adapter_has_the_parameters_that_peft_gives_it(name):
    pytest.importorskip("peft")
    from harness.policy.models import adapters

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(MODELS[name])
        adapters.attach(model, adapters.Lora(8, 16.0))
    shape = shapes.SHAPES[name]
    assert sum(p.numel() for p in adapters.trained(model)) == 8 * shape.projected * shape.layers


def saved_numbers(config, layers: int) -> float:
    """The numbers that autograd saves of a token in a forward pass, weights left out."""
    from harness.policy.policy import Policy

    config.num_hidden_layers = layers
    model = Policy(transformers.AutoModelForCausalLM.from_config(config), bos=0, eos=0).model
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own and x.is_floating_point():
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
        return x

    tokens = torch.zeros(8, 50, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        assert model.base_model(input_ids=tokens, use_cache=False).last_hidden_state.requires_grad
    return sum(kept.values()) / tokens.numel()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_block_keeps_the_numbers_that_are_counted(family):
    ends = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    if family == "gpt2":
        config = transformers.GPT2Config(**ends, n_embd=64, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        shape = shapes.gpt2(64, 1024, 64, 1)
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
        config, shape = transformers.LlamaConfig(**ends, **sizes), shapes.llama(64, 64, 1, 160, 64, 32, tied=False)
    block = saved_numbers(config, 2) - saved_numbers(config, 1)
    assert block == pytest.approx(shape.activations, rel=0.02)


def settings(preset="gpt2", method="quark", task="toxicity", *overrides):
    return named.settings(preset, method, task, list(overrides))


def test_the_parts_of_an_update_of_gpt2_by_hand():
    found = estimate(settings(), shapes.SHAPES["gpt2"], Load(64, 1, 52, 20), scorers=1.0)
    n = 124_439_808
    assert found.weights == pytest.approx(2 * 4 * n / 1e9) and found.training == pytest.approx(3 * 4 * n / 1e9)
    assert found.activations == pytest.approx(64 * 52 * 12 * (8 * 768 + 2 * 3072) * 4 / 1e9)
    assert found.logits == pytest.approx(2.12 * 64 * 20 * 50257 * 4 / 1e9)
    assert found.scorers == pytest.approx(1.0 + 4 * 774_030_080 / 1e9)
    assert found.peak == pytest.approx(sum(found))


def test_a_network_that_is_held_has_weights_alone():
    shape = shapes.SHAPES["gpt2"]
    one, two = (estimate(settings(), shape, Load(64, 1, 52, 20, held)) for held in (0, 1))
    assert two.weights == pytest.approx(one.weights + 4 * 124_439_808 / 1e9) and two[1:] == one[1:]


def test_setups_change_the_part_that_they_are_for():
    shape, load = shapes.SHAPES["gpt2"], Load(64, 1, 52, 20)
    whole = estimate(settings(), shape, load)
    parts = estimate(settings("gpt2", "quark", "toxicity", "model.micro_batch=8"), shape, load)
    assert parts.activations == pytest.approx(whole.activations / 8) and parts._replace(activations=0) == whole._replace(
        activations=0
    )
    layers = estimate(settings("gpt2", "quark", "toxicity", "model.checkpointing=true"), shape, load)
    assert layers.activations == pytest.approx(whole.activations / 12 + 64 * 52 * 12 * 768 * 4 / 1e9)
    adapter = estimate(settings("gpt2", "quark", "toxicity", "model.lora.rank=8"), shape, load)
    trained = 8 * 12 * (4 * 768 + 2 * 768 + 2 * 5 * 768)
    assert adapter.weights == pytest.approx(4 * (124_439_808 + trained) / 1e9)
    assert adapter.training == pytest.approx(12 * trained / 1e9)


def test_a_method_says_what_its_updates_have():
    assert load_of(settings(), "quark") == Load(64, 1, memory.PROMPT + 20, 20)
    assert load_of(settings("gpt2", "dpo"), "dpo")[:2] == (64, 1)  # pairs
    assert load_of(settings("gpt2", "ppo"), "ppo")[:2] == (128, 2)  # a fourth of 512, and a value network of its own
    shared = settings("gpt2", "ppo", "toxicity", "method.value_trunk=shared", "method.explore_prompts=10")
    assert load_of(shared, "ppo")[:2] == (3, 1)
    assert load_of(settings("gpt2", "dexperts"), "dexperts") == Load(64, 2, 133, 133)  # 100 words
    assert load_of(settings("gpt2", "mle"), "mle") == Load(64, 1, 133, 133)
    samples = settings("gpt2", "rwr", "toxicity", "method.source=samples")
    assert load_of(samples, "rwr").scored == 20 and load_of(settings("gpt2", "rwr"), "rwr").scored == 133
    assert load_of(settings("gpt2", "task_vector"), "task_vector").held == load_of(settings("gpt2", "undo"), "undo").held == 1
    assert load_of(settings("gpt2", "best_of_n"), "best_of_n") == Load(0, 0, 0, 0)


def test_what_does_not_fit_is_told_what_to_set():
    shape = shapes.SHAPES["gpt2-large"]
    told, load = settings("paper"), Load(128, 1, 52, 20)
    assert not fits(estimate(told, shape, load), 24) and fits(estimate(told, shape, load), 80)
    changed = smaller(told, shape, load, 0.0, 24)
    assert changed[0].startswith("model.micro_batch=") and fits(
        estimate(settings("paper", "quark", "toxicity", *changed), shape, load), 24
    )
    assert smaller(told, shape, load, 0.0, 16)[-1] == "model.lora.rank=8"
    assert smaller(told, shape, load, 30.0, 24) == []


def test_a_dry_run_says_what_fits(harness):
    code, out, err = harness("run", "-m", "quark", "-t", "repetition", "--preset", "paper", "--dry-run")
    found = json.loads(out)["memory"]
    assert code == 0, err
    assert found["sequences_per_update"] == 128 and found["fits"] == {"24 GB": False, "80 GB": True}
    assert found["set_for"] == {"24 GB": ["model.micro_batch=8"]}
    assert found["peak_gb"] == pytest.approx(sum(found["gb"].values()), abs=0.01)
    code, out, _ = harness("run", "-m", "base", "-t", "toxicity", "--model", "some/one", "--preset", "gpt2", "--dry-run")
    assert json.loads(out)["memory"] is None


def test_the_plan_in_the_guide_is_what_the_command_prints(harness):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "presets.md").read_text()
    shown = json.loads(
        "{" + guide.partition('  "memory"')[1].strip() + guide.partition('  "memory"')[2].partition("```")[0] + "}"
    )
    _, out, _ = harness("run", "-m", "quark", "-t", "toxicity", "--preset", "paper", "--dry-run")
    assert shown["memory"] == json.loads(out)["memory"]


def test_a_config_that_makes_no_sense_has_no_shape(tmp_path):
    for config in ({"model_type": "llama"}, {"model_type": "gpt2", "vocab_size": 3}, {"model_type": "mamba"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert shapes.shape(str(tmp_path)) is None
    heads = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **heads}))
    assert shapes.shape(str(tmp_path)) is None


def test_settings_of_a_plug_in_need_say_nothing(monkeypatch):
    class Mine:
        Settings = type("MineSettings", (Settings,), {})

    monkeypatch.setattr(memory.registry, "load", lambda kind, name: Mine)
    assert load_of(settings().model_copy(update={"method": {}}), "mine") == Load(0, 1, memory.PROMPT + 20, 20)


def test_the_peak_on_a_gpu_is_recorded_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert session.peak_gpu_memory(torch.device("cuda", 0)) == {"peak_gpu_memory_mb": 3.0}
    assert session.peak_gpu_memory(torch.device("cpu")) == {}


def test_a_sharded_policy_is_divided_by_the_processes_and_whole_while_it_samples(monkeypatch):
    """Of n weights: 8 n bytes of policy and reference and 12 n of training in four parts; 4 n more while it samples."""
    shape, load = shapes.SHAPES["gpt2"], Load(0, 1, 0, 0)
    whole = estimate(settings(), shape, load)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    found = estimate(settings("gpt2", "quark", "toxicity", "model.shard=full"), shape, load)
    n = shape.parameters / 1e9
    assert (found.weights, found.training) == pytest.approx((whole.weights / 4, whole.training / 4))
    assert found.peak - found.scorers == pytest.approx(20 * n / 4 + 4 * n, rel=0.01)
