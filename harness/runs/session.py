"""Train one method on one task to its budget and record the results, without reference to any method or task by name."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import BadData, Busy, CannotWrite, CorruptRecord, Interrupted, NotFinite, RunFailed, one_line
from harness.core.files import LEASE
from harness.core.hashing import identity_hash
from harness.core.settings import RunSettings
from harness.core.text import count
from harness.core.types import Metric
from harness.measure.evaluator import Evaluation, Evaluator, own_metrics
from harness.policy.loading import to_write
from harness.policy.models import processes, sharding
from harness.policy.policy import Policy
from harness.records import schema
from harness.records.schema import SCHEMA_VERSION, Fault, Manifest, Provenance, Scalars, Selection, Summary, metric_records
from harness.records.write import RunStore, now
from harness.training import contract
from harness.training.clock import Clock, peak_gpu_memory, peak_memory
from harness.training.trial import Budget, OptimizerSettings, Trial

from . import checkpoint_rule
from .progress import Progress, Watch

CHECKPOINT_SECONDS = 60.0  # longest time between checkpoints; each evaluation point has one too
SILENCE_SECONDS = 300.0  # time without an update before a warning; some methods explore for minutes first


@dataclass
class Cell:
    """One resolved (method, task, seed): everything needed to run it, and its identity."""

    method_name: str
    task_name: str
    seed: int
    settings: RunSettings
    identity: dict[str, Any]
    provenance: Provenance
    make_method: Callable[[], Any]
    base: Policy
    make_evaluator: Callable[..., Evaluator]  # takes a Progress and, if not the run's own, a split
    task: Any
    budget: Budget
    optimizer: OptimizerSettings
    out: Path
    knob: str | None = None  # setting of the method that trades reward for drift
    probes: tuple[str, ...] = ()  # names or files of probes of the final policy
    loading: float = 0.0  # seconds that loading the model and the data took
    run_id: str = field(init=False)
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.run_id = identity_hash(self.identity)[:8]
        s = self.settings
        self.path = self.out / s.preset / self.task_name / self.method_name / f"{self.run_id}-s{self.seed}"


def run(
    cell: Cell, *, fresh: bool = False, progress: Progress | None = None, profile: bool = False, lease: float = LEASE
) -> tuple[Summary, bool]:
    """Run a cell; return its summary and True, or False if it was finished before.

    With `profile` the summary says where the time went. A finished cell is returned as it is; an unfinished one resumes
    from its last checkpoint. `lease` is the time in seconds without a sign of life after which another host may take the
    cell over. Raises Interrupted on SIGINT or SIGTERM, after saving its state, Busy if another process has the cell.
    """
    progress = progress or Progress(quiet=True)
    store = processes.by_first(RunStore(cell.path, lease))
    store.open(progress.say)
    try:
        if fresh:
            store.clear()
        manifest, summary = store.manifest(), store.summary()
        if manifest is not None:
            _same_cell(cell, manifest)
        if manifest is not None and summary is not None:
            store.complete(manifest, summary)
            return summary, False
        return Session(cell, store, progress, profile).run(), True
    finally:
        processes.itself(store).close()


def _same_cell(cell: Cell, manifest: Manifest) -> None:
    """Raise CorruptRecord if a record is of another cell than the one to run."""
    try:
        same = manifest.run_id == cell.run_id and identity_hash(manifest.identity) == identity_hash(cell.identity)
    except RecursionError:
        same = False
    if not same:
        raise CorruptRecord(f"{cell.path} holds the record of a run with another identity; start again with --fresh")


class Session:
    """One attempt at a cell, from a fresh start or from a checkpoint."""

    def __init__(self, cell: Cell, store: RunStore, progress: Progress, profile: bool = False) -> None:
        self.cell, self.store, self.progress, self.profile = cell, store, progress, profile
        self.clock = Clock({"loading": cell.loading})
        self.started = self.saved = time.monotonic()
        self.seconds_before = 0.0
        self.rows = 0  # rows of the trajectory on disk
        self.scalars: list[Scalars] = []  # yielded by the method, not on disk yet
        self.scalar_rows = 0  # rows of scalars on disk
        self.above = False  # True once a point of the run lies above the frontier, kept across interruptions
        self.rule = cell.settings.evaluation.select
        self.chosen: checkpoint_rule.Point | None = None  # best point so far; None if the rule is `last`

    def run(self) -> Summary:
        manifest = self._begin()
        with interruptible() as stop:  # to the end: torchrun sends SIGTERM while a process writes why it ends
            try:
                return self._run(manifest, stop)
            except BaseException as e:
                self._ended(manifest, e)
                raise
            finally:
                self.progress.stop()

    def _ended(self, manifest: Manifest, error: BaseException) -> None:
        """Write the reason for the end to the manifest if possible; a run with a summary is done and stays so."""
        self.store = processes.itself(self.store)  # the other processes may have ended
        # Busy: the record is another's now
        if processes.rank() or isinstance(error, Busy) or (self.store.path / "summary.json").exists():
            return
        status = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        ended = {"status": status, "error": Fault(type=type(error).__name__, message=str(error)), "ended_at": now()}
        with suppress(CannotWrite):
            self._flush_scalars()
        with suppress(CannotWrite):  # the first error matters more, and readers see that no process holds the run
            self.store.write_manifest(manifest.model_copy(update=ended))

    def _begin(self) -> Manifest:
        """Write the manifest before anything else, so that a killed run leaves a record that it had started."""
        c, old = self.cell, self.store.manifest()
        if old is not None and old.started_at is None:
            raise CorruptRecord(f"{c.path}: manifest.json has no started_at (start again with --fresh)")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION, run_id=c.run_id, status="running", preset=c.settings.preset, task=c.task_name,
            method=c.method_name, knob=c.knob, seed=c.seed, identity=c.identity, error=None,
            started_at=old.started_at if old else now(), ended_at=None, provenance=c.provenance,
            settings=c.settings.model_dump(),
        )  # fmt: skip
        self.store.write_manifest(manifest)
        return manifest

    def _run(self, manifest: Manifest, stop: threading.Event) -> Summary:
        with self.clock.at("loading"):
            trial, next_point = self._trial()
            trial.clock = self.clock
            trial.shown = lambda facts: self.progress.at(trial.progress, {}, now=facts)
            evaluator = self.cell.make_evaluator(self.progress)
            along = evaluator if self.rule == checkpoint_rule.LAST else self.cell.make_evaluator(self.progress, "validation")
        with trial.off_the_clock():
            base = evaluator.base_evaluation()
            if self.rows == 0:
                start = base if along is evaluator else along.base_point()
                self.above |= along.above
                self._record_point(trial, start.metrics)
                self._consider(checkpoint_rule.START, trial, start.metrics)
        if not processes.any_of(stop.is_set())[0]:
            name = self.cell.method_name
            with self.clock.at("training"), blamed(name, trial), contract.reference_kept(trial, name):
                self._train(trial, along, next_point, stop)
        if processes.any_of(stop.is_set())[0]:
            raise Interrupted("interrupted; the same command goes on from here")
        self.progress.say("measuring the final policy")
        with trial.off_the_clock(), blamed(self.cell.method_name, trial):
            deployed = self._deployed(trial, along)
            final = evaluator.final(deployed)
        if self.rule == checkpoint_rule.LAST:
            self._record_point(trial, final.metrics)
        evaluator.above |= along.above | self.above
        with self.clock.at("writing"):
            return self._finish(manifest, trial, evaluator, base, final, deployed)

    def _consider(self, place: str, trial: Trial, metrics: dict[str, Metric]) -> None:
        """Select a point and keep its policy if the rule prefers it; raises RunFailed if its policy cannot be saved."""
        point = checkpoint_rule.point(place, trial.cost.updates, trial.progress, metrics)
        if self.rule == checkpoint_rule.LAST or not checkpoint_rule.better(self.rule, point, self.chosen):
            return
        if place == checkpoint_rule.KEPT:
            if not hasattr(trial.deployed, "save"):
                raise RunFailed(f"{self.cell.method_name} has no policy that can be kept on disk; set evaluation.select=last")
            self.store.keep_policy(to_write(trial.deployed), point.update)
        self.chosen = point

    def _deployed(self, trial: Trial, along: Evaluator) -> Any:
        """The policy of the point that the rule selects, including the end of the run; raises RunFailed if there is none."""
        if self.rule == checkpoint_rule.LAST:
            return trial.deployed
        end = along.point(trial.deployed)
        self._record_point(trial, end.metrics)
        self._consider(checkpoint_rule.END, trial, end.metrics)
        if self.chosen is None:
            raise RunFailed(f"evaluation.select={self.rule} found no point that the judge could score; look at the judge")
        if self.chosen.place == checkpoint_rule.KEPT:
            return _load(self.store.kept_policy(self.chosen.update), trial.reference).like(trial.reference)
        return trial.deployed if self.chosen.place == checkpoint_rule.END else trial.reference

    def _trial(self) -> tuple[Trial, int]:
        """A new trial or that of the last checkpoint, and the next evaluation point; raises CorruptRecord."""
        c, checkpoints = self.cell, self.store.checkpoints()
        reference = c.base.around(c.base.model).requires_grad_(False)  # the weights are held once
        method = contract.built(c.make_method, c.method_name)
        common: dict[str, Any] = {"seed": c.seed, "budget": c.budget, "optimizer": c.optimizer, **contract.told(method)}
        if not checkpoints:
            self.store.rewind(0)
            return Trial(c.base.copy().requires_grad_(True), reference, c.task, **common), 1
        state = self.store.load_state(checkpoints[-1])
        policy = _load(checkpoints[-1], reference).like(reference)
        try:
            trial = Trial(policy, reference, c.task, state=state["trial"], **common)
            # an older checkpoint has none
            self.chosen = checkpoint_rule.Point.of(state["chosen"]) if state.get("chosen") else None
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            what = f"{type(e).__name__}: {one_line(e)}"
            raise CorruptRecord(f"checkpoint {checkpoints[-1]} does not fit ({what}); start again with --fresh") from e
        self.scalar_rows = state.get("scalars", 0)  # an older checkpoint has none
        self.store.rewind(state["rows"], self.scalar_rows)
        self.rows = state["rows"]
        self.above = state.get("above", False)
        self.seconds_before = state["seconds"]
        for activity, seconds in state.get("clock", {}).items():  # an older checkpoint has none
            self.clock.seconds[activity] = self.clock.seconds.get(activity, 0.0) + seconds
        self.progress.say(f"resuming at update {trial.cost.updates}, {trial.progress:.0%} of the budget")
        return trial, state["next_point"]

    def _train(self, trial: Trial, evaluator: Evaluator, next_point: int, stop: threading.Event) -> None:
        points = self.cell.settings.evaluation.points
        self.progress.start(f"{self.cell.method_name} × {self.cell.task_name}")
        if trial.progress >= 1.0:
            return
        with closing(self._updates(trial)) as updates:
            for scalars in updates:
                check_weights(trial)  # before they are measured or saved
                self.scalars.append(Scalars(update=trial.cost.updates, scalars=finite(scalars)))
                self.progress.at(trial.progress, {"update": str(trial.cost.updates)} | _facts(scalars))
                due = points > 0 and trial.progress >= next_point / points
                over = trial.progress >= 1.0
                if due and not over:  # the end is measured in full, after training
                    with trial.off_the_clock():
                        point = evaluator.point(trial.deployed)
                    self.above |= evaluator.above
                    self._record_point(trial, point.metrics)
                    self._consider(checkpoint_rule.KEPT, trial, point.metrics)
                    while trial.progress >= next_point / points:
                        next_point += 1
                stopped, late = processes.any_of(stop.is_set(), time.monotonic() - self.saved > CHECKPOINT_SECONDS)
                if stopped or due or over or late:
                    with self.clock.at("writing"):
                        self._save(trial, next_point)
                if over or stopped:
                    break

    def _updates(self, trial: Trial) -> Generator[dict[str, float]]:
        """Iterate over the scalars that the method yields after each update; raises RunFailed if it yields without one.

        A warning is printed if no update comes for a long time, as the method may be stuck.
        """
        before, name = trial.cost.updates, self.cell.method_name
        told = f"no update of {name} for {SILENCE_SECONDS:.0f} s; if it is stuck, Ctrl-C twice stops it at once"
        with Watch(SILENCE_SECONDS, lambda: self.progress.say(told)) as watch:
            for scalars in contract.driven(self.cell.make_method, trial, name):
                if trial.cost.updates == before:
                    raise RunFailed(
                        f"{name} yielded after update {before} without another; train yields after each trial.update"
                    )
                before = trial.cost.updates
                with watch.paused():
                    yield scalars

    def _save(self, trial: Trial, next_point: int) -> None:
        state = {"trial": trial.state_dict(), "next_point": next_point, "rows": self.rows, "seconds": self._seconds()}
        self._flush_scalars()
        state |= {
            "chosen": None if self.chosen is None else self.chosen.state(),
            "above": self.above,
            "clock": dict(self.clock.seconds),
            "scalars": self.scalar_rows,
        }
        self.store.save_checkpoint(to_write(trial.policy), state)
        if self.chosen is not None:
            self.store.drop_kept(self.chosen.update)
        self.saved = time.monotonic()
        self.progress.written()

    def _flush_scalars(self) -> None:
        """Write the scalars yielded since the last call to disk."""
        rows, self.scalars = self.scalars, []
        self.store.append_scalars(rows)
        self.scalar_rows += len(rows)

    def _record_point(self, trial: Trial, metrics: dict[str, Metric]) -> None:
        self._flush_scalars()
        split = self.cell.settings.evaluation.split if self.rule == checkpoint_rule.LAST else "validation"
        row = schema.Evaluation(
            cost={**trial.cost.record()}, metrics=metric_records(metrics), seconds=round(self._seconds(), 2), split=split,
            update=trial.cost.updates,
        )  # fmt: skip
        self.store.append(row)
        self.rows += 1
        at = trial.cost.updates
        self.progress.at(trial.progress, {"update": str(at)}, _measured(at, metrics))

    def _finish(
        self, manifest: Manifest, trial: Trial, evaluator: Evaluator, base: Evaluation, final: Evaluation, deployed: Any
    ) -> Summary:
        self.progress.stop()
        self.store.write_samples("final", final.rows)
        self.store.write_samples("base", base.rows)
        for name, rows in (("final-papers", final.papers), ("base-papers", base.papers)):
            if rows:
                self.store.write_samples(name, rows)
        self.store.write_prompts(self.cell.settings.evaluation.split, final.prompts)
        self.store.finish(to_write(deployed, published=True))
        status = "degraded" if self._degraded(trial, final) else "done"
        summary = self._summary(status, trial, evaluator, base, final)
        # with its summary on disk the run is done: the same command completes the rest, and nothing is removed before
        self.store.write_summary(summary)
        self.store.complete(manifest, summary)
        return summary

    def _degraded(self, trial: Trial, final: Evaluation) -> bool:
        tolerance = self.cell.settings.evaluation.tolerance
        in_training = trial.unscored / trial.cost.scorer_calls if trial.cost.scorer_calls else 0.0
        return final.unscored_share > tolerance or in_training > tolerance

    def _summary(self, status: str, trial: Trial, evaluator: Evaluator, base: Evaluation, final: Evaluation) -> Summary:
        c = self.cell
        cost: dict[str, float | None] = {
            **trial.cost.record(),
            "unscored": trial.unscored,
            "seconds": round(self._seconds(), 1),
            "peak_memory_mb": peak_memory(),
            **peak_gpu_memory(trial.policy.device),
        }
        frontier = evaluator.frontier_record() | {"kl_cap": c.settings.task.kl_cap, "above": evaluator.above}
        return Summary(
            schema_version=SCHEMA_VERSION, run_id=c.run_id, run_dir=str(c.path.relative_to(c.out)), status=status,
            preset=c.settings.preset, task=c.task_name, method=c.method_name, seed=c.seed, settings=c.settings.model_dump(),
            base=metric_records(base.metrics), final=metric_records(final.metrics), frontier=schema.Frontier(**frontier),
            cost=cost, selection=self._selection(trial), **self._profile(), **own_metrics(c.task),
        )  # fmt: skip

    def _profile(self) -> dict[str, Any]:
        """Seconds by activity and the rest, if they are asked for."""
        counted = {name: round(seconds, 2) for name, seconds in self.clock.seconds.items()}
        rest = self._seconds() + self.cell.loading - sum(self.clock.seconds.values())
        return {"profile": counted | {"other": round(max(rest, 0.0), 2)}} if self.profile else {}

    def _selection(self, trial: Trial) -> Selection:
        """The rule, the point that it selected, and the scores of this point on validation prompts."""
        if self.chosen is None:
            return Selection(rule=self.rule, update=trial.cost.updates, progress=trial.progress)
        c = self.chosen
        validation = {"judge": c.judge, "kl": c.kl}
        return Selection(rule=self.rule, update=c.update, progress=c.progress, points=self.rows, validation=validation)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


@contextmanager
def blamed(method: str, trial: Trial) -> Iterator[None]:
    """Add the method and the number of updates to a NotFinite error."""
    try:
        yield
    except NotFinite as e:
        raise NotFinite(f"{method} after {count(trial.cost.updates, 'update')}: {e}") from e


@torch.no_grad()
def check_weights(trial: Trial) -> None:
    """Raise NotFinite if the norm of a policy's weights is not finite in float32."""
    policies = {id(p): p for p in (trial.policy, trial.deployed) if isinstance(p, torch.nn.Module)}
    weights = [sharding.own(weight.detach()) for policy in policies.values() for weight in policy.parameters()]
    if processes.any_of(not torch.nn.utils.get_total_norm(weights).isfinite())[0]:
        raise NotFinite("it leaves weights that are NaN or too large; look at how it changes them, or try a smaller lr")


