"""The process of one cell, wherever it runs.

One process per cell costs about five seconds of imports and loading for a minute or more of work. In return the peak memory
is that of the cell alone, its threads are set before torch loads, it can crash without harm, and it runs as `harness run`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from harness.core.process import QUIET, ROOT, threads

PATIENCE = 10.0  # seconds until a process that was asked to stop is killed
ELAPSED = re.compile(r"^\s*\d+ s  ")
# The working folder is the user's and its files have any names, so it is not searched first (-P). This very package is taken,
# and what this process can import stays importable, behind all else.
START = """
import json, sys
root, *places = json.loads(sys.argv.pop())
sys.path.insert(0, root)
import harness
sys.path.remove(root)
sys.path += [place for place in places if place not in sys.path]
import harness.runs.sweep.worker
sys.exit(harness.runs.sweep.worker.main(json.loads(sys.argv[1])))
"""


def command(work: str) -> list[str]:
    """The command that runs a cell, given as JSON, in a separate process."""
    return [sys.executable, "-P", "-c", START, work, json.dumps([str(ROOT), *map(os.path.abspath, sys.path)])]


class Process:
    """The process of a running cell."""

    def __init__(self, command: list[str], at_most: int, more: Mapping[str, str] = {}, folder: Path | None = None) -> None:
        self.started = time.monotonic()
        self.lines: deque[str] = deque(maxlen=200)
        limit = min(at_most, threads(at_most))
        env = QUIET | os.environ | {"OMP_NUM_THREADS": str(limit), "PYTHONIOENCODING": "utf-8:backslashreplace"} | {**more}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder,
            text=True, encoding="utf-8", errors="backslashreplace",
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which asks each process once
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip():
                self.lines.append(line.rstrip())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def last(self) -> str:
        """The last line of progress, without the elapsed time."""
        return progress_in(list(self.lines))

    def ask_to_stop(self) -> None:
        """Request a stop: after the current update with its state saved; on a second call, at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, patience: float | None = None) -> None:
        """Wait for the process to end, and kill it after `patience` seconds, PATIENCE unless given."""
        try:
            self.process.wait(PATIENCE if patience is None else patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Read the remaining output of the ended process and close its pipes."""
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                pipe.close()


def progress_in(lines: list[str]) -> str:
    """The last of some lines without the elapsed time."""
    return ELAPSED.sub("", lines[-1]).strip() if lines else "starting"
