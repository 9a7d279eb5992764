"""Records that somebody else made: reading one runs no code of theirs, whatever it names."""

import hashlib
import importlib
import json
import os
import pickle
import sys
import warnings
from pathlib import Path

import fake_records as fake
import numpy as np
import pandas as pd
import pytest

import harness as package
from harness.analysis.study import Study
from harness.core.errors import MissingPrerequisite
from harness.core.settings import resolve
from harness.records import archive
from harness.records.read import read_run
from harness.report import trials
from harness.runs.finished import rescore

HERE = ["micro", "quark", "toxicity"]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A folder that appears if a payload runs."""
    place = tmp_path / "ran"
    yield place
    assert not place.exists(), "code of the record ran"


def plant(out: Path, marker: Path, **options: object) -> Path:
    """A record that names code of its own wherever one can be named: a pickle, a method, a model with code, a task."""
    dir = fake.write_run(out, "quark", 0)
    fake.write_samples(dir, "quark")
    evil = dir / "evil-00000000.ckpt"
    evil.write_bytes(pickle.dumps(Payload(marker)))
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    for name in ("x.py", "policy/modeling.py", "policy/tokenization.py"):
        (dir / name).parent.mkdir(exist_ok=True)
        (dir / name).write_text(code)
    (dir / "policy" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    (dir / "policy" / "policy.json").write_text('{"bos": 0, "eos": 0, "num_control": 0, "prefix": []}')
    auto = {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M", "AutoTokenizer": ["tokenization.T", None]}
    (dir / "policy" / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (dir / "policy" / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    say(dir, options)
    return dir


def say(dir: Path, options: dict) -> None:
    """Write settings into both files of a record, as `--set` would have made them."""
    settings = resolve(*HERE, options).model_dump()
    for file in ("manifest.json", "summary.json"):
        content = json.loads((dir / file).read_text()) | {"settings": settings}
        argv = ["run", "--method", str(dir / "x.py"), "--policy", str(dir / "policy")]
        fake.dump(dir / file, content | ({"provenance": {"argv": argv}} if file == "manifest.json" else {}))


def pickled(dir: Path) -> dict:
    digest = hashlib.sha256((dir / "evil-00000000.ckpt").read_bytes()).hexdigest()
    return {
        "task.judge": "detoxify",
        "scorers.detoxify.checkpoint": str(dir / "evil-00000000.ckpt"),
        "scorers.detoxify.sha256": digest,
    }


NAMED = {
    "a pickle": pickled,
    "a pickle as a classifier": lambda dir: {
        "task.reward": "mine",
        "scorers.mine.kind": "classifier",
        "scorers.mine.model": str(dir / "policy"),
        "scorers.mine.label": "toxic",
        "scorers.mine.sha256": "0" * 64,
    },
    "a base model": lambda dir: {"model.id": str(dir / "policy")},
    "a model of the hub": lambda dir: {"model.id": "somebody/evil", "model.revision": "main"},
    "a judge of fluency": lambda dir: {"task.fluency": str(dir / "policy")},
    "a file of prompts": lambda dir: {"task.prompts": str(dir / "prompts.json")},
    "a folder of data": lambda dir: {"task.prompts": "real-toxicity-prompts", "task.data.path": str(dir)},
}
KEYS = {
    "a pickle": "scorers.detoxify.checkpoint, scorers.detoxify.sha256",
    "a pickle as a classifier": "scorers.mine.kind, scorers.mine.label, scorers.mine.model, scorers.mine.sha256, task.reward",
    "a base model": "model.id",
    "a model of the hub": "model.id, model.revision",
    "a judge of fluency": "task.fluency",
    "a file of prompts": "task.prompts",
    "a folder of data": "task.data.path",
}


@pytest.mark.parametrize("what", NAMED)
def test_rescoring_loads_nothing_that_the_record_alone_names(what, tmp_path, marker, harness):
    dir = plant(tmp_path / "out", marker)
    say(dir, NAMED[what](dir))
    code, _, err = harness("verify", dir, "--rescore", "--offline")
    assert code == 3 and f"names {KEYS[what]}, and records are not trusted" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("what", ["a pickle", "a pickle as a classifier", "a base model", "a judge of fluency"])
@pytest.mark.parametrize("place", ["inside", "beside", "by a link"])
def test_a_path_inside_or_beside_a_record_is_refused_whoever_names_it(what, place, tmp_path, marker, harness):
    dir = plant(tmp_path / "out", marker)
    options = NAMED[what](dir)
    say(dir, options)
    for key, value in options.items():
        if str(value).startswith(str(dir)) and place != "inside":
            other = tmp_path / "link" if place == "by a link" else tmp_path / "out" / "evil"
            Path(value).rename(other) if place == "beside" else other.symlink_to(value)
            options[key] = str(other)
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    code, _, err = harness("verify", dir, "--rescore", "--offline", *words)
    assert code == 3 and "inside or beside the record" in err and len(err.splitlines()) == 1


def test_what_the_command_line_names_is_used_and_the_hash_of_the_record_only_compared(tmp_path, marker):
    dir = plant(tmp_path / "out", marker)
    say(dir, pickled(dir))
    mine = tmp_path / "elsewhere" / "mine.ckpt"
    told = ["scorers.detoxify.checkpoint=" + str(mine), "scorers.detoxify.sha256=" + "a" * 64]
    found = rescore.trusted(read_run(dir), rescore.Named(told))
    assert found.scorers["detoxify"] == {"checkpoint": str(mine), "sha256": "a" * 64}
    assert found.task.judge == "detoxify"  # a name of this installation's
    with pytest.raises(MissingPrerequisite, match=r"names scorers\.detoxify\.sha256, and"):
        rescore.trusted(read_run(dir), rescore.Named(told[:1]))


def test_numbers_and_names_of_this_installation_are_taken_from_the_record(tmp_path):
    dir = fake.write_run(tmp_path, "quark", 0)
    say(dir, {"evaluation.paper_samples": 3, "task.reward": "diversity", "task.fluency": "none", "task.kl_cap": 9.0})
    found = rescore.trusted(read_run(dir), rescore.Named())
    task = found.task
    assert (found.evaluation.paper_samples, task.reward, task.fluency, task.kl_cap) == (3, "diversity", "none", 9)


def test_settings_without_rescoring_are_refused(tmp_path, harness):
    code, _, err = harness("verify", fake.write_run(tmp_path, "quark", 0), "--set", "model.id=micro")
    assert code == 2 and "--rescore" in err


@pytest.mark.parametrize(
    "words",
    [
        "verify RUN", "show run RUN", "samples RUN", "samples RUN --of base --unmask", "list runs --out OUT", "status OUT",
        "compare RUN RUN", "compare quark quark --out OUT", pytest.param("report OUT --out PAGE", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_no_verb_that_reads_records_runs_code_of_theirs(words, tmp_path, marker, harness, monkeypatch):
    dir = plant(tmp_path / "out", marker, **pickled_settings(tmp_path))
    monkeypatch.chdir(dir)  # a folder with code of theirs in it
    monkeypatch.setattr(sys, "stdin", None)  # nobody is asked
    places = {"RUN": dir, "OUT": tmp_path / "out", "PAGE": tmp_path / "page"}
    harness(*(places.get(word, word) for word in words.split()))


def pickled_settings(tmp_path: Path) -> dict:
    return {"task.judge": "detoxify", "scorers.detoxify.checkpoint": str(tmp_path / "out"), "scorers.detoxify.sha256": "0" * 64}


def test_no_function_that_reads_records_runs_code_of_theirs(tmp_path, marker):
    dir = plant(tmp_path / "out", marker)
    say(dir, pickled(dir))
    assert len(package.load(tmp_path / "out")) == 1
    assert len(package.load_trajectories(tmp_path / "out")) and len(package.load_samples(tmp_path / "out"))
    archive.archive([tmp_path / "out"], tmp_path / "kept", samples=2)
    assert not [p for p in (tmp_path / "kept").rglob("*") if p.suffix in (".py", ".ckpt", ".bin")]
    assert "quark" in trials.page(Study([read_run(dir)]))


def test_a_table_of_samples_with_pickled_objects_stays_bytes(tmp_path, marker):
    dir = plant(tmp_path / "out", marker)
    table = pd.read_parquet(dir / "samples" / "final.parquet")
    table["object"] = [pickle.dumps(Payload(marker))] * len(table)
    table.attrs["object"] = "pickle"
    table.to_parquet(dir / "samples" / "final.parquet")
    assert isinstance(package.load_samples(tmp_path / "out")["object"][0], bytes)
    np.save(dir / "x.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.archive([tmp_path / "out"], tmp_path / "kept", samples=2)


@pytest.mark.parametrize("module", ["harness", "harness.tasks", "harness.methods"])
def test_pickles_are_read_in_one_place_only_and_never_without_a_hash(module):
    """Whoever adds another way to read a pickle has to look at this test."""
    root = Path(importlib.import_module(module).__file__ or "").parent
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    words = ("allow_pickle=True", "trust_remote_code=True", "weights_only=False", "import pickle", "joblib", "read_pickle")
    assert not [(path.name, word) for path, text in sources.items() for word in words if word in text]
    lines = [(path.name, line) for path, text in sources.items() for line in text.splitlines() if "torch.load(" in line]
    assert {name for name, _ in lines} <= {"write.py", "detoxify.py", "play.py"}
    assert all("weights_only=" in line for _, line in lines)
