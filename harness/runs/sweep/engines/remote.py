"""A cell on another machine, or in another program: what runs there, and how the sweep follows it through the shared folder."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.process import cores
from harness.runs.sweep.plan import Planned

from .contract import End, Terms, log_of, told, write_log
from .process import Process, command, progress_in

LOOK = 0.2  # seconds between two looks at the process
GRACE = 60.0  # seconds that a cell has to save its state before its job is ended; submitit's signal comes 90 before
TAIL = 20_000  # bytes read from the end of a log


@dataclass(frozen=True)
class Order:
    """A cell to carry out, as plain data: no object of this package travels but this one."""

    work: str  # the cell as JSON
    folder: str  # working folder, in which relative paths hold
    log: str  # file for the output while it runs
    stop: str  # file whose presence asks for a stop
    cores: int = 0  # 0: all that the process there may use
    owner: int = 0  # process on whose end it stops, for an engine of this machine; 0: none
    offline: bool = False
    command: tuple[str, ...] = ()  # in place of the worker's, which is made where it runs


def order(cell: Planned, terms: Terms, stop: Path, cores: int = 0, owner: int = 0) -> Order:
    """The order for a cell; its paths hold on every machine that shares the folder."""
    here = os.path.abspath
    return Order(told(cell, terms), os.getcwd(), here(log_of(cell)), here(stop), cores, owner, terms.offline)


class Carrier:
    """Carries out an order in a process of its own, so that signals, memory and threads are as in the local engine."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.process: Process | None = None
        self._written = 0.0

    def run(self) -> tuple[int, list[str]]:
        """Run the cell; -> the exit code of its process and its last lines."""
        if self._stopped():
            return 130, []
        env = {"HF_HUB_OFFLINE": "1"} if self.order.offline else {}
        self.process = Process(
            list(self.order.command) or command(self.order.work), self.order.cores or cores(), env, Path(self.order.folder)
        )
        try:
            self._follow(self.process)
        finally:
            self.stop()
        return self.process.process.returncode, list(self.process.lines)

    def stop(self, patience: float | None = None) -> None:
        """Stop the process after its current update, with its state saved; nothing if it has ended."""
        if self.process is not None:
            self.process.ask_to_stop()
            self.process.end(patience)
            self.process.close()

    def _follow(self, process: Process) -> None:
        asked = False
        while process.process.poll() is None:
            if not asked and self._stopped():
                asked = True
                process.ask_to_stop()
            self._write(process)
            time.sleep(LOOK)

    def _stopped(self) -> bool:
        """Whether a stop is asked for, or the sweep that gave the order is gone."""
        return os.path.exists(self.order.stop) or (self.order.owner > 0 and not _lives(self.order.owner))

    def _write(self, process: Process) -> None:
        """Write the last lines to the log once a second; a full disk there is no reason to stop."""
        if time.monotonic() - self._written > 1:
            self._written = time.monotonic()
            with suppress(OSError):
                write_log(Path(self.order.log), list(process.lines))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def carry_out(order: Order) -> tuple[int, list[str]]:
    """Carry out an order; -> the exit code of its process and its last lines."""
    return Carrier(order).run()


def fresh_log(cell: Planned) -> None:
    """Make room for the log of a cell, without what an earlier attempt left; a folder that refuses is no reason to stop."""
    with suppress(OSError):
        log_of(cell).parent.mkdir(parents=True, exist_ok=True)
        log_of(cell).unlink(missing_ok=True)


def asked(stop: Path) -> bool:
    """Ask for a stop by the presence of a file; False if it cannot be written, so that only the cluster can end the cells."""
    try:
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.touch()
    except OSError:
        return False
    return True


class Followed(ABC):
    """What the jobs of other programs have in common: their log in the shared folder, and how they are waited for."""

    def __init__(self, cell: Planned) -> None:
        self.cell, self.started = cell, time.monotonic()
        self._lines: list[str] = []

    @abstractmethod
    def poll(self) -> End | None:
        """How it ended, None while it runs or waits."""

    @abstractmethod
    def cancel(self) -> None:
        """Have it ended at once."""

    def end(self) -> None:
        """Wait until it has ended, and cancel it after GRACE seconds."""
        began = time.monotonic()
        while self.poll() is None and time.monotonic() - began < GRACE:
            time.sleep(LOOK)
        if self.poll() is None:
            self.cancel()

    def close(self) -> None:  # noqa: B027  # not for each kind to write: none holds anything
        """Nothing is held."""

    @property
    def seconds(self) -> float:
        """Seconds since it was submitted."""
        return time.monotonic() - self.started

    @property
    def last(self) -> str:
        """Its last line of progress, "waiting" before the first."""
        return progress_in(list(self.lines)) if self.lines else "waiting"

    @property
    def lines(self) -> Sequence[str]:
        """The last lines of its standard error."""
        if self._lines:
            return self._lines
        try:
            with log_of(self.cell).open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
                return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            return []
