"""`torchrun -m harness`: one process speaks, a signal is an interruption, and what is made for one process says so."""

import json
import re
import signal
import time

import pytest
import quick
from torchrun import ended, errors, started

from harness.core import process
from harness.records.read import read_manifest

RUN = (
    "run", "--method", "quark", "--task", "toxicity",
    *quick.flags(budget__updates=3, evaluation__points=0, evaluation__paper_samples=0),
)  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """As torchrun leaves the environment of its second process."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_only_run_and_eval_are_started_by_torchrun(harness, launched):
    code, out, err = harness("sweep", "--methods", "quark", "--tasks", "toxicity")
    assert code == 2 and out == ""
    assert err == "error: torchrun may start `harness run` and `harness eval`, found 'sweep'; start it without torchrun\n"


def test_a_process_knows_whether_it_follows(launched, monkeypatch):
    assert process.started_by_torchrun() and process.follows() and process.local_rank() == 1
    monkeypatch.setenv("RANK", "0")
    assert not process.follows()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not process.started_by_torchrun()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert process.local_rank() == 0


@pytest.mark.slow
def test_one_process_speaks_and_one_record_is_written(tmp_path):
    code, out, err = ended(started(2, *RUN, "--out", tmp_path, "--json"))
    assert code == 0, err
    summary = json.loads(out)
    assert len(re.findall(r"measuring the final policy", err)) == 1
    (folder,) = tmp_path.glob("micro/toxicity/quark/*")
    assert read_manifest(folder).provenance.processes == 2 and summary["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("run", "--bogus"), "error: No such option: --bogus"),  # before the processes meet
        ((*RUN, "--set", "model.device=cuda"), "error: device 'cuda"),
    ],
)
def test_an_error_is_one_line(words, what, tmp_path):
    code, out, err = ended(started(2, *words, "--out", tmp_path))
    assert code == 1 and out == ""  # torchrun's own code
    (line,) = errors(err)
    assert line.startswith(what)


@pytest.mark.slow
def test_a_signal_to_torchrun_checkpoints_and_all_end(tmp_path):
    """That the same command goes on is shown without torchrun, in `tests/runs/test_several_processes.py`."""
    long = (*RUN, "--set", "budget.updates=2000", "--out", tmp_path)
    running = started(2, *long)
    deadline = time.monotonic() + 200
    while not any(row.stat().st_size for row in tmp_path.rglob("trajectory.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)  # until the base is measured
    time.sleep(3)  # some updates
    running.send_signal(signal.SIGTERM)
    _, _, err = ended(running)
    (folder,) = tmp_path.glob("micro/toxicity/quark/*")
    assert read_manifest(folder).status == "interrupted", err
    assert errors(err) == ["error: interrupted; the same command goes on from here"]
    assert len(list((folder / "checkpoints").glob("update-*"))) == 1
