"""Where the time and the memory of a run go."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def peak_gpu_memory(device: torch.device) -> dict[str, float | None]:
    """Peak memory of this process on a GPU in MB, as PyTorch has allocated it; nothing elsewhere."""
    import torch

    if device.type != "cuda":
        return {}
    return {"peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)}
