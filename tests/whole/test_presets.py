"""The presets on real models, data and scorers: every row runs end to end on tiny stand-ins in the real formats, offline."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fake_hub
import folders
import pytest
import transformers
from places import ROOT

from harness import run
from harness.analysis.study import Study
from harness.core import registry
from harness.core.errors import BadSetting, UnknownName
from harness.core.settings import preset_names, read_preset, resolve
from harness.records.read import find_runs, read_run
from harness.report import learning_rates, trials
from harness.runs import assemble
from harness.runs.cost import shapes
from harness.tasks import DATASETS, SCORERS

TASKS = ("toxicity", "sentiment", "sentiment_negative", "repetition", "pii", "pep8")
IN_MICRO = {*TASKS, "facts"}
SMOLLM2 = 134_515_008  # parameters
SMALL = {
    "task.decoding.max_new_tokens": 8, "task.paper_tokens": 8, "task.data.train": 40, "task.data.held_out": 3,
    "task.data.documents": 40, "task.data.clean": 5, "budget.flops": 1e18, "budget.updates": 3, "model.device": "cpu",
    "evaluation.points": 1, "evaluation.samples": 2, "evaluation.point_samples": 1, "evaluation.paper_samples": 2,
    "evaluation.base_samples": 50, "batch_size": 4, "explore_every": 2, "explore_prompts": 12,
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> tuple[Path, Path]:
    """A HF_HOME with everything in it, and Detoxify's checkpoint."""
    home = tmp_path_factory.mktemp("hub")
    return home, fake_hub.build(home)


def use(home: Path, monkeypatch) -> list[object]:
    """Look for everything below a folder; -> the connections that were tried."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    return folders.block_network(monkeypatch)


def settings(checkpoint: Path, **more: object) -> dict[str, object]:
    """Budgets and sizes cut, and Detoxify's checkpoint, whose real name vouches for other bytes than the stand-in's."""
    changes = {"scorers.detoxify.checkpoint": str(checkpoint)} | {k.replace("__", "."): v for k, v in more.items()}
    return SMALL | changes


def flags(checkpoint: Path, **more: object) -> list[str]:
    return [word for k, v in settings(checkpoint, **more).items() for word in ("--set", f"{k}={v}")]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", ["gpt2", "paper"])
def test_every_row_runs_end_to_end(preset, task, world, monkeypatch, tmp_path):
    tried = use(world[0], monkeypatch)
    length = {"task__paper_tokens": 64} if task == "repetition" else {}
    summary = run("quark", task, preset=preset, settings=settings(world[1], **length), out=tmp_path)
    assert summary["cost"]["updates"] == 3 and tried == []
    kinds = {name.partition("@")[2] for name in summary["final"]} - {""}
    assert len(kinds) == 3 and "unconditional" in kinds
    for name in ("reward", "judge", "kl", "clean_nll", *papers(task)):
        assert summary["final"][name]["value"] is not None, (name, summary["final"][name])
    manifest = read_run(tmp_path / summary["run_dir"]).manifest
    identity = manifest.identity
    data, origin = identity["data"], manifest.provenance.prompts["origin"]
    assert origin["commit"] == fake_hub.COMMIT and len(data["sha256"]) == 64 and origin["revision"] == "main"
    assert data["rows"]["train"] > 20 and data["rows"]["documents"] > 0 and data["rows"]["clean"] > 0
    assert identity["scorers"]["reward"] != identity["scorers"]["judge"]


def papers(task: str) -> list[str]:
    """The papers' metrics that stand-ins can show: theirs open no function, and their likeliest response has no words."""
    return {
        "toxicity": ["max_toxicity", "toxicity_prob", "toxicity_prob_inclusive"],
        "repetition": ["diversity_sampled", "rep_128", "wrep_128"],
        "pii": ["pii_per_kchar"],
        "pep8": [],
    }.get(task, ["positive_rate"])


