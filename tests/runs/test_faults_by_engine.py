"""Faults of cells under each engine: the same states, reasons, records and exit codes, and no traceback of the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import faulty_cells
import pytest
import toy_cells
from faulty_cells import FAULTS, cells, damage, mended, outcome
from toy_cells import content, finish, of_name, planned

from harness.core.errors import Unwritable
from harness.runs.sweep.engines import remote
from harness.runs.sweep.engines.contract import End, Terms, log_of
from harness.runs.sweep.engines.ray_tasks import RayJob
from harness.runs.sweep.engines.slurm import SlurmEngine, SlurmJob
from harness.runs.sweep.launcher import exit_code

FEW = ("exits", "killed by a signal without a name", "killed after its summary", "stopped while loading", "prints odd things")
AGAIN = ("exits", "killed", "interrupted", "disk full", "quota used up", "folder removed")  # start again once they are mended


@pytest.fixture(autouse=True)
def faulty(monkeypatch):
    """The process of a toy cell is one that meets its fault."""
    monkeypatch.setattr(toy_cells, "HERE", faulty_cells.HERE)


def control(text: str) -> bool:
    return not text.replace("\n", "").isprintable()


def meets(engine: str, out: Path, names: tuple[str, ...]) -> list:
    """Sweep cells with faults, compare with the table; -> the cells."""
    out.mkdir()
    faulty = cells(out, *names)
    damage(faulty)
    results = finish(of_name(engine, out, 2, 5.0), faulty)
    said = outcome(results)
    expected = [(seed, FAULTS[name].state) for seed, name in enumerate(names)]
    assert [(seed, state) for seed, state, _ in said] == expected, said
    for name, (_, _, why) in zip(names, said, strict=True):
        assert FAULTS[name].said in why and "\n" not in why, (name, why)
        assert bool(why) == (FAULTS[name].state == "failed")
    logs = [log_of(result.cell) for result in results if result.state == "failed"]
    assert not any(control(log.read_text(encoding="utf-8")) for log in logs)
    assert exit_code(results) == (130 if any(state == "interrupted" for _, state in expected) else 1)
    return faulty


def test_a_cell_with_a_fault_ends_as_the_table_says_and_the_others_run(tmp_path):
    meets("local", tmp_path / "out", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "slurm", "ray"])
def test_every_fault_ends_as_the_table_says_under_each_engine_and_the_same_sweep_goes_on(tmp_path, engine):
    if engine != "local":
        pytest.importorskip({"slurm": "submitit", "ray": "ray"}[engine])
    names = tuple(name for name in FAULTS if engine != "local" or name not in FEW)  # the others are in the test above
    faulty = meets(engine, tmp_path / "out", names)
    again = [cell for cell, name in zip(mended(faulty), names, strict=True) if name in AGAIN]
    results = finish(of_name(engine, tmp_path / "out", 2, 5.0), again)
    assert {result.state for result in results} == {"done"}
    whole = content([next(cell for cell, name in zip(faulty, names, strict=True) if name == "none")])
    assert all(_same(record, whole[0]) for record in content(again))


def _same(one: dict, other: dict) -> bool:
    """Whether two records of toy cells have the same files and the same rows."""
    rows = one["trajectory.jsonl"] == other["trajectory.jsonl"]
    return rows and [*one] == [*other] and one["summary.json"].keys() == other["summary.json"].keys()


class Ended:
    """A job that has ended with odd lines."""

    last, lines, seconds = "a\x1b[2Jb", ("a\x1b[2Jb", "\u202e"), 1.0

    def __init__(self, out: Path) -> None:
        self.cell = planned(out, 0)


@pytest.mark.parametrize("there", ["pipe", "link", "nothing"])
def test_a_log_takes_the_place_of_what_is_there_and_shows_control_characters(tmp_path, there):
    from harness.runs.sweep.launcher import why

    (job := Ended(tmp_path)).cell.path.mkdir(parents=True)
    log, elsewhere = log_of(job.cell), tmp_path / "elsewhere"
    log.parent.mkdir()
    elsewhere.write_text("kept")
    if there == "pipe":
        os.mkfifo(log)  # a write would wait for its reader for ever
    elif there == "link":
        log.symlink_to(elsewhere)
    assert f"(log {log})" in why(job, End(1))
    assert log.read_text() == "a\\x1b[2Jb\n\\u202e\n" and elsewhere.read_text() == "kept"


def test_a_log_that_cannot_be_written_is_said_and_is_no_reason_to_stop(tmp_path):
    from harness.runs.sweep.launcher import why

    (tmp_path / ".logs").write_text("a file")
    assert why(Ended(tmp_path), End(-9)) == "killed by SIGKILL; out of memory? (no log: File exists)"
    remote.fresh_log(planned(tmp_path, 0))


def submitted(tmp_path: Path, **more: object) -> SimpleNamespace:
    """A job as submitit has it, with its result there."""
    (tmp_path / "result").write_bytes(b"cut off")
    return SimpleNamespace(paths=SimpleNamespace(result_pickle=tmp_path / "result"), job_id="7", state="RUNNING", **more)


def test_a_result_that_cannot_be_read_loses_the_job_and_not_the_sweep(tmp_path):
    def cut_off() -> None:
        raise EOFError("Ran out of input")

    job = SlurmJob(planned(tmp_path, 0), submitted(tmp_path, exception=cut_off), tmp_path / "stop")
    assert job.poll() == End(None, "job 7 left a result that cannot be read: Ran out of input")


def test_where_no_stop_can_be_written_the_cluster_ends_the_cells(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    cancelled: list[object] = []
    job = submitted(tmp_path, cancel=lambda check: cancelled.append("slurm"))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cancel=lambda task, force: cancelled.append((task, force))))
    for stop in (tmp_path / "file" / "stop", tmp_path / "new" / "stop"):
        for one in (SlurmJob(planned(tmp_path, 0), job, stop), RayJob(planned(tmp_path, 0), "ray", stop)):
            one._lines = ["at work"]
            one.ask_to_stop()
    assert cancelled == ["slurm", ("ray", True)]  # those with a folder read the file, and save their state


def test_a_folder_that_slurm_would_read_as_a_pattern_is_refused(tmp_path):
    for name in ("50%j", "a\nb"):
        with pytest.raises(Unwritable, match="choose a name of plain characters"):
            SlurmEngine({"cluster": "local"}, tmp_path / name, None, Terms())
    assert not list(tmp_path.iterdir())


DEAF = """
import signal, sys, time
from harness.runs.sweep import worker
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
worker.GRACE = worker.PATIENCE = 0.2
def runs(cell):
    print("ready", flush=True)
    while True:
        time.sleep(1)
worker._run = runs
worker.main({})
"""


def test_a_cell_that_never_returns_does_not_outlive_its_sweep():
    cell = subprocess.Popen([sys.executable, "-c", DEAF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(60, cell.kill)
    watch.start()
    assert cell.stdout.readline() == "ready\n"
    cell.stdin.close()  # as when the sweep, or what carries the cell out, is gone
    assert (cell.wait(), cell.stdout.read()) == (-signal.SIGKILL, "heard\nheard\n") and watch.is_alive()
    watch.cancel()
    cell.stdout.close()
