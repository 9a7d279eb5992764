"""Sweeps that are killed, and sweeps on two hosts in one folder: nothing is lost, run twice, or left behind.

KILLS in the environment is the number of kills, 8 unless given.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import toy_cells
from toy_cells import content, diary, planned

from harness.core.files import CLAIM_FILES, held
from harness.records.read import read_run

KILLS = int(os.environ.get("KILLS", "8"))


class Sweep:
    """A sweep of toy cells in a process group of its own."""

    def __init__(self, out: Path, cells: int, workers: int = 2, pause: float = 0.1, lease: float = 2.0, **env: str) -> None:
        words = ["sweep", out, cells, workers, pause, lease]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(toy_cells.HERE), *map(str, words)],
            env=os.environ | env, start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def cells_at_work(out: Path) -> list[int]:
    """The processes of toy cells of a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if str(toy_cells.HERE).encode() in words and str(out).encode() in b" ".join(words) and b"sweep" not in words:
                found.append(int(path.parent.name))
    return found


def strike(kind: str, sweep: Sweep, out: Path) -> None:
    """Kill a worker, the engine alone, or everything that belongs to the sweep."""
    workers = cells_at_work(out)
    if kind != "worker":
        sweep.kill()
    for pid in {"worker": workers[:1], "engine": [], "group": workers}[kind]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone(out: Path, seconds: float = 30.0) -> bool:
    """Whether no process of a folder is left, after a while."""
    deadline = time.monotonic() + seconds
    while cells_at_work(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not cells_at_work(out)


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    out.mkdir(), whole.mkdir()
    assert Sweep(whole, 12, pause=0.0).process.wait(200) == 0
    rng, sweep, kinds = random.Random(0), None, Counter()
    while kinds.total() < KILLS:
        if sweep is None or sweep.process.poll() is not None:
            sweep = Sweep(out, 12, pause=KILLS / 25)
        time.sleep(rng.uniform(0.2, 2.0))
        if sweep.process.poll() is None and cells_at_work(out):
            kind = rng.choice(["worker", "worker", "engine", "group"])
            strike(kind, sweep, out)
            kinds[kind] += 1
    with suppress(subprocess.TimeoutExpired):
        sweep.process.wait(0)
    sweep.kill()
    assert Sweep(out, 12).process.wait(200) == 0
    assert gone(out)
    cells = [[planned(folder, seed) for seed in range(12)] for folder in (out, whole)]
    assert content(cells[0]) == content(cells[1])
    for cell in cells[0]:
        assert read_run(cell.path).manifest.status == "done" and not held(cell.path)
        assert not [p.name for p in cell.path.iterdir() if CLAIM_FILES.fullmatch(p.name) and p.name != ".lock"]
    print(f"{dict(kinds)}: {sum(what == 'began' for _, _, what in diary(out))} starts of 12 cells")


def overlapping(entries: list[tuple[str, int, str]]) -> list[str]:
    """The cells that began or ended twice, where no process was killed."""
    return [name for (name, what), n in Counter((name, what) for name, _, what in entries).items() if n > 1]


@pytest.mark.slow
def test_two_hosts_in_one_folder_run_no_cell_twice(tmp_path):
    sweeps = [Sweep(tmp_path / "out", 6, TOYS_HOST=name, TMPDIR=str(tmp_path / name)) for name in ("near", "far")]
    for name in ("near", "far", "out"):
        (tmp_path / name).mkdir()
    assert [sweep.process.wait(200) for sweep in sweeps] == [0, 0]
    assert overlapping(diary(tmp_path / "out")) == []
    assert Counter(what for _, _, what in diary(tmp_path / "out")) == {"began": 6, "ended": 6}


@pytest.mark.slow
def test_the_cells_of_a_host_that_dies_are_taken_over(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    far = Sweep(out, 4, pause=0.5, lease=3.0, TOYS_HOST="far")
    deadline = time.monotonic() + 60
    while not (out / "diary.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    strike("group", far, out)
    died, begun = time.monotonic(), {name for name, _, _ in diary(out)}
    near = Sweep(out, 4, pause=0.0, lease=3.0, TOYS_HOST="near")
    assert near.process.wait(200) == 0
    again = [name for name, _, what in diary(out) if what == "began"]
    assert begun and all(again.count(name) == (2 if name in begun else 1) for name in again)
    assert not any(held(planned(out, seed).path) for seed in range(4))
    print(f"{len(begun)} cells of a dead host, all done {time.monotonic() - died:.1f} s after its death, lease 3 s")


@pytest.mark.slow
def test_a_host_that_was_suspended_leaves_its_cells_to_the_one_that_took_them_over(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    far = Sweep(out, 1, workers=1, pause=0.3, lease=2.0, TOYS_HOST="far")
    deadline = time.monotonic() + 60
    while not (out / "diary.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped = [far.process.pid, *cells_at_work(out)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    near = Sweep(out, 1, workers=1, pause=0.3, lease=2.0, TOYS_HOST="near")
    while len(diary(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert [near.process.wait(100), far.process.wait(100)] == [0, 0]
    whole = planned(tmp_path / "whole", 0)
    (tmp_path / "whole").mkdir()
    assert Sweep(tmp_path / "whole", 1).process.wait(100) == 0
    assert content([planned(out, 0)]) == content([whole])
    assert [what for _, _, what in diary(out)] == ["began", "began", "ended"]
