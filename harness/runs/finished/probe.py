"""Probe the policy of a finished run (`harness probe`): what is done to it, what it then does, kept in its record.

A record may come from somebody else and is not trusted: as in `rescore`, everything loaded here but the policy itself is named
by this installation or by this command line, and the policy's files must be those that its record lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.core import registry
from harness.core.errors import (
    BadSetting,
    BenchError,
    CorruptRecord,
    EmptySelection,
    MissingPrerequisite,
    RunFailed,
    UnknownName,
    one_line,
)
from harness.core.files import LEASE
from harness.core.hashing import canonical
from harness.core.settings import SECTIONS, checked, parse_override, stem_of
from harness.measure.evaluator import stream_seed
from harness.measure.probed import Probed, Reading
from harness.policy.models import processes
from harness.policy.policy import Policy
from harness.records.read import impossible, probe_number, read_run, source_of
from harness.records.read import probes as known
from harness.records.schema import MetricRecord, ProbeReading, ProbeResult, Run, metric_records
from harness.records.write import RunStore, probes_hash
from harness.runs import assemble
from harness.runs.finished import external
from harness.runs.progress import Progress
from harness.runs.session import Cell

from .rescore import NAMES, Named, agreeing, trusted

LOADED = (*NAMES, "task.judge", "task.chat", "model.device", "model.micro_batch", "evaluation.batch_size")
"""Settings of the run that may be given with a probe: what to load, and on what; with them the options of scorers."""


class Asked(NamedTuple):
    """A probe with its checked settings."""

    name: str
    kind: Any
    settings: Any
    seed: int

    @property
    def key(self) -> str:
        """What tells it from other probes of a record."""
        return key_of(self.result([], None))

    def result(self, readings: list[ProbeReading], seconds: float | None) -> ProbeResult:
        """The result with these readings."""
        return ProbeResult(
            probe=self.name, version=self.kind.version, settings=self.settings.model_dump(mode="json"), seed=self.seed,
            unit=self.kind.unit, number=self.kind.number, value=probe_number(self.kind.number, readings), readings=readings,
            seconds=seconds,
        )  # fmt: skip


def key_of(result: ProbeResult) -> str:
    """What tells the results of a record apart: probe, version, settings and seed."""
    return canonical([result.probe, result.version, result.settings, result.seed])


def asked(name: str, overrides: Mapping[str, Any], seed: int) -> Asked:
    """A probe by its name and settings; raises UnknownName, BadSetting."""
    name = registry.given("probe", name)
    kind = registry.load("probe", name)
    return Asked(stem_of(name), kind, checked(kind.Settings, dict(overrides), f"probe {name}"), seed)


def planned(names: Sequence[str], settings: Sequence[str], seed: int) -> tuple[list[Asked], list[str]]:
    """The probes that are asked for, and the settings that name something to load.

    `texts=16` is a setting of every probe that has it, `relearn_habit.texts=16` of one. Raises UnknownName, BadSetting.
    """
    names = list(dict.fromkeys(name for words in names for name in words.split(",") if name))
    if not names:
        raise EmptySelection("no probe is named; give --probe NAME (harness list probes)")
    known = {stem_of(registry.given("probe", name)): name for name in names}
    if len(known) < len({registry.given("probe", name) for name in names}):
        raise BadSetting(f"two of {', '.join(names)} have one name, by which a record tells them apart; rename a file")
    own: dict[str, dict[str, Any]] = {name: {} for name in known}
    trusted = [word for word in settings if word.partition(".")[0] in SECTIONS]
    for key, _ in map(parse_override, trusted):
        if key not in LOADED and not key.startswith("scorers."):
            raise BadSetting(f"a probe measures as the run did, so {key} cannot be set; leave it out")
    for key, value in map(parse_override, (word for word in settings if word not in trusted)):
        head, _, rest = key.partition(".")
        of = [head] if rest else [n for n in known if key in registry.load("probe", known[n]).Settings.model_fields]
        if not of or of[0] not in known:
            raise UnknownName("setting", key, [f"{n}.KEY" for n in known], "of the probes")
        for name in of:
            own[name][rest or key] = value
    return [asked(name, own[stem], seed) for stem, name in known.items()], trusted


class Bench:
    """The parts that the probes of one run share: its task, its evaluator and its policy."""

    def __init__(self, policy: Policy, base: Policy, cell: Cell, progress: Progress) -> None:
        self.policy, self.base = policy.requires_grad_(False), base
        self.evaluator = cell.make_evaluator(progress)
        self.held_out = cell.make_evaluator(progress, "validation").base

    def readings(self, probe: Asked) -> Iterator[Reading]:
        """What the policy does at each point of a probe; raises RunFailed if the probe raises anything of its own."""
        rng = torch.Generator().manual_seed(stream_seed(probe.seed, probe.name))
        try:
            yield from probe.kind(probe.settings).run(Probed(self.policy, self.base, self.evaluator, self.held_out, rng))
        except (BenchError, GeneratorExit):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            raise RunFailed(f"probe {probe.name} raised {what} (-v shows the trace)") from error


def of_record(told: Named, out: Path, offline: bool, progress: Progress, run: Run) -> Bench:
    """The parts of a record's run, of which nothing but the policy is loaded by a name that only the record has."""
    if run.summary is None:
        raise MissingPrerequisite(f"{run.dir} has no result to probe: the run is {run.manifest.status}")
    folder = policy_of(run)
    settings = trusted(run, told)
    task = told.task or run.manifest.task
    shared = assemble.parts(settings, task, offline, out)
    if another := [*_others(run, shared)]:
        raise MissingPrerequisite(f"{run.dir} was made with another {', '.join(another)}; a probe of it would not compare")
    cell = external.external_cell(settings, shared, str(folder), task, out, offline)
    return Bench(external.external_model(str(folder), shared, offline)[0], shared.model.policy, cell, progress)


