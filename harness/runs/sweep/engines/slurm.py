"""The Slurm engine: cells as a job array, by submitit. Its local executor, `cluster=local`, does the same on this machine.

Slurm sends a job a signal before its time is up, or where it is preempted. The cell then stops after its current update with
its state saved, and submitit puts the job back into the queue.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from harness.core.errors import BadSetting, MissingPrerequisite, RunFailed, Unwritable, one_line
from harness.core.process import cores
from harness.runs.sweep.plan import Planned

from .contract import End, Job, Terms
from .remote import GRACE, Carrier, Followed, Order, asked, fresh_log, order

FOR_EVER = 60 * 24 * 365  # minutes: the local executor has no queue whose limits would count
ARRAY = 1_000  # jobs in the queue at a time; the usual limit of an array
VISIBLE = 15.0  # seconds until the result of an ended job is visible on a network file system
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name", "stderr_to_stdout")


class Work:
    """A cell as submitit submits it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._carrier: Carrier | None = None

    def __call__(self) -> tuple[int, list[str]]:
        """Run the cell; -> the exit code of its process and its last lines."""
        self._carrier = Carrier(self.order)
        return self._carrier.run()

    def checkpoint(self) -> Any:
        """Stop the cell with its state saved; -> what submitit queues again."""
        import submitit

        if self._carrier is not None:
            self._carrier.stop(GRACE)
        return submitit.helpers.DelayedSubmission(Work(self.order))


class SlurmJob(Followed):
    """A cell in a job of Slurm, or of the local executor."""

    def __init__(self, cell: Planned, job: Any, stop: Any) -> None:
        super().__init__(cell)
        self.job, self._stop, self._asked = job, stop, False
        self._ended: float | None = None

    def poll(self) -> End | None:
        """How it ended, None while it runs or waits."""
        if os.path.exists(self.job.paths.result_pickle):  # False where the folder cannot be searched
            return self._result()
        if not self.job.done():
            self._ended = None
            return None
        self._ended = self._ended or time.monotonic()
        visible = 1.0 if self._is_local else VISIBLE
        if time.monotonic() - self._ended < visible:
            return None
        return End(None, f"job {self.job.job_id} ended without a result, state {self.job.state}")

    @property
    def _is_local(self) -> bool:
        return type(self.job).__name__ == "LocalJob"

    def _result(self) -> End:
        try:
            error = self.job.exception()
            if error is not None:
                return End(None, f"job {self.job.job_id} failed: {one_line(_last_line(error))}")
            code, self._lines = self.job.result()
        except Exception as e:  # a pickle that is cut off, or was written by another Python
            return End(None, f"job {self.job.job_id} left a result that cannot be read: {one_line(e)}")
        return End(code)

    def ask_to_stop(self) -> None:
        """Request a stop with the state saved, or the end of a job that waits; on a second call, at once."""
        if not asked(self._stop) or self._asked or self.job.state in ("PENDING", "REQUEUED"):
            self.cancel()
        self._asked = True

    def cancel(self) -> None:
        """Have it cancelled by the cluster."""
        self.job.cancel(check=False)


class SlurmEngine:
    """Job arrays of Slurm by submitit; `workers` limits the cells at once; None leaves it to the cluster."""

    pause = 1.0

    def __init__(self, options: Mapping[str, Any], out: Any, workers: int | None, terms: Terms) -> None:
        """Raises MissingPrerequisite without submitit or Slurm, BadSetting for options that submitit refuses.

        Unwritable for a folder with a name that Slurm would read as a pattern.
        """
        if "%" in str(out.absolute()) or not str(out.absolute()).isprintable():
            raise Unwritable(
                f"--out {out}: Slurm reads % in the name of a folder as a pattern; choose a name of plain characters"
            )
        try:
            import submitit
        except ImportError:
            raise MissingPrerequisite(
                "--engine slurm needs submitit; install it with: pip install 'unlearning-harness[slurm]'"
            ) from None
        self.terms, self._logs = terms, out.absolute() / ".logs"
        self._stop = self._logs / f"stop-{uuid.uuid4().hex}"
        given = dict(options)
        self.cluster = str(given.pop("cluster", "slurm"))
        self._local = self.cluster != "slurm"
        self.at_once = workers or (1 if self._local else 256)
        parameters = _parameters(given, workers, self._local)
        try:
            self._executor = submitit.AutoExecutor(self._logs / "submitit" / "%j", cluster=self.cluster)
            self._executor.update_parameters(**parameters)
        except (NameError, ValueError, TypeError, AssertionError) as e:  # its own checks of what it is given
            raise BadSetting(f"--slurm: {one_line(_first_line(e))}") from None
        except RuntimeError as e:
            raise MissingPrerequisite(f"--engine slurm: {one_line(e)}; try --slurm cluster=local on this machine") from None
        os.environ.setdefault(
            "PYTHONSAFEPATH", "1"
        )  # a job does not import from the working folder, whose files have any names

    @property
    def about(self) -> str:
        """One line on where the cells run."""
        return f"jobs of submitit, cluster {self.cluster}" + (f", {self.at_once} at once" if self.at_once < 256 else "")

    def room(self, at_work: int) -> int:
        """The number of cells that it takes beside those at work: as many as a queue takes."""
        return (self.at_once if self._local else ARRAY) - at_work

    def submit(self, cells: Sequence[Planned]) -> list[Job]:
        """Submit cells as one job array; raises RunFailed if that fails."""
        for cell in cells:
            fresh_log(cell)
        work = [Work(self.order(cell)) for cell in cells]
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(one) for one in work]
        except Exception as e:  # of sbatch, of the folder, of submitit's own
            raise RunFailed(f"Slurm took no job: {one_line(e)}") from e
        return [SlurmJob(cell, job, self._stop) for cell, job in zip(cells, jobs, strict=True)]

    def order(self, cell: Planned) -> Order:
        """The order for a cell: on this machine with its share of the cores, and only as long as this process lives."""
        share, owner = (max(1, cores() // self.at_once), os.getpid()) if self._local else (0, 0)
        return order(cell, self.terms, self._stop, share, owner)

    def close(self) -> None:
        """Remove the request to stop, which no job reads any more."""
        with suppress(OSError):
            self._stop.unlink(missing_ok=True)


def _parameters(given: dict[str, Any], workers: int | None, local: bool) -> dict[str, Any]:
    """Options as submitit names them: those of Slurm alone have the prefix `slurm_`; raises BadSetting without a time limit."""
    given = {{"gpus": "gpus_per_node"}.get(key, key): value for key, value in given.items()}
    if local:
        given.setdefault("timeout_min", FOR_EVER)
    elif not {"time", "timeout_min"} & set(given):
        raise BadSetting("--slurm needs the time limit of a job, since submitit's is five minutes: --slurm time=2:00:00")
    if workers and not local:
        given.setdefault("array_parallelism", workers)
    return {key if key in SHARED else f"slurm_{key}": value for key, value in given.items()}


def _first_line(error: BaseException) -> BaseException:
    return type(error)(str(error).split("\n")[0].partition(" Valid arguments:")[0])


def _last_line(error: BaseException) -> BaseException:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RuntimeError(lines[-1] if lines else "no output")
