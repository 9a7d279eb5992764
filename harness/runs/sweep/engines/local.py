"""The local engine: each cell in a process of this machine, with a GPU of its own or its share of the cores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from harness.core.process import cores
from harness.runs.sweep.plan import Planned

from . import process
from .contract import End, Job, Terms, told


class LocalJob(process.Process):
    """A cell in a process of this machine."""

    def __init__(self, cell: Planned, command: list[str], at_most: int, device: str | None = None) -> None:
        super().__init__(command, at_most, {} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        self.cell, self.device = cell, device

    def poll(self) -> End | None:
        """How it ended, None while it runs."""
        code = self.process.poll()
        return None if code is None else End(code)


class LocalEngine:
    """Processes of this machine, `workers` at a time; `devices` are the GPUs, as CUDA_VISIBLE_DEVICES names them."""

    pause = 0.1

    def __init__(self, workers: int, terms: Terms, devices: Sequence[str] | None = None) -> None:
        self.at_once, self.terms = workers, terms
        self.threads = max(1, cores() // workers)
        self.devices = gpus() if devices is None else list(devices)
        self._jobs: list[LocalJob] = []

    @property
    def about(self) -> str:
        """One line on where the cells run."""
        gpus, said = len(self.devices), f"{self.at_once} at once"
        if not gpus:
            return said
        many = f"{gpus} GPU{'s' if gpus > 1 else ''}"
        return f"{said}, which share {many}" if self.at_once > gpus else f"{said}, each on a GPU of its own, of {many}"

    def room(self, at_work: int) -> int:
        """The number of cells that it takes beside those at work."""
        return self.at_once - at_work

    def submit(self, cells: Sequence[Planned]) -> list[Job]:
        """Start the processes of cells."""
        return [self._start(cell) for cell in cells]

    def _start(self, cell: Planned) -> LocalJob:
        job = LocalJob(cell, self.command(cell), self.threads, self._device())
        self._jobs.append(job)
        return job

    def _device(self) -> str | None:
        """The GPU with the fewest cells at work, None without GPUs."""
        self._jobs = [job for job in self._jobs if job.process.poll() is None]
        at_work = Counter(job.device for job in self._jobs)
        return min(self.devices, key=lambda device: at_work[device], default=None)

    def command(self, cell: Planned) -> list[str]:
        """The command that runs a cell in a separate process."""
        return process.command(told(cell, self.terms))

    def close(self) -> None:
        """Nothing is held."""


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        named = [name.strip() for name in listed.split(",")]
        return list(takewhile(lambda name: name not in ("", "-1"), named))  # as CUDA reads it
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
