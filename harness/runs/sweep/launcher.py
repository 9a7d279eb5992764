"""Run the cells of a sweep on an engine, so that a failure of one does not affect the others.

The policy is the same on every engine: finished cells are left alone, a cell that another process has is looked at again, a
cell whose process died is tried again as often as it is asked for, and after an interrupt no process is left behind.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from harness.runs.session import interruptible

from .board import Board
from .engines.contract import End, Engine, Job, log_of, write_log
from .plan import Planned, Result, state_of
from .worker import BUSY

RETRY = 10.0  # seconds until a cell held by another process, or one whose process died, is tried again
INTERRUPTED = (130, -signal.SIGTERM)


class Launcher:
    """Runner of cells on an engine, with a progress board; a cell whose process dies is tried `retries` times more."""

    def __init__(
        self,
        cells: list[Planned],
        engine: Engine,
        board: Board,
        each: Callable[[Result], None] = lambda result: None,
        retries: int = 0,
    ) -> None:
        self.waiting = deque((cell, 0.0) for cell in cells)  # each with the earliest time to try it
        self.engine, self.board, self.retries = engine, board, retries
        self.running: list[Job] = []
        self.results: list[Result] = []
        self.each = each  # called once with each result
        self._died: Counter[Any] = Counter()  # by the folder of a cell

    def run(self) -> list[Result]:
        """Run all cells and return their results; after an interrupt, cells not yet started are "not run"."""
        try:
            with interruptible() as stop:
                self._loop(stop)
        finally:  # also after a second interrupt or an error here: no process outlives the sweep
            for job in self.running:
                job.ask_to_stop()
            for job in self.running:
                job.end()
                job.close()
            self.engine.close()
            self.board.stop()
        return self.results

    def _loop(self, stop: threading.Event) -> None:
        asked = False
        while self.running or (self.waiting and not stop.is_set()):
            if stop.is_set() and not asked:
                asked = True
                self.board.say("stopping: each cell keeps its state; again stops at once")
                for job in self.running:
                    job.ask_to_stop()
            self._collect(asked)
            if not stop.is_set():
                self._start()
            self.board.show(self.results, self.running, len(self.waiting), self.engine.at_once)
            time.sleep(self.engine.pause)
        self.results += [Result(cell, "not run") for cell, _ in self.waiting]

    def _collect(self, asked: bool) -> None:
        """Settle the jobs that have ended."""
        for job in list(self.running):
            end = job.poll()
            if end is not None:
                self.running.remove(job)
                job.close()
                self._settle(job, end, asked)

    def _start(self) -> None:
        """Submit as many cells as the engine takes; those that are done by now are finished."""
        ready: list[Planned] = []
        room = self.engine.room(len(self.running))
        for _ in range(len(self.waiting)):
            if len(ready) >= room:
                break
            cell, due = self.waiting.popleft()
            if time.monotonic() < due:
                self.waiting.append((cell, due))
            elif (state := state_of(cell)) in ("done", "degraded"):
                self._finish(Result(cell, state))
            else:
                ready.append(cell)
        if ready:
            self.running += self.engine.submit(ready)

    def _settle(self, job: Job, end: End, asked: bool) -> None:
        """Record the result of an ended job, or put its cell back if another process holds it or its own died."""
        cell, code = job.cell, end.code
        state = state_of(cell)
        if state in ("done", "degraded") and code != BUSY:  # the record decides: a later crash of the process does not matter
            if code in (0, 4):
                log_of(cell).unlink(missing_ok=True)
            elif not asked:
                self.board.say(f"{cell.label}: its record is complete; after that: {why(job, end)}")
            self._finish(Result(cell, state, seconds=job.seconds))
        elif code == BUSY:
            self.board.say(f"another process is at work on {cell.label}; it is retried later")
            self.waiting.append((cell, time.monotonic() + RETRY))
        elif asked and (code in INTERRUPTED or code is None):
            self._finish(Result(cell, "interrupted"))
        elif died(end) and self._died[cell.path] < self.retries and not asked:
            self._died[cell.path] += 1
            self.board.say(f"{cell.label}: {why(job, end)}; tried again, {self._died[cell.path]} of {self.retries}")
            self.waiting.append((cell, time.monotonic()))
        elif code in INTERRUPTED:  # preempted: its state is saved, or it was still loading
            self._finish(Result(cell, "interrupted"))
        else:
            self._finish(Result(cell, "failed", why(job, end), job.seconds))

    def _finish(self, result: Result) -> None:
        self.results.append(result)
        self.board.finished(result)
        self.each(result)


def died(end: End) -> bool:
    """Whether a process died or was interrupted from outside, so that the same cell may succeed elsewhere or later."""
    return end.code is None or end.code < 0 or end.code == 130


def why(job: Job, end: End) -> str:
    """The reason for a failure in one line; the output of the process is kept in a log file."""
    log, lines = log_of(job.cell), list(job.lines)
    kept = f"log {log}"
    try:
        write_log(log, lines)
    except OSError as e:
        kept = f"no log: {e.strerror}"
    if end.code is None:
        return f"{end.lost} ({kept})"
    if end.code < 0:
        return f"killed by {named(-end.code)}" + ("; out of memory?" if end.code == -signal.SIGKILL else "") + f" ({kept})"
    said = job.last.removeprefix("error: ") if lines else f"exit code {end.code}"
    return f"{said} ({kept})"


def named(number: int) -> str:
    """The name of a signal; those for a program's own use have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_code(results: list[Result]) -> int:
    """The exit code: 130 if a cell was interrupted or not run, 1 if one failed, 4 if one is degraded, else 0."""
    states: set[Any] = {r.state for r in results}
    if states & {"interrupted", "not run"}:
        return 130
    return 1 if "failed" in states else 4 if "degraded" in states else 0
