"""A run that is killed, or whose disk refuses, at each of its file operations: the same command ends in the same record."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness import runner, status
from harness.cells import cells
from harness.disk import refused, writing
from harness.errors import BadData, CannotWrite, RunFailed
from harness.evaluation import Evaluation
from harness.records import read_run
from harness.settings import resolve
from harness.store import RunStore
from harness.trial import Budget, OptimizerSettings
from harness.types import Metric, Settings


class Killed(BaseException):
    """What a kill is to the code: nothing catches it, and after it nothing reaches the disk."""


class Four(torch.nn.Module):
    """A policy of four weights, which is saved and loaded in a millisecond."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "weights.json").write_text(json.dumps(self.weight.tolist()))

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "Four":
        policy = cls()
        try:
            json.loads((folder / "config.json").read_text())
            weights = json.loads((folder / "weights.json").read_text())
        except (OSError, ValueError) as e:
            raise BadData(f"no readable policy in {folder}: {e}") from e
        with torch.no_grad():
            policy.weight.copy_(torch.tensor(weights))
        return policy


class OneStep:
    """A method whose update is a draw and a step."""

    class Settings(Settings):
        lr: float = 0.1

    def __init__(self) -> None:
        self.settings = self.Settings()

    def train(self, trial):
        while True:
            drawn = torch.rand(4, generator=trial.rng)
            trial.update((trial.policy.weight - drawn).square().sum())
            yield {}


class Counted:
    """An evaluator whose every number is a sum of the policy's weights."""

    above = False

    def base_evaluation(self):
        return self.final(Four())

    def point(self, policy):
        return self.final(policy)

    def final(self, policy):
        value = float(policy.weight.detach().sum())
        metrics = {name: Metric(value, 0.0, 3) for name in ("reward", "judge", "kl", "excess_kl", "regret")}
        rows = [{"prompt_id": 0, "prompt": "a", "kind": "calm", "response": "b", "reward": value, "judge": value}]
        by_prompt = {"id": ["a"], "kind": ["calm"], "n_scored": [1]}
        by_prompt |= {name: [value] for name in ("reward", "judge", "kl", "nll_per_token")}
        return Evaluation(metrics, rows, 0.0, by_prompt, [])

    def frontier_record(self):
        return {"base_reward": 0.5, "curve": [], "judge_at": {"kl": [0.0, 1.0], "judge": [0.5, 1.0]}}


def cell(out: Path, method=OneStep, updates: int = 2, **settings) -> runner.Cell:
    words = [f"{key.replace('__', '.')}={value}" for key, value in ({"evaluation__points": updates} | settings).items()]
    resolved = resolve("micro", "base", "toxicity", words)
    identity = {"budget": {"updates": updates}, "method": {"name": "one_step"}, "seed": 0}
    return runner.Cell(
        "one_step", "toy", 0, resolved, identity, {}, method, Four, lambda *a: Counted(), None,
        Budget(updates=updates), OptimizerSettings(), out,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick_policies(monkeypatch):
    monkeypatch.setattr(runner, "Policy", Four)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


WRITES = set("wax+")


class Disk:
    """Counts what is asked of the disk below a folder, and fails from the n-th on."""

    def __init__(self, top: Path, n: float, error: BaseException) -> None:
        self.top, self.n, self.error = str(top), n, error
        self.asked, self.armed = 0, True

    def look(self, path, dir_fd=None) -> None:
        if self.armed and (dir_fd is not None or str(path).startswith(self.top)):
            self.asked += 1
            if self.asked >= self.n:
                raise self.error


@contextmanager
def failing(monkeypatch, top: Path, n: float, error: BaseException):
    """Every opening for writing, and every making, naming and removing of a file or a folder below `top`, is counted."""
    disk = Disk(top, n, error)

    def guarded(whole):
        def call(path, *args, dir_fd=None, **kw):
            disk.look(path, dir_fd)
            return whole(path, *args, **(kw if dir_fd is None else kw | {"dir_fd": dir_fd}))

        return call

    def opened(file, mode="r", *args, **kw):
        if WRITES & set(mode):
            disk.look(file)
        return whole_open(file, mode, *args, **kw)

    whole_open = io.open
    with monkeypatch.context() as m:
        for name in ("replace", "rename", "remove", "unlink", "rmdir", "mkdir"):
            m.setattr(os, name, guarded(getattr(os, name)))
        m.setattr(io, "open", opened)
        m.setattr("builtins.open", opened)
        yield disk


def content(path: Path) -> dict[str, object]:
    """What a run left, without the clock: JSON as values, any other file as its bytes."""
    found: dict[str, object] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock"):
        raw = file.read_bytes()
        found[file.relative_to(path).as_posix()] = _timeless(json.loads(raw)) if file.suffix == ".json" else raw
    rows = [json.loads(line) for line in (path / "trajectory.jsonl").read_text().splitlines()]
    found["trajectory.jsonl"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


def _timeless(value):
    clock = ("seconds", "peak_memory_mb", "started_at", "ended_at", "files")
    return {k: _timeless(v) for k, v in value.items() if k not in clock} if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    runner.run(cell(out))
    return content(cell(out).path)


def state(path: Path) -> tuple[str, list[str]]:
    """What `status` says of a run whose process is gone, and the commands that finish it."""
    (found,) = cells([read_run(path)], dead={path})
    return found.state, status.commands(found, path)


def test_a_kill_at_any_operation_leaves_a_record_that_the_same_command_finishes(whole, tmp_path, monkeypatch):
    with failing(monkeypatch, tmp_path, float("inf"), Killed()) as disk:
        runner.run(cell(tmp_path / "0"))
    assert disk.asked > 40 and content(cell(tmp_path / "0").path) == whole
    began = False
    for n in range(1, disk.asked + 1):
        out = tmp_path / str(n)
        with failing(monkeypatch, tmp_path, n, Killed()), pytest.raises(Killed):
            runner.run(cell(out))
        began = began or (cell(out).path / "manifest.json").exists()
        if began:
            seen, commands = state(cell(out).path)
            assert (seen == "partial" and "--fresh" not in commands[0]) or (seen == "done" and commands == []), n
        runner.run(cell(out))
        assert content(cell(out).path) == whole, n
        assert RunStore(cell(out).path).record().summary is not None
        shutil.rmtree(out)