def test_the_command_line_says_what_came_out_and_that_it_is_done(world, harness, monkeypatch, tmp_path):
    tried = use(world[0], monkeypatch)
    command = ["run", "-m", "quark", "-t", "toxicity", "--preset", "gpt2", "--out", tmp_path, *flags(world[1])]
    code, out, err = harness(*command)
    assert code == 0 and "undesired (1 - judge)" in out, err
    code, _, err = harness(*command, "--offline")
    assert code == 0 and "already done" in err
    assert list((tmp_path / ".cache").glob("texts-detoxify-*.sqlite")) and list(
        (tmp_path / ".cache").glob("texts-classifier-*")
    )
    assert tried == []


def test_a_policy_from_elsewhere_is_measured_on_a_real_task(world, harness, monkeypatch, tmp_path):
    use(world[0], monkeypatch)
    cut = {k: v for k, v in settings(world[1]).items() if "." in k and not k.startswith("budget")}
    changes = [word for k, v in cut.items() for word in ("--set", f"{k}={v}")]
    code, out, err = harness(
        "eval", "--policy", "gpt2", "-t", "sentiment", "--preset", "gpt2", "--out", tmp_path, "--json", *changes
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["final"]["kl"]["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own_under_the_offline_variable(world, tmp_path):
    code = """
import json, socket, sys
def refuse(*args, **kwargs): raise SystemExit("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import harness
summary = harness.run("base", "sentiment", preset="gpt2", settings=json.loads(sys.argv[1]), out=sys.argv[2])
print(summary["status"], sorted(k for k in summary["final"] if k.startswith("judge")))
"""
    wanted = {k: v for k, v in settings(world[1]).items() if "." in k}
    env = dict(os.environ) | {"HF_HOME": str(world[0]), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code, json.dumps(wanted), tmp_path], env=env, capture_output=True, text=True)
    assert done.stdout == "done ['judge', 'judge@negative', 'judge@positive', 'judge@unconditional']\n", done.stderr


def missing(task: str, *changes: str, preset: str = "gpt2") -> list[str]:
    return ["run", "-m", "base", "-t", task, "--preset", preset, *(w for c in changes for w in ("--set", c))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (missing("sentiment", "model.id=gpt3"), "no model 'gpt3': .*HUB, and the run is offline.*hf download gpt3"),
        (missing("sentiment", "model.revision=v9"), "no model 'gpt2': .*hf download gpt2 --revision v9"),
        (missing("sentiment", "task.fluency=gpt3-xl"), "no model 'gpt3-xl'"),
        (missing("sentiment", "scorers.sst2.model=some/one"), "no classifier 'some/one' .*HUB.*hf download some/one"),
        (missing("sentiment", "scorers.sst2.sha256=abc"), "model.safetensors has the sha256 .*, not abc as set; download"),
        (missing("toxicity"), "cannot read the Detoxify checkpoint .*toxic_debiased-c7548aa0.ckpt .*download https://github.com/"),
        (missing("toxicity", "scorers.detoxify.checkpoint=WRONG"), "has the sha256 .*, not 00000000 as in its name"),
        (missing("repetition", "task.data.revision=v9"), "no data set 'Salesforce/wikitext': not prepared in .*run is offline"),
        (missing("pep8", "task.data.revision=v9"), "no data set 'kejian/.*parquet is not in .*HUB.*hf download kejian/"),
        (missing("sentiment", "task.prompts=dexperts", "task.data.path=nowhere"), "cannot read the prompts in nowhere"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(words, said, world, harness, monkeypatch, tmp_path):
    import re

    home, checkpoint = world
    tried = use(home, monkeypatch)
    if "revision=v9" in str(words) and "repetition" in words:  # what is prepared has no other revision, but it may be absent
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "empty")
    wrong = shutil.copy(checkpoint, tmp_path / "toxic_original-00000000.ckpt")
    words = [w.replace("WRONG", str(wrong)) for w in words]
    code, out, err = harness(*words, "--out", tmp_path / "out", "--set", "evaluation.base_samples=50")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 3 and out == "" and len(lines) == 1 and "Traceback" not in err, err
    assert re.search(said.replace("HUB", re.escape(str(home / "hub"))), lines[0]), lines[0]
    assert tried == [] and not (tmp_path / "out").exists()


def test_offline_from_python_looks_nowhere_and_leaves_no_trace(world, monkeypatch, tmp_path):
    from huggingface_hub import constants

    tried = use(world[0], monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    resolved = resolve("gpt2", "base", "sentiment", settings(world[1]) | {"batch_size": 1})
    resolved = resolved.model_copy(update={"method": {}})
    shared = assemble.parts(resolved, "sentiment", offline=True, out=tmp_path)
    assert tried == [] and constants.HF_HUB_OFFLINE is False and not shared.micro


def test_what_a_task_changes_goes_before_the_preset_and_the_command_line_before_both(monkeypatch):
    tables = {
        "model": {"id": "a", "revision": "r"},
        "budget": {"flops": 1.0, "updates": 5},
        "tasks": {"t": {
            "prompts": "imdb", "reward": "x", "judge": "y", "kl_cap": 1.0, "decoding": {"max_new_tokens": 3},
            "data": {"train": 9},
            "budget": {"flops": 2.0}, "model": {"dtype": "bfloat16"}, "methods": {"m": {"lr": 2.0, "beta": 2.0}},
        }},
        "methods": {"m": {"lr": 1.0, "alpha": 1.0}},
    }  # fmt: skip
    monkeypatch.setattr("harness.core.settings.read_preset", lambda name: json.loads(json.dumps(tables)))
    assert resolve("p", "m", "t").method == {"lr": 2.0, "alpha": 1.0, "beta": 2.0}
    assert resolve("p", "m", "t", ["lr=3.0"]).method == {"lr": 3.0, "alpha": 1.0, "beta": 2.0}
    assert resolve("p", "other", "t").method == {}
    found = resolve("p", "m", "t", ["budget.updates=6"])
    assert found.budget == {"flops": 2.0, "updates": 6} and (found.model.id, found.model.dtype) == ("a", "bfloat16")
    assert resolve("p", "m", "t", budget__flops=7.0).budget["flops"] == 7.0
    # what is swapped takes along what was said of it
    assert found.task.data.train == 9 and found.model.revision == "r"
    swapped = resolve("p", "m", "t", ["task.data.train=8"], task__prompts="mine.jsonl", model__id="b")
    assert swapped.task.data.train == 8 and swapped.model.revision is None
    assert resolve("p", "m", "t", ["task.prompts=wikitext"]).task.data.train == 10_000
    assert resolve("p", "m", "t", ["model.id=b", "model.revision=s"]).model.revision == "s"


def test_settings_of_a_data_set_that_there_is_not(world):
    with pytest.raises(
        BadSetting, match=r"task.data applies to named data sets only, and the prompts are 'micro'; leave it out"
    ):
        assemble.check(resolve("micro", "base", "toxicity", ["task.data.train=5"]), "base")
    with pytest.raises(UnknownName, match=r"no dataset named 'imbd'; did you mean 'imdb'\? \(harness list datasets\)"):
        assemble.check(resolve("gpt2", "base", "sentiment", ["task.prompts=imbd"]), "base")
    with pytest.raises(BadSetting, match=r"unknown setting 'task.data.trian'; did you mean 'train'"):
        resolve("gpt2", "base", "sentiment", ["task.data.trian=5"])


def test_a_shipped_preset_extends_another():
    below, above = (resolve(name, "quark", "toxicity") for name in ("small", "small-gpu"))
    assert above.task.kl_cap == below.task.kl_cap and above.model.id == below.model.id  # only small has these
    assert (above.model.dtype, above.budget["flops"], above.method["batch_size"]) == ("bfloat16", 5e14, 64)
    assert (below.model.dtype, below.budget["flops"], below.method["batch_size"]) == ("float32", 1e14, 16)
    assert "extends" not in read_preset("small-gpu")


@pytest.mark.parametrize("preset", preset_names())
def test_every_setting_of_a_preset_is_checked(preset):
    tables = read_preset(preset)
    if preset in ("small", "small-gpu"):
        assert set(tables["tasks"]) < set(TASKS)
    else:
        assert set(tables["tasks"]) == (IN_MICRO if preset == "micro" else set(TASKS))
    for task, table in tables["tasks"].items():
        assert set(table.get("methods", {})) | set(tables["methods"]) <= set(registry.table("method"))
        for method in ("base", "best_of_n", *tables["methods"]):
            resolved = resolve(preset, method, task)
            assemble.check(resolved, method)
            assert resolved.task.reward != resolved.task.judge
            assert resolved.task.prompts in ("micro", "facts") or resolved.task.prompts in DATASETS
    assert {t.get("kind", name) for name, t in tables.get("scorers", {}).items()} <= set(SCORERS)


def test_the_micro_preset_has_the_learning_rates_that_the_committed_trials_choose():
    runs, problems = find_runs([ROOT / "results" / "trials"])
    rates = learning_rates.learning_rates(Study([run for run in runs if learning_rates.counts(run)]))
    path = ROOT / "harness" / "core" / "presets" / "micro.toml"
    assert not problems and learning_rates.rewritten(path.read_text(), rates, path) == path.read_text(), "run: make trials"
    for task in read_preset("micro")["tasks"]:
        for control, other in (("random_reward", "reinforce"), ("mle", "filtering")):
            assert registry.attribute("method", control, "tuned_as") == other
            assert resolve("micro", control, task).method["lr"] == resolve("micro", other, task).method["lr"]


def test_the_micro_preset_has_the_settings_that_the_committed_trials_choose_for_methods_without_a_rate():
    study = Study([run for run in find_runs([ROOT / "results" / "trials"])[0] if learning_rates.counts(run)])
    found = {(g.task, m): trials.chosen(g, entries) for g in study.groups for m, entries in trials.by_method(g).items()}
    told = {key: entry.runs[0].manifest.identity["method"]["settings"] for key, entry in found.items() if entry}
    fixed = {key: settings for key, settings in told.items() if "lr" not in settings}
    assert {method for _, method in fixed} == {"self_debias", "steering"}
    for (task, method), settings in fixed.items():
        own = registry.load("method", method).Settings(**resolve("micro", method, task).method)
        assert own.model_dump(mode="json") == settings, (task, method)


def test_a_preset_is_shown_resolved_with_sizes_and_costs(harness):
    code, out, err = harness("show", "preset", "gpt2")
    assert code == 0, err
    for said in (
        "toxicity",
        "  task.data.train = 10000",
        "  model.id = codeparrot/codeparrot-small",
        "num_quantiles=8",
        "estimate",
    ):
        assert said in out
    code, out, _ = harness("show", "preset", "gpt2", "--json")
    data = json.loads(out)
    assert code == 0 and data["tables"] == read_preset("gpt2") and data["downloads_mb"]["gpt2-large"] == 3096
    row = data["tasks"]["toxicity"]["cost"]["quark"]
    assert row["parameters"] == 124_439_808 and row["training_hours"] == pytest.approx(6e15 / 1e13 / 3600)
    assert row["frontier_tokens"] == 300 * 512 * 20
    # base and final: 16 responses of 20 tokens and 25 of the paper's each; at 4 points 2 responses
    assert row["evaluation_tokens"] == 300 * (20 * (2 * 16 + 4 * 2) + 2 * 25 * 20)
    assert data["tasks"]["toxicity"]["cost"]["base"]["training_hours"] == 0
    code, out, _ = harness("show", "preset", "micro")
    assert code == 0 and "no cost estimate" in out
    assert json.loads(harness("show", "preset", "micro", "--json")[1])["tasks"]["toxicity"]["parameters"] > 500_000


def test_parameters_of_what_is_at_hand(world, monkeypatch, tmp_path):
    assert (
        shapes.parameters("gpt2") == 124_439_808
        and shapes.parameters("some/one") is None
        and shapes.parameters("a/b/c") is None
    )
    use(world[0], monkeypatch)
    folder = world[0] / "made" / "gpt2"
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert shapes.parameters(str(folder)) == shapes.parameters("gpt2") == sum(p.numel() for p in model.parameters())
    llama = folders.llama_folder(tmp_path / "llama")
    weights = transformers.AutoModelForCausalLM.from_pretrained(llama).parameters()
    assert shapes.parameters(str(llama)) == sum(p.numel() for p in weights)


def test_a_dry_run_says_what_is_there(world, harness, monkeypatch, tmp_path):
    use(world[0], monkeypatch)
    needs = {}
    for task in TASKS:
        code, out, err = harness("run", "-m", "quark", "-t", task, "--preset", "gpt2", "--dry-run")
        assert code == 0, err
        needs |= {need["what"]: need for need in json.loads(out)["needs"]}
    assert {n for n, need in needs.items() if not need["there"]} == {"Detoxify checkpoint unbiased"}
    absent = needs["Detoxify checkpoint unbiased"]
    assert absent["where"].startswith(str(world[0] / "torch")) and "releases/download" in absent["how"]
    assert {fake_hub.RTP, fake_hub.CODE, fake_hub.SST2, "gpt2", "gpt2-large", "package scrubadub"} <= set(needs)
    use(tmp_path, monkeypatch)
    for task in TASKS:
        out = harness("run", "-m", "quark", "-t", task, "--preset", "gpt2", "--dry-run")[1]
        assert not any(n["there"] for n in json.loads(out)["needs"] if not n["what"].startswith("package"))
    mine = ["--prompts", tmp_path / "mine.jsonl", "--model", world[0] / "made" / "gpt2"]
    found = json.loads(harness("run", "-m", "base", "-t", "toxicity", "--dry-run", *mine)[1])
    assert [(n["what"], n["there"]) for n in found["needs"]] == [(str(mine[3]), True), ("prompts", False)]
    other = ["--prompts", "dexperts", "--set", f"task.data.path={tmp_path}", "--preset", "gpt2"]
    found = json.loads(harness("run", "-m", "base", "-t", "sentiment", "--dry-run", *other)[1])
    assert ("prompts of DExperts", True) in [(n["what"], n["there"]) for n in found["needs"]]
    assert list(tmp_path.iterdir()) == []


def test_the_data_sets_are_listed(harness):
    code, out, _ = harness("list", "datasets")
    assert code == 0 and "allenai/real-toxicity-prompts" in out
    assert all(assemble.registry.load("dataset", name) for name in DATASETS)
    code, out, _ = harness("show", "method", "quark")
    assert "preset gpt2, repetition: num_quantiles=8, kl_coef=0.01" in out


@pytest.mark.parametrize("method", ["dpo", "kto", "rloo", "grpo"])
def test_trls_trainers_have_trls_learning_rate_and_the_guide_says_so(method):
    """In the preset of published settings, written there and not left to a default that nobody sees."""
    config = (Path(find_spec("trl").submodule_search_locations[0]) / "trainer" / f"{method}_config.py").read_text()
    theirs = float(re.search(r"learning_rate: float = field\(\s*default=([\d.e-]+)", config)[1])
    assert read_preset("paper")["methods"][method]["lr"] == theirs == 1e-6
    guide = (ROOT / "docs" / "guides" / "presets.md").read_text()
    assert f"`{method}`" in guide and "the learning rate of TRL 1.16, 1e-6" in guide


@pytest.mark.parametrize("preset", ["gpt2", "paper"])
def test_every_learning_rate_on_real_models_is_written_in_the_preset(preset):
    trained = {name for name in registry.table("method") if "lr" in registry.load("method", name).Settings.model_fields}
    written = {name for name, table in read_preset(preset)["methods"].items() if "lr" in table}
    assert written == trained - {"oracle"}  # it trains as the micro world's base policy did, and runs there alone


@pytest.mark.parametrize("method", ["reinforce", "random_reward", "gdc", "dpo", "kto", "rloo", "npo", "gradient_ascent"])
def test_gpt2_has_the_rates_of_small_gpu_divided_by_how_many_more_updates_it_has(method):
    gpt2, small = (read_preset(name) for name in ("gpt2", "small-gpu"))
    more = gpt2["budget"]["flops"] / small["budget"]["flops"] * SMOLLM2 / shapes.parameters("gpt2")
    wanted = math.log10(small["methods"][method]["lr"] / more)
    nearest = min((1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5), key=lambda rate: abs(math.log10(rate) - wanted))
    assert gpt2["methods"][method]["lr"] == nearest
