"""Files on a full disk, folders that no disk has, and what is said of one thing alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from harness.conformance.scaffold import new_plugin
from harness.core.errors import BadSetting, CannotWrite, Unwritable
from harness.core.files import Claim, replace
from harness.core.settings import checked, resolve
from harness.core.text import count
from harness.records import archive
from harness.records.read import read_run
from harness.records.write import RunStore
from harness.runs import assemble
from harness.runs.finished.probe import planned, probe
from harness.runs.progress import Progress
from harness.tasks.probes.quantize import Quantize

FULL = OSError(errno.ENOSPC, "No space left on device")


def refuse(*words: Any, **more: Any) -> None:
    raise FULL


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path: Path, monkeypatch: Any, at: str) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, at, refuse)
    with pytest.raises(OSError, match="No space left"):
        replace(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


class Half:
    """A policy of which the disk takes a part."""

    def save(self, folder: Path) -> None:
        (folder / "weights").write_bytes(b"0" * 8)
        refuse()


@pytest.mark.parametrize("what", ["samples", "checkpoint", "kept", "policy"])
def test_a_full_disk_leaves_no_part_of_a_record(tmp_path: Path, monkeypatch: Any, what: str) -> None:
    store = RunStore(tmp_path / "run")
    store.open()
    monkeypatch.setattr(os, "replace", refuse) if what == "samples" else None
    row = {"prompt_id": 0, "kind": "k", "prompt": "p", "response": "r", "reward": 0.5, "judge": 0.5}
    write = {
        "samples": lambda: store.write_samples("final", [row]),
        "checkpoint": lambda: store.save_checkpoint(Half(), {}),
        "kept": lambda: store.keep_policy(Half(), 1),
        "policy": lambda: store.finish(Half()),
    }[what]
    with pytest.raises(CannotWrite, match="No space left"):
        write()
    assert {p.name for p in (tmp_path / "run").rglob("*") if p.is_file()} <= {".lock", ".lease"}
    store.close()


def test_a_plugin_of_which_the_disk_takes_a_part_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    whole = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, *a, **k: (whole(path, "half"), refuse()))
    with pytest.raises(Unwritable, match="No space left"):
        new_plugin("method", "halved", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_on_a_full_disk_is_a_failed_write(tmp_path: Path, monkeypatch: Any) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CannotWrite, match="No space left") as found:
        archive.write_study([tmp_path / "r"], tmp_path / "study")
    assert found.value.exit_code == 1


STORE = "s3://bucket/results"
RUN = ["--method", "quark", "--task", "toxicity"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", *RUN], ["sweep", "--methods", "quark", "--tasks", "toxicity"], ["study", "nothing.toml"], ["report", "nothing"],
        ["eval", "--policy", "x", "--task", "toxicity"], ["probe", "x", "--probe", "quantize"],
        ["export", "x", "--to", "latex"], ["new", "method", "mine"], ["train-scorer", "x.csv"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_an_object_store_is_refused_before_anything_is_loaded(harness: Any, words: list[str]) -> None:
    code, out, err = harness(*words, "--out", STORE)
    assert (code, out) == (2, "") and err.startswith(f"error: --out {STORE}: ") and len(err.splitlines()) == 1
    assert "choose a folder that the machines share" in err


def test_an_object_store_is_refused_from_python_too() -> None:
    with pytest.raises(Unwritable, match=f"--out {STORE}: "):
        assemble.parts(resolve("micro", "quark", "toxicity"), "toxicity", out=Path(STORE))


@pytest.mark.parametrize(
    ("given", "said"),
    [(4, "bits=[4]"), (4.5, "bits=[4.5]"), ("8", 'bits=["8"]'), ("[a, b]", 'bits=["a", "b"]'), (True, "bits=[true]")],
)
def test_one_value_in_place_of_a_list_is_shown_as_a_list(given: Any, said: str) -> None:
    with pytest.raises(BadSetting) as found:
        checked(Quantize.Settings, {"bits": given})
    assert f"expected a list, written '{said}'; found {given!r}" in str(found.value)
    with pytest.raises(BadSetting, match=r"found \{\}"):
        checked(Quantize.Settings, {"bits": {}})
    with pytest.raises(BadSetting, match=r"setting 'probe quantize.bits': expected a list, written 'bits=\[4\]'"):
        planned(["quantize"], ["bits=4"], 0)


def test_a_number_of_things_in_words() -> None:
    assert [count(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    assert count(2, "policy", "policies") == "2 policies"


def test_one_method_on_one_task_is_not_said_in_the_plural(harness: Any, tmp_path: Path) -> None:
    words = ["sweep", "--methods", "base", "--tasks", "toxicity", "--seeds", "0", "--dry-run", "--out", str(tmp_path)]
    code, _, err = harness(*words)
    assert code == 0 and "1 method, 1 task, preset micro" in err


def test_a_probe_of_a_record_at_work_does_not_advise_another_folder(tmp_path: Path) -> None:
    run = read_run(fake.write_run(tmp_path, "quark", 0))
    claim = Claim(run.dir)
    claim.take()
    with pytest.raises(Exception, match="wait for it and run the same command again") as found:
        probe(run, [], None, tmp_path, True, Progress(quiet=True))  # type: ignore[arg-type]
    claim.release()
    assert type(found.value).__name__ == "Busy" and "--out" not in str(found.value)
