"""Run the cells of a sweep in one process each, so that a failure of one does not affect the others.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.core.process import QUIET, ROOT, cores, threads
from harness.records.write import file_name
from harness.runs.session import interruptible

from .board import Board
from .plan import Planned, Result, state_of
from .worker import BUSY

POLL = 0.1  # seconds between two polls of the processes
RETRY = 10.0  # seconds until a cell held by another process is retried
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


class Running:
    """The process of a running cell."""

    def __init__(self, cell: Planned, command: list[str], at_most: int) -> None:
        self.cell, self.started = cell, time.monotonic()
        self.lines: deque[str] = deque(maxlen=200)
        limit = min(at_most, threads(at_most))
        env = QUIET | os.environ | {"OMP_NUM_THREADS": str(limit), "PYTHONIOENCODING": "utf-8:backslashreplace"}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
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
        """The last line of progress of the cell, without the elapsed time."""
        return ELAPSED.sub("", self.lines[-1]).strip() if self.lines else "starting"

    def ask_to_stop(self) -> None:
        """Request a stop: after the current update with its state saved; on a second call, at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for the process to end, and kill it after PATIENCE seconds."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Read the remaining output of the ended process and close its pipes."""
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Launcher:
    """Runner of cells in parallel processes, with a progress board."""

    def __init__(
        self,
        cells: list[Planned],
        workers: int,
        board: Board,
        offline: bool = False,
        each: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self.waiting = deque((cell, 0.0) for cell in cells)  # each with the earliest time to try it
        self.workers, self.board, self.offline = workers, board, offline
        self.threads = max(1, cores() // workers)
        self.running: list[Running] = []
        self.results: list[Result] = []
        self.each = each  # called once with each result

    def run(self) -> list[Result]:
        """Run all cells and return their results; after an interrupt, cells not yet started are "not run"."""
        try:
            with interruptible() as stop:
                self._loop(stop)
        finally:  # also after a second interrupt or an error here: no process outlives the sweep
            for running in self.running:
                running.ask_to_stop()
            for running in self.running:
                running.end()
                running.close()
            self.board.stop()
        return self.results

    def _loop(self, stop: threading.Event) -> None:
        asked = False
        while self.running or (self.waiting and not stop.is_set()):
            if stop.is_set() and not asked:
                asked = True
                self.board.say("stopping: each cell keeps its state; again stops at once")
                for running in self.running:
                    running.ask_to_stop()
            for running in [r for r in self.running if r.process.poll() is not None]:
                self.running.remove(running)
                self._settle(running, asked)
            if not stop.is_set():
                self._start()
            self.board.show(self.results, self.running, len(self.waiting), self.workers)
            time.sleep(POLL)
        self.results += [Result(cell, "not run") for cell, _ in self.waiting]

    def _start(self) -> None:
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.workers:
                return
            cell, due = self.waiting.popleft()
            state = state_of(cell)
            if state in ("done", "degraded"):
                self._finish(Result(cell, state))
            elif time.monotonic() < due:
                self.waiting.append((cell, due))
            else:
                self.running.append(Running(cell, self.command(cell), self.threads))

    def command(self, cell: Planned) -> list[str]:
        """The command that runs a cell in a separate process."""
        told = {
            "method": cell.method, "task": cell.task, "preset": cell.preset, "seed": cell.seed,
            "overrides": cell.overrides, "out": str(cell.out), "offline": self.offline,
        }  # fmt: skip
        return [sys.executable, "-P", "-c", START, json.dumps(told), json.dumps([str(ROOT), *map(os.path.abspath, sys.path)])]

    def _settle(self, running: Running, asked: bool) -> None:
        """Record the result of an ended process, or put its cell back if another process holds it."""
        running.close()
        cell, code = running.cell, running.process.returncode
        state = state_of(cell)
        if state in ("done", "degraded") and code != BUSY:  # the record decides: a later crash of the process does not matter
            if code in (0, 4):
                log_of(cell).unlink(missing_ok=True)
            elif not asked:
                self.board.say(f"{cell.label}: its record is complete; after that: {why(running)}")
            self._finish(Result(cell, state, seconds=running.seconds))
        elif code == BUSY:
            self.board.say(f"another process is at work on {cell.label}; it is retried later")
            self.waiting.append((cell, time.monotonic() + RETRY))
        elif asked and code in (130, -signal.SIGTERM):
            self._finish(Result(cell, "interrupted"))
        else:
            self._finish(Result(cell, "failed", why(running), running.seconds))

    def _finish(self, result: Result) -> None:
        self.results.append(result)
        self.board.finished(result)
        self.each(result)


def why(running: Running) -> str:
    """The reason for a failure in one line; the output of the process is kept in a log file."""
    log, code = log_of(running.cell), running.process.returncode
    kept = f"log {log}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("\n".join(running.lines) + "\n", encoding="utf-8")
    except OSError as e:
        kept = f"no log: {e.strerror}"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + ("; out of memory?" if name == "SIGKILL" else "") + f" ({kept})"
    said = running.last.removeprefix("error: ") if running.lines else f"exit code {code}"
    return f"{said} ({kept})"


def log_of(cell: Planned) -> Path:
    task, method = (file_name(Path(name).stem) for name in (cell.task, cell.method))
    return cell.out / ".logs" / f"{task}-{method}-{cell.run_id}-s{cell.seed}.txt"


def exit_code(results: list[Result]) -> int:
    """The exit code: 130 if a cell was interrupted or not run, 1 if one failed, 4 if one is degraded, else 0."""
    states: set[Any] = {r.state for r in results}
    if states & {"interrupted", "not run"}:
        return 130
    return 1 if "failed" in states else 4 if "degraded" in states else 0
