"""Trackers that follow a run: after each write of the record they are given the rows that are new.

A tracker gets what is on disk and nothing else, so that its numbers are the record's; one that fails is left out from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import Interrupted, one_line
from harness.records.read import read_run
from harness.records.schema import Run

from . import events
from .events import Held
from .trackers import FOLDER, Tracker, hushed, opened


@dataclass(frozen=True)
class Tracking:
    """The trackers that a command line asks for; texts are masked unless `unmask`."""

    names: tuple[str, ...] = ()
    samples: int = 0
    unmask: bool = False


UNTRACKED = Tracking()


@dataclass
class Live:
    """The trackers of one run, whose record is written in `dir`; `say` is given one line for a tracker that fails."""

    dir: Path
    trackers: dict[str, Tracker]
    say: Callable[[str], None]
    asked: Tracking = UNTRACKED
    held: dict[str, Held] = field(default_factory=dict)  # by tracker; none before its run is opened

    def written(self) -> None:
        """Give every tracker the rows that have been written since the last call."""
        self._each(self._feed)

    def end(self) -> list[str]:
        """Give every tracker the rest of a finished run and its result, and close it; how to look at each."""
        self._each(self._end)
        hints = [f"{name}: {tracker.hint}" for name, tracker in self.trackers.items()]
        self.trackers.clear()
        return hints

    def stopped(self, error: BaseException) -> None:
        """Close every tracker after an attempt that did not finish."""
        status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"

        def close(name: str, tracker: Tracker, run: Run) -> None:
            self._feed(name, tracker, run)
            tracker.close(status)

        self._each(close)
        self.trackers.clear()

    def _end(self, name: str, tracker: Tracker, run: Run) -> None:
        self._feed(name, tracker, run)
        if not self.held[name].ended:
            tracker.end(events.end(run, events.picture(run), self.asked.samples, self.asked.unmask))
            tracker.close(run.manifest.status)

    def _feed(self, name: str, tracker: Tracker, run: Run) -> None:
        held = self.held.get(name)
        if held is None:
            held = self.held[name] = tracker.begin(events.begin(run))
        rows = [] if held.ended else events.rows(run, held)
        if rows:
            tracker.add(rows)
            self.held[name] = events.after(held, rows)

    def _each(self, call: Callable[[str, Tracker, Run], object]) -> None:
        """Call a function with each tracker and the record; a tracker whose call fails is dropped with a warning."""
        if not self.trackers or not (self.dir / "manifest.json").exists():
            return
        for name, tracker in list(self.trackers.items()):
            try:
                with hushed():
                    call(name, tracker, read_run(self.dir))
            except Exception as e:
                closed(self.trackers.pop(name))
                self.say(f"warning: the tracker {name} failed ({type(e).__name__}: {one_line(e)}); the run goes on without it")


@contextmanager
def tracked(asked: Tracking, dir: Path, out: Path, say: Callable[[str], None]) -> Iterator[Live]:
    """Context manager with the trackers of one run, closed if it does not finish; raises MissingPrerequisite."""
    live = Live(dir, {name: opened(name, out / FOLDER) for name in asked.names}, say, asked)
    try:
        yield live
    except BaseException as error:
        live.stopped(error)
        raise


def exported(run: Run, tracker: Tracker, picture: bytes | None, asked: Tracking = UNTRACKED) -> bool:
    """Give a tracker the whole record of a finished run; False if it had it. Raises the errors of the tracker's library."""
    with hushed():
        held = tracker.begin(events.begin(run))
        try:
            if not held.ended:
                tracker.add(events.rows(run, held))
                tracker.end(events.end(run, picture, asked.samples, asked.unmask))
            tracker.close(run.manifest.status)
        except BaseException:
            closed(tracker)
            raise
    return not held.ended


def closed(tracker: Tracker) -> None:
    """Close a tracker that has failed, or it would do so at the exit of the process, in its own words."""
    with suppress(Exception), hushed():
        tracker.close("failed")
