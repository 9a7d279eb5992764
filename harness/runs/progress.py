"""Progress of a run on standard error: a live bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.core.process import cores, follows, threads
from harness.core.text import escaped

PLAIN_EVERY = 5.0  # seconds between lines without a terminal


class Progress:
    """Progress reporter: a line per stage, and a bar for training with reward, KL and the share of the optimum."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.written: Callable[[], None] = lambda: None  # called after a checkpoint: trackers follow
        self._bar: Any = None
        self._task: Any = None
        self._facts: dict[str, str] = {}
        self._measured = ""
        self._started = self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the elapsed seconds."""
        if self.quiet:
            return
        elapsed, text = f"{time.monotonic() - self._started:4.0f} s  ", escaped(text)
        if self._bar is not None:
            self._bar.console.print(elapsed + text, highlight=False, markup=False)
        else:
            print(elapsed + text, file=sys.stderr, flush=True)

    def start(self, label: str) -> None:
        """Start the bar, if standard error is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[facts]}")]
        self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task(label, total=1.0, facts="")
        self._bar.start()

    def at(self, share: float, facts: Mapping[str, str], measured: str = "", now: Mapping[str, str] = {}) -> None:
        """Update the progress of training (0 to 1), the values of the present update, and the last measurement.

        A value stays until it is replaced, so the measurement names its own update; one of `now` is shown this once.
        """
        self._facts |= facts
        self._measured = measured or self._measured
        known = [f"{k} {v}" for k, v in {**self._facts, **now}.items()]
        text = "  ".join([*known, *([self._measured] if self._measured else [])])
        if self._bar is not None:
            self._bar.update(self._task, completed=share, facts=text)
        elif time.monotonic() - self._last > PLAIN_EVERY:
            self._last = time.monotonic()
            self.say(f"{share:4.0%}  {text}")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Watch:
    """A timer that calls a function every `seconds` within its context, without the time spent in `paused`."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds, self._call = seconds, call
        self._moved = threading.Condition()
        self._since: float | None = None  # None while paused
        self._over = False

    def __enter__(self) -> Watch:
        self._since = time.monotonic()
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._moved:
            self._over = True
            self._moved.notify()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the timer within this context and restart it from zero afterwards."""
        with self._moved:
            self._since = None
        try:
            yield
        finally:
            with self._moved:
                self._since = time.monotonic()

    def _look(self) -> None:
        with self._moved:
            while not self._over:
                self._moved.wait(self._left())
                if not self._over and self._left() <= 0:
                    self._since = time.monotonic()
                    self._call()

    def _left(self) -> float:
        return self._seconds if self._since is None else self._since + self._seconds - time.monotonic()


def loading(what: str) -> Progress:
    """Report that `what` is loading, and set torch to the number of threads that this process may use.

    Of the processes that torchrun started, one reports.
    """
    progress = Progress(quiet=follows())
    progress.say(f"{what}: loading")
    import torch

    torch.set_num_threads(threads(cores()))
    return progress
