"""Whole commands in processes of their own, as a user starts them: how long until the first line and until the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shapes import sized

from harness import tasks

CORES = os.cpu_count() or 1
TRIAL = sized([], ["--set", "budget.flops=2e10", "--set", "evaluation.points=1", "--set", "evaluation.samples=2"])
POLICY = Path(tasks.__file__).parent / "micro" / "assets" / "policy"


def harness(*words: str) -> subprocess.Popen[str]:
    """The command with a user's environment, its stderr and stdout as one text."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-P", "-m", "harness", *words]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def whole(*words: str) -> float:
    """Seconds until the end, which is a success."""
    start, process = time.perf_counter(), harness(*words)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    return time.perf_counter() - start


def first_line(*words: str) -> float:
    """Seconds until the first line; the rest of the run is left out."""
    start, process = time.perf_counter(), harness(*words)
    assert process.stdout is not None and process.stdout.readline().strip()
    seconds = time.perf_counter() - start
    process.kill()
    process.communicate()
    return seconds


def run(out: Path) -> tuple[str, ...]:
    return ("run", "--method", "quark", "--task", "toxicity", "--out", str(out), *TRIAL)


def test_the_first_line_of_a_run(workload, tmp_path):
    seconds = [first_line(*run(tmp_path / str(i))) for i in range(sized(7, 1) + 1)][1:]
    workload("`harness run`, first line", "commands", seconds={"command": seconds}, threads=CORES)


def test_the_first_command_of_the_readme(workload, tmp_path):
    seconds = [whole(*run(tmp_path / str(i)), "--profile") for i in range(sized(2, 1))]
    (summary,) = (tmp_path / "0").glob("micro/toxicity/quark/*/summary.json")
    profile = json.loads(summary.read_text())["profile"]
    parts = sorted(profile.items(), key=lambda part: -part[1])
    note = "of the first run: " + ", ".join(f"{name} {s:.1f} s" for name, s in parts if s >= 0.05)
    name = "`harness run --method quark --task toxicity`"
    workload(name, "commands", seconds={"command": seconds}, threads=CORES, note=note)


@pytest.mark.parametrize("times", [sized(3, 1)])
def test_the_evaluation_of_a_policy(times, workload, tmp_path):
    seconds = [
        whole("eval", "--policy", str(POLICY), "--task", "toxicity", "--out", str(tmp_path / str(i)), *TRIAL[2:])
        for i in range(times)
    ]
    workload("`harness eval` of one policy", "commands", seconds={"command": seconds}, threads=CORES)