def of_cell(cell: Cell, progress: Progress, run: Run) -> Bench:
    """The parts of a run that this command has just made or looked up, with the policy that it left."""
    base = cell.base.around(cell.base.model).requires_grad_(False)
    return Bench(Policy.load(policy_of(run), base=base).like(base), base, cell, progress)


def probe_cell(cell: Cell, progress: Progress, lease: float = LEASE) -> list[ProbeResult]:
    """Run the probes that the settings of a finished run ask for, but for those that its record has.

    Nothing is charged to the method. A method that deploys no policy of its own is not probed, which is said; neither is a
    run of several processes.
    """
    if not cell.probes:
        return []
    if processes.size() > 1:
        processes.first(lambda: progress.say(f"not probed in several processes; harness probe {cell.path} does it in one"))
        return []
    if not (cell.path / "policy" / "policy.json").is_file():
        progress.say("not probed: the method deploys no policy of its own")
        return []
    asked, _ = planned(cell.probes, (), 0)
    return _added(read_run(cell.path), asked, partial(of_cell, cell, progress), progress, lease)


def unprobed(dir: Path, names: Sequence[str]) -> bool:
    """Whether the record of a finished run lacks a probe that its settings ask for; raises CorruptRecord."""
    if not names or not (dir / "policy" / "policy.json").is_file():
        return False
    there = {key_of(result) for result in known(read_run(dir))}
    return any(each.key not in there for each in planned(names, (), 0)[0])


def _others(run: Run, shared: assemble.Parts) -> Iterator[str]:
    """What is not as in the record, of all that the readings of a probe depend on."""
    yield from (check.what for check in agreeing(run, shared) if check.held is False)
    now = {"model": shared.model.identity, **shared.identity()}
    yield from (f"{key} here" for key in ("model", "data", "decoding") if now[key] != run.manifest.identity.get(key))


