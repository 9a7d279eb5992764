"""Instrumented runs of a method on the toy task, on which the conformance rules are checked."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import BadScorer, BenchError, MissingPrerequisite, RunFailed, UnknownName, one_line
from harness.core.types import Rollout, Settings
from harness.measure.evaluator import divergence
from harness.policy.models.setup import Setup
from harness.policy.policy import Policy
from harness.policy.sampler import sample
from harness.policy.weights import digest
from harness.training import contract
from harness.training.trial import Budget, Trial

from .toy import ToyTask, toy_policy

UPDATES = 6


class Check(NamedTuple):
    """The result of one rule on one plug-in; `held` is None if the rule does not apply."""

    name: str
    expected: str
    found: str
    held: bool | None


def applied(name: str, expected: str, look: Callable[[], tuple[bool | None, str]]) -> Check:
    """The check of one rule: an exception of the plug-in fails it; raises MissingPrerequisite other than BadScorer."""
    try:
        held, found = look()
    except MissingPrerequisite as e:
        if not isinstance(e, BadScorer):
            raise
        held, found = False, one_line(e)
    except Exception as e:  # a plug-in may raise anything
        held, found = False, one_line(e) if isinstance(e, BenchError) else f"{type(e).__name__}: {one_line(e)}"
    return Check(name, expected, found, held)


class Outcome(NamedTuple):
    """The result of a run: the trial, the base policy, the number of yields, and a record."""

    trial: WatchedTrial
    base: Policy
    yields: int
    record: dict[str, str]  # compared between runs


class Overspent(RunFailed):
    """A method that continues after its budget is used up."""


class WatchedTrial(Trial):
    """A trial that records the calls of a method."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.flops_at: list[float] = []  # after each update
        self.largest_token = 0  # in all sampled and scored responses
        self.spent = self.overspent = False  # an update reached the budget; the method continued after it

    def update(self, loss: Tensor) -> None:
        self._refuse_if_spent()
        super().update(loss)
        self.flops_at.append(self.cost.flops)
        self.spent = self.progress >= 1.0

    def sample(self, *args: Any, **options: Any) -> Rollout:
        self._refuse_if_spent()
        rollout = super().sample(*args, **options)
        self._look_at(rollout)
        return rollout

    def reward(self, rollout: Rollout) -> Tensor:
        self._look_at(rollout)
        return super().reward(rollout)

    def gradient(self) -> Tensor:
        """The clipped gradient of the last update: -> [number of trained weights that it reached]."""
        return torch.cat([p.grad.flatten() for p in self._trained() if p.grad is not None])

    def _look_at(self, rollout: Rollout) -> None:
        self.largest_token = max(self.largest_token, int(rollout.response.max()))

    def _refuse_if_spent(self) -> None:
        if self.spent:
            self.overspent = True
            raise Overspent("the budget is used up")


class Subject:
    """A method under check, and the run that most rules use."""

    def __init__(self, kind: Any, name: str) -> None:
        self.kind, self.name = kind, name
        self.quick: dict[str, Any] = getattr(kind, "quick", {})
        self.claims: dict[str, dict[str, Any]] = getattr(kind, "claims", {})
        self.read_in_whole: set[str] = set()  # settings that were read in the run `whole`
        self._bases: dict[bool, Policy] = {}
        self._whole: Outcome | None = None
        self._measured: dict[str, Measured] = {}
        for claim in self.claims:
            if claim not in CLAIMS:
                raise UnknownName("claim", claim, CLAIMS)

    def settings(self, **more: Any) -> Any:
        return self.kind.Settings(**(self.quick | more))

    @property
    def whole(self) -> Outcome:
        """An uninterrupted run with the quick settings."""
        if self._whole is None:
            settings, self.read_in_whole = _watched(self.settings())
            _disturb(1)
            self._whole = play(self, settings=settings)
        return self._whole

    def base(self, ends: bool) -> Policy:
        """The base policy, with or without a reachable EOS; runs copy it."""
        if ends not in self._bases:
            self._bases[ends] = toy_policy(ends=ends)
        return self._bases[ends]

    def measured(self, settings: dict[str, Any]) -> Measured:
        """KL and reward after a long run with these settings; claims with equal settings share one run."""
        chosen = self.settings(**settings)
        key = chosen.model_dump_json()
        if key not in self._measured:
            self._measured[key] = _measure(self, chosen)
        return self._measured[key]

    @property
    def trains(self) -> bool:
        return self.whole.trial.cost.updates > 0


