"""What an engine is: it carries out cells somewhere and says how each ended. `harness.runs.sweep.launcher` decides the rest.

A cell is idempotent: it claims its folder, resumes from its checkpoint wherever it runs, and may die at any moment. So an
engine needs to know nothing of records, and any process that is lost may be started again, there or elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from harness.core.files import LEASE, replace
from harness.core.text import escaped
from harness.records.write import file_name
from harness.runs.sweep.plan import Planned


class End(NamedTuple):
    """How a job ended: the exit code of its process, negative for a signal, or why the process is lost without one."""

    code: int | None
    lost: str = ""  # the reason if `code` is None


class Job(Protocol):
    """A cell that was submitted."""

    @property
    def cell(self) -> Planned: ...

    @property
    def seconds(self) -> float:
        """Seconds since it was submitted."""

    @property
    def last(self) -> str:
        """Its last line of progress, without the elapsed time."""

    @property
    def lines(self) -> Sequence[str]:
        """The last lines of its standard error."""

    def poll(self) -> End | None:
        """How it ended, None while it runs or waits."""

    def ask_to_stop(self) -> None:
        """Request a stop: after the current update with its state saved; on a second call, at once."""

    def end(self) -> None:
        """Wait until it has ended, and kill it if that takes too long."""

    def close(self) -> None:
        """Release what an ended job holds here."""


class Engine(Protocol):
    """A place where cells are carried out."""

    at_once: int  # cells that run at the same time, as far as that is known
    pause: float  # seconds between two polls

    @property
    def about(self) -> str:
        """One line on where the cells run."""

    def room(self, at_work: int) -> int:
        """The number of cells that it takes beside those at work."""

    def submit(self, cells: Sequence[Planned]) -> list[Job]:
        """Submit cells, in this order; raises RunFailed if the engine refuses them."""

    def close(self) -> None:
        """Give up what the engine holds, after all its jobs have ended."""


@dataclass(frozen=True)
class Terms:
    """What all cells of a sweep are carried out with."""

    offline: bool = False
    lease: float = LEASE  # seconds without a sign of life after which another host may take a cell over
    track: tuple[str, ...] = ()  # trackers that follow each cell


def told(cell: Planned, terms: Terms) -> str:
    """A cell as JSON, for the process that runs it."""
    return json.dumps(
        {
            "method": cell.method, "task": cell.task, "preset": cell.preset, "seed": cell.seed, "overrides": cell.overrides,
            "out": str(cell.out), "offline": terms.offline, "lease": terms.lease, "track": terms.track,
        }
    )  # fmt: skip


def log_of(cell: Planned) -> Path:
    """The file that keeps the output of a cell that failed."""
    task, method = (file_name(Path(name).stem) for name in (cell.task, cell.method))
    return cell.out / ".logs" / f"{task}-{method}-{cell.run_id}-s{cell.seed}.txt"


def write_log(log: Path, lines: Iterable[str]) -> None:
    """Write a log in place of what is there, a pipe or a link too, with control characters as escapes; raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    replace(log, "".join(f"{escaped(line)}\n" for line in lines).encode(errors="backslashreplace"))
