"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of wall time by activity; while one activity runs inside another, only the inner one counts."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def at(self, activity: str) -> Iterator[None]:
        """Context manager whose time is counted as this activity's."""
        self._count()
        self._open.append(activity)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