def play(
    subject: Subject,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    killed_after: tuple[int, ...] = (),
    plain: bool = False,
    setup: Setup | None = None,
    precision: torch.dtype = torch.float32,
    watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
    recorded: bool = True,
) -> Outcome:
    """Run a method to its budget, killed and resumed after the given updates, inside the context `watch`.

    `plain` removes padding and EOS. `setup` and `precision` say how the policy is trained. With
    `recorded=False` no final responses are sampled and the record is empty.
    """
    settings, budget = settings or subject.settings(), budget or Budget(updates=UPDATES)
    task, base = ToyTask(ragged=not plain), subject.base(ends=not plain)
    if setup is not None:
        base = base.copy().requires_grad_(setup.lora is None)
        base.setup, base.precision = setup, precision
    told = {"lr": getattr(settings, "lr", None), "sees_judge": getattr(subject.kind, "sees_judge", False)}
    options: dict[str, Any] = {"seed": seed, "budget": budget, **told}
    trial = WatchedTrial(base.copy().requires_grad_(True), base.frozen_copy(), task, **options)
    rows: list[dict[str, float]] = []
    for stop in (*killed_after, None):
        with watch():
            rows += _drive(partial(subject.kind, settings), trial, stop, subject.name or subject.kind.__name__)
        if stop is not None:
            policy, state = through_disk(trial, base)
            trial = WatchedTrial(policy.like(base), base.frozen_copy(), task, state=state, **options)
    if not recorded:
        return Outcome(trial, base, len(rows), {})
    record = {f"update {i + 1}": repr(row) for i, row in enumerate(rows)}
    record |= {"cost": repr(trial.cost), "weights": digest(trial.policy), "responses": _said(trial, task)}
    return Outcome(trial, base, len(rows), record)


def _said(trial: WatchedTrial, task: ToyTask) -> str:
    """SHA-256 of sampled responses of the deployed policy."""
    with trial.off_the_clock():
        rng = torch.Generator().manual_seed(1)
        said = sample(trial.deployed, task.prompts("test").prompts, decoding=task.decoding, rng=rng, n=200).response
    trial.largest_token = max(trial.largest_token, int(said.max()))
    return hashlib.sha256(said.cpu().numpy().tobytes()).hexdigest()


def _drive(make: Callable[[], Any], trial: WatchedTrial, stop: int | None, name: str) -> list[dict[str, float]]:
    """Train until the budget is used up, as the runner does, or until update `stop`, after which the run is killed."""
    rows: list[dict[str, float]] = []
    if trial.progress >= 1.0:
        return rows
    before = trial.cost.updates
    try:
        for row in contract.driven(make, trial, name):
            if trial.cost.updates == before:  # such a method would never use up its budget
                raise RunFailed(f"yielded after update {before} without another; expected a yield after each trial.update")
            before = trial.cost.updates
            rows.append(row)
            if trial.progress >= 1.0 or (stop is not None and trial.cost.updates >= stop):
                break
    except Overspent:
        pass
    return rows


def through_disk(trial: Trial, base: Policy | None = None) -> tuple[Policy, dict[str, Any]]:
    """The policy and the state of a trial after a checkpoint is written to disk and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        trial.policy.save(Path(folder))
        torch.save(trial.state_dict(), Path(folder) / "state.pt")
        return Policy.load(Path(folder), base=base), torch.load(Path(folder) / "state.pt", weights_only=True)


def difference(a: Outcome, b: Outcome) -> str | None:
    """The first entry in which the records of two runs differ, or None."""
    names = list(a.record | b.record)
    return next((name for name in names if a.record.get(name) != b.record.get(name)), None)


LONG = 60  # updates of the runs that check claims
CLAIMS = ("base_returns", "reward_rises")


class Measured(NamedTuple):
    """KL to the base in nats (NaN if not computable), mean rewards before and after a long run, standard error of the gain."""

    kl: float
    before: float
    after: float
    stderr: float


def _watched(settings: Any) -> tuple[Any, set[str]]:
    """A copy of the settings that records which attributes are read, and the set of those."""
    read: set[str] = set()

    class Watched(type(settings)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    watched = Watched(**dict(settings))
    read.clear()  # discard reads by validators
    return watched, read


def _disturb(number: int) -> None:
    """Seed the global random generators."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def _measure(subject: Subject, settings: Settings) -> Measured:
    """The measurement of a long run without EOS, so that all responses have five tokens."""
    trial = play(subject, settings=settings, budget=Budget(updates=LONG), plain=True, recorded=False).trial
    task = ToyTask()
    prompts, n = task.prompts("test").prompts, 500
    with trial.off_the_clock():
        ours, theirs = (
            sample(policy, prompts, decoding=task.decoding, rng=torch.Generator().manual_seed(3), n=n)
            for policy in (trial.deployed, trial.reference)
        )
        deployed = trial.deployed
        kl = divergence(deployed, trial.reference, ours).kl.mean().item() if isinstance(deployed, Policy) else float("nan")
        gain = task.reward(ours) - task.reward(theirs)
    after, before = task.reward(ours).mean().item(), task.reward(theirs).mean().item()
    return Measured(kl, before, after, gain.std().item() / len(gain) ** 0.5)
