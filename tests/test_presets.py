"""The presets on real models, data and scorers: every row runs end to end on tiny stand-ins in the real formats, offline."""

import json
import sys
from pathlib import Path

import fake_hub
import folders
import pytest

from harness import cli
from harness.records import read_run

TASKS = ("toxicity", "sentiment", "sentiment_negative", "repetition", "pii", "pep8")
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


@pytest.fixture
def home(world, monkeypatch) -> Path:
    """The hub on disk is the hub, offline; -> HF_HOME. Any connection fails."""
    use(world[0], monkeypatch)
    yield world[0]


def use(home: Path, monkeypatch) -> list[object]:
    """Look for everything below a folder; -> the connections that were tried."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    return folders.block_network(monkeypatch)


@pytest.fixture
def harness(capsys, monkeypatch):
    """Call the command line: -> exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def flags(**more: object) -> list[str]:
    settings = SMALL | {k.replace("__", "."): v for k, v in more.items()}
    return [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", ["gpt2", "paper"])
def test_every_row_runs_end_to_end(preset, task, world, monkeypatch, harness, tmp_path):
    tried = use(world[0], monkeypatch)
    more = {"scorers__detoxify__checkpoint": world[1]}
    out = tmp_path / "results"
    code, said, err = harness("run", "-m", "quark", "-t", task, "--preset", preset, "--out", out, "--json", *flags(**more))
    assert code == 0, err
    summary = json.loads(said.splitlines()[-1])
    assert summary["cost"]["updates"] == 3 and tried == []
    kinds = {name.partition("@")[2] for name in summary["final"]} - {""}
    assert len(kinds) == 3 and "unconditional" in kinds
    for name in ("reward", "judge", "kl", "clean_nll", *papers(task)):
        assert summary["final"][name]["value"] is not None, (name, summary["final"][name])
    identity = read_run(out / summary["run_dir"]).manifest["identity"]
    data = identity["data"]
    assert data["commit"] == fake_hub.COMMIT and len(data["sha256"]) == 64 and data["revision"] == "main"
    assert data["rows"]["train"] > 20 and data["rows"]["documents"] > 0 and data["rows"]["clean"] > 0
    scorers = identity["scorers"]
    assert scorers["reward"] != scorers["judge"]
    code, _, err = harness("run", "-m", "quark", "-t", task, "--preset", preset, "--out", out, *flags(**more))
    assert code == 0 and "already done" in err


def papers(task: str) -> list[str]:
    return {
        "toxicity": ["max_toxicity", "toxicity_prob", "toxicity_prob_inclusive"],
        "repetition": ["diversity_greedy", "diversity_sampled", "rep_128", "wrep_128"],
        "pii": ["pii_per_kchar"],
        "pep8": ["violations_per_kchar"],
    }.get(task, ["positive_rate"])
