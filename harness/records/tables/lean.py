"""Records with as much of them as pages show, and with values that many of them share kept once, so that many fit in memory.

A record of this package is mostly what it shares with the others of its world: settings, base metrics, frontier, packages. Of
the points along a run a page shows five metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from sys import intern
from typing import Any, TypeVar

from harness.core.hashing import canonical
from harness.records.schema import Evaluation, Frontier, Manifest, MetricRecord, Record, Run, Summary

METRICS = ("reward", "judge", "kl", "ppl", "regret")  # of a point along a run
COSTS = ("flops", "sampled_tokens", "scorer_calls", "seconds")  # of a point that is not the last
Kind = TypeVar("Kind", bound=Record)
Value = TypeVar("Value")


class Lean:
    """Makes records lean: what is left out is said above; equal values of all records given to it become one object."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._fields: dict[frozenset[str], set[str]] = {}
        self._nothing: dict[str, Any] = {}

    def __call__(self, run: Run) -> Run:
        """The record with less in it; its states, metrics and curves are the same."""
        summary = None if run.summary is None else self._summary(run.summary)
        final = {} if summary is None else summary.final
        rows = [self._row(row, final, COSTS) for row in run.trajectory[:-1]]
        rows += [self._row(row, final, None) for row in run.trajectory[-1:]]
        return Run(run.dir, self._manifest(run.manifest), summary, rows, run.source)

    def _manifest(self, found: Manifest) -> Manifest:
        parts = {name: self._table(getattr(found, name)) for name in ("identity", "settings")}
        provenance = _changed(found.provenance, {key: self._once(value) for key, value in found.provenance})
        return _changed(found, parts | {"provenance": provenance})

    def _summary(self, found: Summary) -> Summary:
        parts = {
            "settings": self._table(found.settings),
            "base": self._once(found.base, lambda: {name: metric.plain() for name, metric in found.base.items()}),
            "final": self._metrics(found.final, found.final),
            "frontier": None if found.frontier is None else self._frontier(found.frontier),
            "cost": {intern(name): value for name, value in found.cost.items()},
        }
        return _changed(found, parts)

    def _frontier(self, found: Frontier) -> Frontier:
        """A frontier that is that of another run but for whether a point of the run lies above it."""
        return _changed(self._once(_changed(found, {"above": None})), {"above": found.above})

    def _row(self, row: Evaluation, final: dict[str, MetricRecord], costs: Iterable[str] | None) -> Evaluation:
        cost = row.cost or {}
        kept = {intern(name): cost[name] for name in (cost if costs is None else costs) if name in cost}
        metrics = {name: row.metrics[name] for name in METRICS if name in row.metrics}
        parts = {"metrics": self._metrics(metrics, final), "cost": kept if row.cost is not None else None}
        return self._slim(_changed(row, parts | {"split": intern(row.split)}))

    def _metrics(self, found: dict[str, MetricRecord], final: dict[str, MetricRecord]) -> dict[str, MetricRecord]:
        """Metrics by name; the last point of a run has those of its end."""
        return {
            intern(name): self._slim(final[name] if metric == final.get(name) else metric) for name, metric in found.items()
        }

    def _slim(self, record: Kind) -> Kind:
        """The record itself; the set of its keys, most of its size, is that of all records with the same keys."""
        given = record.__pydantic_fields_set__
        object.__setattr__(record, "__pydantic_fields_set__", self._fields.setdefault(frozenset(given), given))
        if not record.__pydantic_extra__:
            object.__setattr__(record, "__pydantic_extra__", self._nothing)
        return record

    def _table(self, table: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if table is None else {intern(key): self._once(value) for key, value in table.items()}

    def _once(self, value: Value, plain: Callable[[], Any] | None = None) -> Value:
        """A value, or the one that was given before and is equal in the canonical JSON of its plain data."""
        data = value.plain() if plain is None and isinstance(value, Record) else value if plain is None else plain()
        key = hashlib.blake2b(canonical(data).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found: Value = self._known.setdefault(key, value)
        return found


def _changed(record: Kind, parts: dict[str, Any]) -> Kind:
    """A copy with other parts; what was absent stays absent."""
    return record.model_copy(update={name: value for name, value in parts.items() if name in record.model_fields_set})
