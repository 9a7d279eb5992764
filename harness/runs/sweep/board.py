"""Progress of a sweep on standard error: a live board on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from harness.core.text import count, escaped

from .plan import Planned, Result

PLAIN_EVERY = 30.0  # seconds between lines on the running cells without a terminal


class AtWork(Protocol):
    """A running cell: its elapsed seconds and its last line of progress."""

    @property
    def cell(self) -> Planned: ...

    @property
    def seconds(self) -> float: ...

    @property
    def last(self) -> str: ...


class Board:
    """The number of finished cells, the running ones with their last line of progress, and the estimated time left."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self._live: Any = None
        self._started = self._last = time.monotonic()
        self._done = 0
        self._seconds: list[float] = []  # durations of the cells run here

    def say(self, text: str) -> None:
        """Print a line with the elapsed seconds."""
        if self.quiet:
            return
        line = f"{time.monotonic() - self._started:4.0f} s  {escaped(text)}"
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def finished(self, result: Result) -> None:
        """Count one more finished cell."""
        self._done += 1
        if result.seconds is not None and result.state in ("done", "degraded"):
            self._seconds.append(result.seconds)
        if result.state == "failed":
            self.say(f"{self._done}/{self.total}  {result.cell.label}: failed: {result.why}")
        elif result.seconds is not None:
            self.say(f"{self._done}/{self.total}  {result.cell.label}: {result.state} in {result.seconds:.0f} s")
        elif result.state == "interrupted":
            self.say(f"{result.cell.label}: interrupted, resumable")

    def show(self, results: list[Result], running: Sequence[AtWork], waiting: int, workers: int) -> None:
        """Show the progress: at each call on a terminal, at most every PLAIN_EVERY seconds elsewhere."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._draw(self.lines(results, running, waiting, workers))
        elif time.monotonic() - self._last > PLAIN_EVERY and running:
            self._last = time.monotonic()
            first, *rest = self.lines(results, running, waiting, workers)
            self.say("; ".join([first, *(line.strip() for line in rest)]))

    def lines(self, results: list[Result], running: Sequence[AtWork], waiting: int, workers: int) -> list[str]:
        """The board as text: the overall progress, then one line per running cell."""
        failed = sum(r.state == "failed" for r in results)
        left = self.seconds_left([r.seconds for r in running], waiting, workers)
        head = f"{len(results)}/{count(self.total, 'cell')}" + (f", {failed} failed" if failed else "")
        head += "" if left is None else f", about {duration(left)} left"
        return [head, *(f"  {r.cell.label}: {r.last} ({duration(r.seconds)})" for r in running)]

    def seconds_left(self, running: list[float], waiting: int, workers: int) -> float | None:
        """Estimated seconds left, from the mean duration of the cells run by this sweep; None before the first."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        work = waiting * mean + sum(max(0.0, mean - seconds) for seconds in running)
        return work / max(1, min(workers, waiting + len(running)))

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, lines: list[str]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(Text("\n".join(map(escaped, lines)), overflow="ellipsis", no_wrap=True))


def duration(seconds: float) -> str:
    """Format a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
