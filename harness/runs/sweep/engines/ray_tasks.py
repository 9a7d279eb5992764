"""The Ray engine: each cell a task of a running cluster, or of one that is started on this machine."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.core.errors import BadSetting, MissingPrerequisite, RunFailed, one_line
from harness.core.process import cores
from harness.runs.sweep.plan import Planned

from .contract import End, Job, Terms
from .remote import Followed, Order, asked, carry_out, fresh_log, order

QUEUED = 256  # cells that are handed to a cluster at once, which may grow
REACH = 20.0  # seconds until a cluster that does not answer counts as missing
OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "resources")


class RayJob(Followed):
    """A cell in a task of Ray."""

    def __init__(self, cell: Planned, reference: Any, stop: Path) -> None:
        super().__init__(cell)
        self._reference, self._stop, self._asked = reference, stop, False

    def poll(self) -> End | None:
        """How it ended, None while it runs or waits."""
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            code, self._lines = ray.get(self._reference)
        except ray.exceptions.RayError as e:  # the worker or the node died, or was cancelled
            return End(None, f"its task of Ray was lost: {type(e).__name__}")
        return End(code)

    def ask_to_stop(self) -> None:
        """Request a stop with the state saved; on a second call, at once."""
        import ray

        if not asked(self._stop) or self._asked:
            self.cancel()
        elif not self.lines:  # it waits, or has just begun
            ray.cancel(self._reference)
        self._asked = True

    def cancel(self) -> None:
        """Have its worker killed."""
        import ray

        ray.cancel(self._reference, force=True)


class RayEngine:
    """Tasks of Ray with `num_cpus` and `num_gpus` each; `workers` limits the cells at once, None leaves it to the cluster."""

    pause = 0.3

    def __init__(self, options: Mapping[str, Any], out: Path, workers: int | None, terms: Terms) -> None:
        """Raises MissingPrerequisite without Ray or its cluster, BadSetting for an unknown option."""
        try:
            import ray
        except ImportError:
            raise MissingPrerequisite(
                "--engine ray needs Ray; install it with: pip install 'unlearning-harness[ray]'"
            ) from None
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise BadSetting(f"--ray has no option {unknown[0]!r}; it takes {', '.join(OPTIONS)}")
        self.terms, self._out = terms, out
        self._stop = out.absolute() / ".logs" / f"stop-{uuid.uuid4().hex}"
        given = dict(options)
        self.address = given.pop("address", None)
        self._per_cell = {"num_cpus": 1, **given}
        self._start(ray)
        self._task = ray.remote(**self._per_cell, max_retries=0)(carry_out)
        self.at_once = workers or (QUEUED if self.address else self._by_resources(ray))

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        own = {} if self.address else {"num_cpus": cores(), "include_dashboard": False}
        try:
            _answers(self.address)
            ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except Exception as e:
            raise MissingPrerequisite(f"no cluster of Ray at {self.address or 'this machine'}: {one_line(e)}") from e

    def _by_resources(self, ray: Any) -> int:
        """The number of cells that the cluster can run at once now, at least 1."""
        there = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        needs = {"CPU": self._per_cell["num_cpus"], "GPU": self._per_cell.get("num_gpus", 0)}
        fits = [int(there[name] // need) for name, need in needs.items() if need]
        if fits and min(fits) < 1:
            ray.shutdown()
            raise BadSetting(
                f"--ray asks for {needs} a cell; this machine has {there.get('CPU', 0)} CPUs, {there.get('GPU', 0)} GPUs"
            )
        return max(1, min(fits, default=1))

    @property
    def about(self) -> str:
        """One line on where the cells run."""
        return f"tasks of Ray at {self.address or 'this machine'}, {self.at_once} at once"

    def room(self, at_work: int) -> int:
        """The number of cells that it takes beside those at work."""
        return self.at_once - at_work

    def submit(self, cells: Sequence[Planned]) -> list[Job]:
        """Submit cells as tasks; raises RunFailed if that fails."""
        for cell in cells:
            fresh_log(cell)
        try:
            return [RayJob(cell, self._task.remote(self.order(cell)), self._stop) for cell in cells]
        except Exception as e:
            raise RunFailed(f"Ray took no task: {one_line(e)}") from e

    def order(self, cell: Planned) -> Order:
        """The order for a cell, with the cores that its task asks for."""
        return order(cell, self.terms, self._stop, max(1, int(self._per_cell["num_cpus"])))

    def close(self) -> None:
        """Leave the cluster, which ends if it was started here."""
        import ray

        with suppress(OSError):
            self._stop.unlink(missing_ok=True)
        ray.shutdown()


def _answers(address: str | None) -> None:
    """Raise OSError if nothing answers at HOST:PORT, where Ray would wait for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
