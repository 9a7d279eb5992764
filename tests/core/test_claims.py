"""Claims of folders: one writer, also among hosts whose file system has no kernel locks, and none that outlives its owner.

A second host is another process with another host name; a file system without kernel locks is one where `flock` is refused.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease
from places import ROOT

from harness.core import files
from harness.core.errors import Busy, CannotWrite, LeaseLost, Unwritable
from harness.core.files import CLAIM_FILES, Claim, held, lease_owner
from harness.records.write import RunStore

LEASE = 0.6
HOST = """
import errno, fcntl, os, socket, sys, time
sys.path.insert(0, {root!r})
socket.gethostname = lambda: {host!r}
def no_locks(*args): raise OSError(errno.ENOLCK, "No locks available")
if not {locks}: fcntl.flock = no_locks
from pathlib import Path
from harness.core.errors import Busy, LeaseLost
from harness.core.files import Claim
folder = Path({folder!r})
"""


class Host:
    """A process on a host of its own, which says a line at each step."""

    def __init__(self, folder: Path, host: str, body: str, locks: bool = False) -> None:
        told = HOST.format(root=str(ROOT), host=host, folder=str(folder), locks=locks)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", told + body], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()


HOLDS = f"""
claim = Claim(folder, {LEASE})
claim.take()
print("taken")
input()
try:
    claim.check()
    print("still mine")
except LeaseLost as e:
    print(e)
"""


@pytest.fixture
def host(tmp_path):
    """Start processes on other hosts, which end with the test."""
    started: list[Host] = []

    def start(name: str, body: str = HOLDS, locks: bool = False) -> Host:
        started.append(Host(tmp_path, name, body, locks))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def unlocked(monkeypatch):
    """A file system without kernel locks."""
    monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(37, "No locks available")))


@pytest.mark.parametrize("locks", [True, False])
def test_a_claim_of_a_living_process_on_another_host_holds_and_names_its_owner(host, tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(37, "No locks available")))
    there = host("far", locks=locks)
    assert there.line() == "taken"
    with pytest.raises(Busy, match=rf"another process \({there.process.pid} on far\) is at work on {tmp_path}; wait for it"):
        Claim(tmp_path, LEASE).take()
    assert held(tmp_path)
    print(file=there.process.stdin, flush=True)
    assert there.line() == "still mine"


def test_the_claim_of_a_dead_owner_on_another_host_is_taken_over_after_its_lease(host, tmp_path):
    there = host("far")
    assert there.line() == "taken"
    there.end()
    assert held(tmp_path)  # for all that can be known
    said: list[str] = []
    claim, began = Claim(tmp_path, 99.0), time.monotonic()  # the owner's own length counts
    claim.take(said.append)
    assert LEASE <= time.monotonic() - began < 30
    assert said == [f"waiting up to 1 s for a sign of life of another process ({there.process.pid} on far), which was at work "
                    f"on {tmp_path}"]  # fmt: skip
    claim.check()
    claim.release()
    assert not held(tmp_path) and lease_owner(tmp_path) is None


@pytest.mark.parametrize("locks", [True, False])
def test_a_dead_process_of_this_host_frees_its_claim_at_once(host, tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(37, "No locks available")))
    there = host(os.uname().nodename, HOLDS.replace(str(LEASE), "600"), locks)
    assert there.line() == "taken" and held(tmp_path)
    there.end()
    assert locks is not held(tmp_path)  # without kernel locks a fresh lease counts
    claim = Claim(tmp_path)
    claim.take(lambda text: pytest.fail(text))
    claim.release()


def test_an_owner_that_was_suspended_stops_before_it_writes(host, tmp_path, unlocked):
    there = host("far")
    assert there.line() == "taken"
    os.kill(there.process.pid, signal.SIGSTOP)
    claim = Claim(tmp_path, LEASE)
    claim.take()
    os.kill(there.process.pid, signal.SIGCONT)
    print(file=there.process.stdin, flush=True)
    said = there.line()
    assert said.startswith(f"{tmp_path} was taken over by another process ({os.getpid()} on ") and "written nothing" in said
    claim.check()
    claim.release()


def test_of_many_that_take_over_one_succeeds(host, tmp_path):
    there = host("far")
    assert there.line() == "taken"
    there.end()
    body = f"""