def policy_of(run: Run) -> Path:
    """The folder of a run's policy, whose files are those in its manifest; raises MissingPrerequisite, CorruptRecord."""
    folder = run.dir / "policy"
    listed = {name: sha256 for name, sha256 in (run.manifest.files or {}).items() if name.startswith("policy/")}
    if not (folder / "policy.json").is_file():
        why = "the archive keeps none" if run.manifest.archive else "the method deploys none of its own, or it was removed"
        raise MissingPrerequisite(f"{run.dir} has no policy to probe: {why}")
    source = source_of(run)
    there = [name for name in source.names() if name.startswith("policy/")]
    changed = sorted({*there} ^ {*listed}) or [name for name, sha256 in listed.items() if source.hash(name) != sha256]
    if changed:
        raise CorruptRecord(f"{run.dir}: {changed[0]} is not the file that the run wrote; copy the record again")
    return folder


def probe(run: Run, probes: list[Asked], told: Named, out: Path, offline: bool, progress: Progress) -> list[ProbeResult]:
    """Run the probes that a record does not have yet and add their results to it, each as soon as it is there.

    Returns the results of all that were asked for. Raises MissingPrerequisite if the policy cannot be probed here, Busy if
    another process is at work on the record.
    """
    if run.manifest.archive:
        raise MissingPrerequisite(f"{run.dir} is kept in an archive, which has no policy to probe")
    make = partial(of_record, told, out, offline, progress)
    return _added(run, probes, make, progress, or_else=" and run the same command again")


def _added(
    run: Run, probes: list[Asked], make: Callable[[Run], Bench], progress: Progress, lease: float = LEASE, **busy: str
) -> list[ProbeResult]:
    store = RunStore(run.dir, lease, **busy)
    store.open(progress.say)
    try:
        run = read_run(run.dir)  # as it is now that no other process writes it
        found = {key_of(result): result for result in _kept(store, run)}
        missing = [each for each in probes if each.key not in found]
        bench = make(run) if missing else None
        for each in missing:
            assert bench is not None
            progress.say(f"probing the final policy: {each.name}")
            found[each.key] = _probed(bench, each, progress)
            store.write_probes(read_run(run.dir).manifest, list(found.values()))
    finally:
        store.close()
    return [found[each.key] for each in probes]


def _kept(store: RunStore, run: Run) -> list[ProbeResult]:
    """The results that a record has; raises CorruptRecord if they are not those that its manifest lists.

    The manifest is written after them, so a kill may leave it without the last one: then it is written again.
    """
    results, listed = known(run), (run.manifest.files or {}).get("probes.jsonl")
    if results and listed != probes_hash(results):
        if listed != probes_hash(results[:-1]):
            raise CorruptRecord(f"{run.dir}: probes.jsonl is not the file that was written; copy it again or remove it")
        store.write_probes(run.manifest, results)
    return results


def _probed(bench: Bench, probe: Asked, progress: Progress) -> ProbeResult:
    started = time.monotonic()
    readings: list[ProbeReading] = []
    for reading in bench.readings(probe):
        if not isinstance(reading, Reading):
            raise BadSetting(f"probe {probe.name} yields {type(reading).__name__!r}; expected a Reading")
        if probe.kind.number == "mean" and readings and not reading.at > readings[-1].at:
            raise BadSetting(
                f"probe {probe.name} yields a reading at {reading.at} after {readings[-1].at}; a mean needs rising ones"
            )
        metrics: dict[str, MetricRecord] = metric_records(reading.metrics)
        readings.append(ProbeReading(at=reading.at, label=reading.label, metrics=metrics))
        progress.say(f"{probe.name}, {reading.label or f'{reading.at:g} {probe.kind.unit}'}: {_judge(metrics)}")
    result = probe.result(readings, round(time.monotonic() - started, 1))
    if wrong := impossible(result):  # a record with it could not be read
        raise BadSetting(f"probe {probe.name} {wrong}")
    return result


def _judge(metrics: Mapping[str, MetricRecord]) -> str:
    value = metrics["judge"].value if "judge" in metrics else None
    return "judge -" if value is None else f"judge {value:.3f}"
