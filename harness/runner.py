"""Drive one method on one task to its budget, and record what came of it. Knows no method and no task by name."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import contract, rule
from .errors import Interrupted, RunFailed
from .evaluation import Evaluation, Evaluator
from .policy import Policy
from .progress import Progress
from .settings import RunSettings
from .store import SCHEMA_VERSION, RunStore, identity_hash, metric_record, now
from .trial import Budget, OptimizerSettings, Trial
from .types import Metric

CHECKPOINT_SECONDS = 60.0  # beside the evaluation points, on long runs


@dataclass
class Cell:
    """One (method, task, seed), resolved: what is needed to run it, and what identifies it."""

    method_name: str
    task_name: str
    seed: int
    settings: RunSettings
    identity: dict[str, Any]
    provenance: dict[str, Any]
    make_method: Callable[[], Any]
    make_policy: Callable[[], Policy]
    make_evaluator: Callable[..., Evaluator]  # of a Progress and, where it is not the run's own, a split
    task: Any
    budget: Budget
    optimizer: OptimizerSettings
    out: Path
    run_id: str = field(init=False)
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.run_id = identity_hash(self.identity)[:8]
        s = self.settings
        self.path = self.out / s.preset / self.task_name / self.method_name / f"{self.run_id}-s{self.seed}"


def run(cell: Cell, *, fresh: bool = False, progress: Progress | None = None) -> tuple[dict[str, Any], bool]:
    """The summary of a cell, and whether there was anything left to do.

    A finished cell is returned as it is; an unfinished one goes on from its last checkpoint. Raises Interrupted on
    SIGINT or SIGTERM, with everything kept.
    """
    progress = progress or Progress(quiet=True)
    store = RunStore(cell.path)
    store.open()
    try:
        if fresh:
            store.clear()
        done = store.summary()
        if done is not None:
            return done, False
        return Session(cell, store, progress).run(), True
    finally:
        store.close()


class Session:
    """One attempt at a cell, from a fresh start or from a checkpoint."""

    def __init__(self, cell: Cell, store: RunStore, progress: Progress) -> None:
        self.cell, self.store, self.progress = cell, store, progress
        self.started = self.saved = time.monotonic()
        self.seconds_before = 0.0
        self.rows = 0  # of the trajectory
        self.rule = cell.settings.evaluation.select
        self.chosen: rule.Point | None = None  # so far, where the rule is not to take the last

    def run(self) -> dict[str, Any]:
        manifest = self._begin()
        try:
            with interruptible() as stop:
                return self._run(manifest, stop)
        except BaseException as e:
            status = "interrupted" if isinstance(e, (Interrupted, KeyboardInterrupt)) else "failed"
            error = {"type": type(e).__name__, "message": str(e)}
            self.store.write_manifest(manifest | {"status": status, "error": error, "ended_at": now()})
            raise
        finally:
            self.progress.stop()

    def _begin(self) -> dict[str, Any]:
        """Write the manifest before anything else, so that a run that dies is known to have begun."""
        c, old = self.cell, self.store.manifest()
        manifest = {
            "schema_version": SCHEMA_VERSION, "run_id": c.run_id, "status": "running", "preset": c.settings.preset,
            "task": c.task_name, "method": c.method_name, "seed": c.seed, "identity": c.identity, "error": None,
            "started_at": old["started_at"] if old else now(), "ended_at": None, "provenance": c.provenance,
            "settings": c.settings.model_dump(),
        }  # fmt: skip
        self.store.write_manifest(manifest)
        return manifest

    def _run(self, manifest: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
        trial, next_point = self._trial()
        evaluator = self.cell.make_evaluator(self.progress)
        along = evaluator if self.rule == rule.LAST else self.cell.make_evaluator(self.progress, "validation")
        with trial.off_the_clock():
            base = evaluator.base_evaluation()
            if self.rows == 0:
                start = base if along is evaluator else along.point(trial.reference)
                self._record_point(trial, start.metrics)
                self._consider(rule.START, trial, start.metrics)
        if not stop.is_set():
            self._train(trial, along, next_point, stop)
        if stop.is_set():
            raise Interrupted("interrupted; the same command goes on from here")
        self.progress.say("measuring the final policy")
        with trial.off_the_clock():
            deployed = self._deployed(trial, along)
            final = evaluator.final(deployed)
        if self.rule == rule.LAST:
            self._record_point(trial, final.metrics)
        evaluator.above |= along.above
        return self._finish(manifest, trial, evaluator, base, final, deployed)

    def _consider(self, place: str, trial: Trial, metrics: dict[str, Metric]) -> None:
        """Choose a point in place of the one before, and keep its policy, where the rule says so."""
        point = rule.point(place, trial.cost.updates, trial.progress, metrics)
        if self.rule == rule.LAST or not rule.better(self.rule, point, self.chosen):
            return
        if place == rule.KEPT:
            if not hasattr(trial.deployed, "save"):
                raise RunFailed(f"{self.cell.method_name} has no policy that can be kept on disk; set evaluation.select=last")
            self.store.keep_policy(trial.deployed, point.update)
        self.chosen = point

    def _deployed(self, trial: Trial, along: Evaluator) -> Any:
        """The policy of the point that the rule chooses, the end of the run among them; raises RunFailed where none can be."""
        if self.rule == rule.LAST:
            return trial.deployed
        end = along.point(trial.deployed)
        self._record_point(trial, end.metrics)
        self._consider(rule.END, trial, end.metrics)
        if self.chosen is None:
            raise RunFailed(f"evaluation.select={self.rule} found no point that the judge could score; look at the judge")
        if self.chosen.place == rule.KEPT:
            dtype = next(trial.reference.parameters()).dtype
            return Policy.load(self.store.kept_policy(self.chosen.update), dtype).to(trial.reference.device)
        return trial.deployed if self.chosen.place == rule.END else trial.reference

    def _trial(self) -> tuple[Trial, int]:
        """A fresh trial, or the one of the last checkpoint; and the next evaluation point."""
        c, checkpoints = self.cell, self.store.checkpoints()
        reference = c.make_policy().requires_grad_(False)
        lr = getattr(contract.built(c.make_method, c.method_name).settings, "lr", None)
        common: dict[str, Any] = {"seed": c.seed, "budget": c.budget, "lr": lr, "optimizer": c.optimizer}
        if not checkpoints:
            self.store.rewind(0)
            return Trial(c.make_policy(), reference, c.task, **common), 1
        state = self.store.load_state(checkpoints[-1])
        policy = Policy.load(checkpoints[-1]).to(reference.device)
        trial = Trial(policy, reference, c.task, state=state["trial"], **common)
        self.store.rewind(state["rows"])
        self.rows = state["rows"]
        self.chosen = rule.Point(*state["chosen"]) if state.get("chosen") else None  # an older checkpoint has none
        self.seconds_before = state["seconds"]
        self.progress.say(f"resuming at update {trial.cost.updates}, {trial.progress:.0%} of the budget")
        return trial, state["next_point"]

    def _train(self, trial: Trial, evaluator: Evaluator, next_point: int, stop: threading.Event) -> None:
        points = self.cell.settings.evaluation.points
        self.progress.start(f"{self.cell.method_name} × {self.cell.task_name}")
        if trial.progress >= 1.0:
            return
        for scalars in contract.driven(self.cell.make_method, trial, self.cell.method_name):
            self.progress.at(trial.progress, {"update": str(trial.cost.updates)} | _facts(scalars))
            due = points > 0 and trial.progress >= next_point / points
            over = trial.progress >= 1.0
            if due and not over:  # the end is measured in full, after training
                with trial.off_the_clock():
                    point = evaluator.point(trial.deployed)
                self._record_point(trial, point.metrics)
                self._consider(rule.KEPT, trial, point.metrics)
                while trial.progress >= next_point / points:
                    next_point += 1
            if stop.is_set() or due or over or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                self._save(trial, next_point)
            if over or stop.is_set():
                break

    def _save(self, trial: Trial, next_point: int) -> None:
        state = {"trial": trial.state_dict(), "next_point": next_point, "rows": self.rows, "seconds": self._seconds()}
        state |= {"chosen": None if self.chosen is None else list(self.chosen)}
        self.store.save_checkpoint(trial.policy, state)
        if self.chosen is not None:
            self.store.drop_kept(self.chosen.update)
        self.saved = time.monotonic()

    def _record_point(self, trial: Trial, metrics: dict[str, Metric]) -> None:
        record = {name: metric_record(metric) for name, metric in metrics.items()}
        split = self.cell.settings.evaluation.split if self.rule == rule.LAST else "validation"
        row = {"update": trial.cost.updates, "split": split, "metrics": record, "cost": trial.cost.record()}
        self.store.append(row | {"seconds": round(self._seconds(), 2)})
        self.rows += 1
        self.progress.at(trial.progress, _measured(metrics))

    def _finish(
        self, manifest: dict[str, Any], trial: Trial, evaluator: Evaluator, base: Evaluation, final: Evaluation, deployed: Any
    ) -> dict[str, Any]:
        self.progress.stop()
        self.store.write_samples("final", final.rows)
        self.store.write_samples("base", base.rows)
        for name, rows in (("final-papers", final.papers), ("base-papers", base.papers)):
            if rows:
                self.store.write_samples(name, rows)
        self.store.write_prompts(self.cell.settings.evaluation.split, final.prompts)
        self.store.finish(deployed)
        status = "degraded" if self._degraded(trial, final) else "done"
        summary = self._summary(status, trial, evaluator, base, final)
        files = self.store.hashes({"summary.json": summary})
        self.store.write_manifest(manifest | {"status": status, "ended_at": now(), "files": files})
        self.store.write_summary(summary)
        return summary

    def _degraded(self, trial: Trial, final: Evaluation) -> bool:
        tolerance = self.cell.settings.evaluation.tolerance
        in_training = trial.unscored / trial.cost.scorer_calls if trial.cost.scorer_calls else 0.0
        return final.unscored_share > tolerance or in_training > tolerance

    def _summary(self, status: str, trial: Trial, evaluator: Evaluator, base: Evaluation, final: Evaluation) -> dict[str, Any]:
        c = self.cell
        cost = trial.cost.record() | {
            "unscored": trial.unscored,
            "seconds": round(self._seconds(), 1),
            "peak_memory_mb": peak_memory(),
        }
        return {
            "schema_version": SCHEMA_VERSION, "run_id": c.run_id, "run_dir": str(c.path.relative_to(c.out)), "status": status,
            "preset": c.settings.preset, "task": c.task_name, "method": c.method_name, "seed": c.seed,
            "settings": c.settings.model_dump(),
            "base": {name: metric_record(m) for name, m in base.metrics.items()},
            "final": {name: metric_record(m) for name, m in final.metrics.items()},
            "frontier": evaluator.frontier_record() | {"kl_cap": c.settings.task.kl_cap, "above": evaluator.above},
            "cost": cost, "selection": self._selection(trial),
        }  # fmt: skip

    def _selection(self, trial: Trial) -> dict[str, Any]:
        """The rule, the point that it chose, and what the point scored on validation prompts."""
        if self.chosen is None:
            return {"rule": self.rule, "update": trial.cost.updates, "progress": trial.progress}
        c = self.chosen
        validation = {"judge": c.judge, "kl": c.kl}
        return {"rule": self.rule, "update": c.update, "progress": c.progress, "points": self.rows, "validation": validation}

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _facts(scalars: dict[str, float]) -> dict[str, str]:
    return {k: f"{v:.3f}" for k, v in scalars.items() if k == "pool_reward"}


def _measured(metrics: dict[str, Metric]) -> dict[str, str]:
    names = {"reward": "reward", "judge": "judge", "kl": "KL", "efficiency": "of optimum"}
    return {shown: f"{v:.2f}" for k, shown in names.items() if k in metrics and (v := metrics[k].value) is not None}


def peak_memory() -> float:
    """The most memory this process has held, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


@contextmanager
def interruptible():
    """SIGINT and SIGTERM set an event that training looks at after each update; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise Interrupted("interrupted at once; the same command goes on from the last checkpoint")
        stop.set()

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