claim = Claim(folder, {LEASE})
print("ready")
input()
try:
    claim.take()
    print("taken")
    input()
except Busy:
    print("busy")
"""
    others = [host(f"host{n}", body) for n in range(4)]
    assert {other.line() for other in others} == {"ready"}
    for other in others:
        print(file=other.process.stdin, flush=True)
    assert sorted(other.line() for other in others) == ["busy"] * 3 + ["taken"]


def test_a_store_whose_claim_is_lost_writes_nothing(tmp_path):
    store = RunStore(tmp_path / "run")
    store.open()
    (store.path / ".lease").unlink()
    other = Claim(store.path)
    other._lease = other._leased(False, lambda text: None)
    (store.path / "kept.tmp").touch()
    writes = (lambda: store._append("trajectory.jsonl", []), lambda: store.keep_policy(None, 1), store.clear, store._sweep_up)
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert sorted(p.name for p in store.path.iterdir()) == [".lease", ".lock", "kept.tmp"]
    store.close()
    other.check()  # what the loser gives up is not the winner's
    other.release()


def test_a_claim_that_this_very_process_left_behind_is_its_own_again(tmp_path):
    left = Claim(tmp_path)
    left.take()
    os.close(left._lock)  # the kernel lock is gone, the lease is not
    again = Claim(tmp_path)
    again.take(lambda text: pytest.fail(text))
    again.release()


def test_a_folder_removed_is_said_to_be_removed_and_its_claim_is_given_up(tmp_path):
    store = RunStore(tmp_path / "run")
    store.open()
    store.path.rename(tmp_path / "elsewhere")
    with pytest.raises(CannotWrite, match="was removed during the run"):
        store._append("trajectory.jsonl", [])
    store.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_in_place_of_a_lease_is_one_line(tmp_path):
    (tmp_path / ".lease").mkdir()
    assert not held(tmp_path)
    with pytest.raises(Unwritable, match=r"cannot write to .*: Is a directory; choose another folder with --out"):
        RunStore(tmp_path).open()


@pytest.mark.parametrize("spoil", [os.mkfifo, lambda p: p.symlink_to(p.with_name("kept")), lambda p: p.write_text("{")])
def test_anything_else_in_place_of_a_lease_blocks_nobody_and_is_not_followed(tmp_path, spoil):
    (tmp_path / "kept").write_text("kept")
    spoil(tmp_path / ".lease")
    assert not held(tmp_path)
    store = RunStore(tmp_path)
    store.open()  # after the two seconds in which it could have been half-written
    assert lease_owner(tmp_path).pid == os.getpid() and (tmp_path / "kept").read_text() == "kept"
    store.close()


def test_a_lease_of_longer_than_a_day_is_not_waited_for(tmp_path):
    made = SoftFileLease(tmp_path / ".lease", lease_duration=60.0)
    made.acquire()
    other = (
        (tmp_path / ".lease").read_text().replace("60.0", "1000000.0").replace(f"host={os.uname().nodename}", "host=elsewhere")
    )
    made.release()
    (tmp_path / ".lease").write_text(other)
    with pytest.raises(Busy, match=r"\.lease has a lease of 1e\+06 s, more than a day; delete the file"):
        RunStore(tmp_path).open(lambda text: pytest.fail(text))
    assert (tmp_path / ".lease").read_text() == other


def test_the_files_of_a_claim_are_known_by_their_names():
    ours = (".lock", ".lease", f".lease.break.123.{'0' * 32}", f".lease.restore.9.{'f' * 32}")
    assert all(CLAIM_FILES.fullmatch(name) for name in ours)
    assert not any(CLAIM_FILES.fullmatch(name) for name in (".leases", "lock", ".lease.tmp", ".lock/x", ".lease.break.1.0"))


def test_the_time_is_that_of_the_file_system_where_it_can_be_asked(tmp_path, monkeypatch):
    assert abs(files._now(tmp_path) - time.time()) < 60
    assert abs(files._now(tmp_path / "nowhere") - time.time()) < 60
    assert not held(tmp_path)