def _load(checkpoint: Path, base: Policy) -> Policy:
    """Load the policy of a checkpoint; raises CorruptRecord if it cannot be read."""
    try:
        return Policy.load(checkpoint, base=base.whole())
    except BadData as e:
        raise CorruptRecord(f"{one_line(e)}; start again with --fresh") from e


def finite(scalars: dict[str, Any]) -> dict[str, float | None]:
    """Scalars for strict JSON: None for a value that is not finite."""
    return {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}


def _facts(scalars: dict[str, float]) -> dict[str, str]:
    return {k: f"{v:.3f}" for k, v in scalars.items() if k == "pool_reward"}


def _measured(update: int, metrics: dict[str, Metric]) -> str:
    """A measurement in words: `at update 8: reward 0.81, judge 1.00, KL 0.14, 0.42 of the optimum`."""
    shown = {"reward": "reward {}", "judge": "judge {}", "kl": "KL {}", "efficiency": "{} of the optimum"}
    values = [of.format(f"{v:.2f}") for k, of in shown.items() if k in metrics and (v := metrics[k].value) is not None]
    if "efficiency" in metrics and metrics["efficiency"].value is not None and metrics["efficiency"].reason:
        values[-1] += " (a bound)"
    return f"at update {update}: {', '.join(values)}" if values else ""


@contextmanager
def interruptible():
    """Set an event on SIGINT or SIGTERM, which training checks after each update; raise Interrupted on a second signal."""
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
