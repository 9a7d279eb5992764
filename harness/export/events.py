"""A record as plain events, the same while a run is written and after it: what every tracker is given."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import CorruptRecord
from harness.core.text import plain
from harness.records import samples
from harness.records.read import scalars, settings_of
from harness.records.schema import FINISHED, MetricRecord, Run, place

LONGEST_NAME = 100  # characters of a value's name; a tracker may refuse a longer one
PICTURE_BYTES = 2**24
Setting = str | int | float | bool


@dataclass(frozen=True)
class Begin:
    """The run that the following events are of."""

    key: str  # the same for every attempt at a run, another one after --fresh
    name: str
    place: Path  # relative: preset/task/method/run
    labels: Mapping[str, str]
    settings: Mapping[str, Setting]
    started: float  # seconds since 1970


@dataclass(frozen=True)
class Values:
    """The values of one row of a record, by name; `at` is in seconds since 1970."""

    update: int
    at: float
    values: Mapping[str, float]
    evaluation: bool = False  # a row of the trajectory; else one of the method's scalars


@dataclass(frozen=True)
class End:
    """The result of a finished run, and what was asked for beside it."""

    status: str
    update: int
    at: float
    values: Mapping[str, float]
    picture: bytes | None = None  # PNG
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """What a tracker already has of a run, so that nothing is written twice."""

    update: int = -1  # last update of the method's scalars
    evaluations: int = 0
    ended: bool = False


def after(held: Held, rows: Iterable[Values]) -> Held:
    """What a tracker holds once it has been given some more rows."""
    rows = list(rows)
    update = max([held.update, *(row.update for row in rows if not row.evaluation)])
    return Held(update, held.evaluations + sum(row.evaluation for row in rows), held.ended)


def finished(run: Run) -> bool:
    """Whether a record has a result."""
    return run.summary is not None and run.manifest.status in FINISHED


def begin(run: Run) -> Begin:
    """The run and its settings, flat."""
    m = run.manifest
    run_id = m.run_id.removesuffix(f"-s{m.seed}")
    attempt = hashlib.sha256(f"{m.preset} {m.task} {m.method} {m.started_at}".encode(errors="replace")).hexdigest()[:6]
    key = f"{re.sub(r'[^0-9A-Za-z]', '_', run_id)}-s{m.seed}-{attempt}"
    labels = {"preset": m.preset, "task": m.task, "method": m.method, "seed": str(m.seed), "run_id": run_id}
    name = f"{m.task}/{m.method}/{run_id}-s{m.seed}"
    where = place(m.preset, m.task, m.method, m.run_id, m.seed)
    return Begin(key, plain(name), where, {k: plain(v) for k, v in labels.items()}, _flat(settings_of(run)), started(run))


def started(run: Run) -> float:
    """When the run started, in seconds since 1970; 0 if its record does not say it."""
    try:
        return datetime.fromisoformat(str(run.manifest.started_at)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def rows(run: Run, held: Held) -> list[Values]:
    """The rows of a record that a tracker does not hold yet, by update: the method's scalars, then the evaluation.

    Raises CorruptRecord if the scalars cannot be read.
    """
    measured = list(_evaluations(run))
    found = [row for row in _scalars(run, measured) if row.update > held.update] + measured[held.evaluations :]
    return sorted(found, key=lambda row: (row.update, row.evaluation))


def end(run: Run, picture: bytes | None = None, texts: int = 0, unmask: bool = False) -> End:
    """The result of a finished run with `texts` of its samples, masked unless `unmask`; raises as `samples.read` does."""
    summary = run.summary
    assert summary is not None
    sides = {"final": summary.final, "base": summary.base}
    values = {name: v for side, metrics in sides.items() for name, v in _metrics(side, metrics)}
    values |= {f"total/{named(k)}": float(v) for k, v in summary.cost.items() if v is not None}
    chosen = samples.choose(samples.read(run), samples.Wanted(texts)) if texts else []
    last = max((row.update for row in run.trajectory), default=0)
    at = started(run) + (summary.cost.get("seconds") or 0.0)
    return End(run.manifest.status, last, at, values, picture, [samples.shown(row, unmask) for row in chosen])


def picture(run: Run) -> bytes | None:
    """The picture beside a record, None if there is none; raises CorruptRecord if it cannot be read."""
    try:
        return files.read(run.dir, "picture.png", PICTURE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise CorruptRecord(f"{run.dir}: picture.png cannot be read: {e.strerror}") from None


def named(name: str) -> str:
    """A name that every tracker accepts: letters, digits, `_-.@ `, at most LONGEST_NAME characters."""
    kept = re.sub(r"[^0-9A-Za-z_\-.@ ]", "_", name)[:LONGEST_NAME]
    return kept if kept.strip(". ") else "_"


def _evaluations(run: Run) -> Iterator[Values]:
    for row in run.trajectory:
        values = dict(_metrics("eval", row.metrics))
        values |= {f"cost/{named(k)}": float(v) for k, v in (row.cost or {}).items() if v is not None}
        yield Values(row.update, started(run) + (row.seconds or 0.0), values, evaluation=True)


def _scalars(run: Run, measured: Iterable[Values]) -> Iterator[Values]:
    """The method's scalars; a row has the time of the evaluation before it, as its own is not recorded."""
    times = {row.update: row.at for row in measured}
    at = started(run)
    for row in scalars(run):
        at = max([at, *(seconds for update, seconds in times.items() if update < row.update)])
        values = {f"train/{named(k)}": float(v) for k, v in row.scalars.items() if v is not None}
        yield Values(row.update, at, values)


def _metrics(side: str, metrics: Mapping[str, MetricRecord]) -> Iterator[tuple[str, float]]:
    for name, metric in metrics.items():
        if metric.value is not None:
            yield f"{side}/{named(name)}", float(metric.value)
            if metric.stderr is not None:
                yield f"{side}/{named(name)}_stderr", float(metric.stderr)


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Setting]:
    """Nested settings by dotted names; a list as JSON; without those that are None."""
    found: dict[str, Setting] = {}
    for key, value in settings.items():
        name = f"{above}{named(str(key))}"
        if isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            found[name] = plain(json.dumps(value))
        elif value is not None:
            found[name] = plain(value) if isinstance(value, str) else value
    return found
