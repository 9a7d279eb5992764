"""Two ways to do one job, timed in turn in one process, so that a machine that slows down slows both."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Paired:
    """Calling it runs each side once, in turn."""

    def __init__(self, *sides: Callable[[], object]) -> None:
        self.sides = sides
        self.seconds: list[list[float]] = []

    def __call__(self) -> None:
        self.seconds.append([timed(side) for side in self.sides])


def timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def pairs(sides: tuple[Callable[[], object], ...], rounds: int) -> list[list[float]]:
    """Seconds of each side in each round, after one that pays for what is made once."""
    pair = Paired(*sides)
    for _ in range(rounds + 1):
        pair()
    return pair.seconds[1:]


def alone(module: str, function: str, *args: Any, env: dict[str, str] | None = None) -> Any:
    """What a function of a benchmark returns, called in a process of its own with plain arguments."""
    command = [sys.executable, __file__, module, function, json.dumps(args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=os.environ | (env or {}))
    if done.returncode:
        raise RuntimeError(f"{module}.{function}{args} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of(job: Callable[[], object]) -> float:
    """MB that a job holds at most beyond what was held before it (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would hide what the job takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = held("VmRSS")
    job()
    return held("VmHWM") - before


def held(what: str) -> float:
    """MB of this process by the system's count: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3]))))
