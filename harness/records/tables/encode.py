"""Write records to the tables of a study without loss; values that a column cannot hold exactly are kept as JSON text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from harness.core.hashing import canonical

from ..schema import Evaluation, Manifest, ProbeResult, Prompts, Sample, Scalars, Summary
from .layout import COLUMNS, OPTIONAL, content

PLAIN = ("run_id", "preset", "task", "method", "seed", "status")
"""Keys of a manifest with their own columns."""
PARTS = ("identity", "settings", "provenance", "files")
"""Keys of a manifest with their own columns of JSON text, since many runs share them."""
SCALARS = 100
"""Maximum number of updates per run whose scalars a study keeps."""
SCORES = ("reward", "judge", "kl", "nll_per_token")
METRIC = ("value", "stderr", "n", "n_unscored", "reason")


class Record(NamedTuple):
    """A record to be kept: the values of its files, and its kept samples by `base` and `final`."""

    manifest: Manifest
    summary: Summary | None
    trajectory: list[Evaluation]
    prompts: Prompts | None
    samples: dict[str, list[Sample]]
    scalars: list[Scalars]
    probes: list[ProbeResult]

    def digest(self) -> str:
        """The sha256 of all values of the record."""
        plain = self.plain()
        values = list(
            plain if plain.probes else plain[:-1]
        )  # that of a record without probes is what it was before there were any
        return hashlib.sha256(canonical(values).encode()).hexdigest()

    def plain(self) -> Plain:
        """The record as plain data."""
        return Plain(
            self.manifest.plain(),
            self.summary.plain() if self.summary is not None else None,
            [point.plain() for point in self.trajectory],
            self.prompts.plain() if self.prompts is not None else None,
            self.samples,
            [row.plain() for row in self.scalars],
            [row.plain() for row in self.probes],
        )


class Plain(NamedTuple):
    """A record to be kept as plain data."""

    manifest: dict[str, Any]
    summary: dict[str, Any] | None
    trajectory: list[dict[str, Any]]
    prompts: dict[str, Any] | None
    samples: dict[str, list[Sample]]
    scalars: list[dict[str, Any]]
    probes: list[dict[str, Any]]


def encode(records: list[Record]) -> dict[str, bytes]:
    """Encode records, in their order, as the files of a study by name."""
    columns: dict[str, dict[str, list[Any]]] = {name: {c.name: [] for c in found} for name, found in COLUMNS.items()}
    for number, record in enumerate(records):
        for name, rows in _rows(number, record.plain()).items():
            for row in rows:
                for column, values in columns[name].items():
                    values.append(row.get(column))
    narrow = all(_six_digits(value) for name in SCORES for value in columns["prompts"][name])
    together = hashlib.sha256("".join(record.digest() for record in records).encode()).hexdigest()
    written = [name for name in COLUMNS if name not in OPTIONAL or columns[name]["run"]]
    return {f"{name}.parquet": content(name, columns[name], narrow, together) for name in written}


def thinned(rows: list[Scalars]) -> list[Scalars]:
    """At most SCALARS rows of scalars, evenly spaced from first to last, with their finite values in float32."""
    kept = rows
    if len(rows) > SCALARS:
        kept = [rows[round(i * (len(rows) - 1) / (SCALARS - 1))] for i in range(SCALARS)]
    found = [Scalars(update=row.update, scalars=_narrow(row.scalars)) for row in kept]
    return [row for row in found if row.scalars]


def _narrow(row: dict[str, float | None]) -> dict[str, float | None]:
    """The finite values of a row in float32."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = {name: float(np.float32(value)) for name, value in row.items() if value is not None}
    return {name: value for name, value in narrow.items() if abs(value) < float("inf")}


def short(value: float) -> float:
    """Round a number to six significant digits, as in prompts.json."""
    return float(f"{value:.6g}")


def _six_digits(value: float | None) -> bool:
    """Return True if float32 preserves the six digits of a score."""
    import numpy as np

    with np.errstate(over="ignore"):
        return value is None or short(float(np.float32(value))) == value


def _rows(number: int, record: Plain) -> dict[str, list[dict[str, Any]]]:
    """The rows of a record in each table."""
    points, base, final = _points(record)
    prompts, rest = _prompts(record.prompts)
    run = {"run": number, **{key: record.manifest[key] for key in PLAIN}}
    run |= {key: _json(record.manifest[key]) for key in PARTS if key in record.manifest}
    run["manifest"] = _json({k: v for k, v in record.manifest.items() if k not in (*PLAIN, *PARTS)})
    if record.summary is not None:
        run["summary"] = _json({k: v for k, v in record.summary.items() if k not in ("base", "final", "frontier")})
        run["frontier"] = _json(record.summary["frontier"])
        run |= {"base_point": base, "final_point": final}
    run["prompts"] = None if rest is None else _json(rest)
    samples = [{**row, "of": of} for of, rows in record.samples.items() for row in rows]
    evaluations = [row for i, point in enumerate(points) for row in _evaluation(i, point)]
    scalars = [
        {"update": row["update"], "name": name, "value": value}
        for row in record.scalars
        for name, value in row["scalars"].items()
    ]
    probes = [{"result": _json(result)} for result in record.probes]
    rows = {
        "runs": [run],
        "evaluations": evaluations,
        "prompts": prompts,
        "samples": samples,
        "scalars": scalars,
        "probes": probes,
    }
    return {name: [row | {"run": number} for row in found] for name, found in rows.items()}


def _points(record: Plain) -> tuple[list[dict[str, Any]], int, int]:
    """The evaluations of a run, including those of its summary, and the indices of the base and the final one.

    An evaluation without an update is only in the summary.
    """
    points, places = list(record.trajectory), []
    for side in ("base", "final"):
        metrics = record.summary[side] if record.summary is not None else None
        order = range(len(points)) if side == "base" else reversed(range(len(points)))
        place = next((i for i in order if metrics is not None and _same(points[i]["metrics"], metrics)), None)
        if place is None:
            points += [{"metrics": metrics}] if metrics is not None else []
            place = len(points) - 1
        places.append(place)
    return points, places[0], places[1]


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a == b and json.dumps(a) == json.dumps(b)  # 1 and 1.0 are equal, but differ as JSON


def _evaluation(number: int, point: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """One row per metric; an evaluation without metrics has one row too."""
    row: dict[str, Any] = {"point": number, "update": point.get("update"), "split": point.get("split")}
    known = {"update", "split", "metrics"}
    if isinstance(point.get("seconds"), float):
        row["seconds"] = point["seconds"]
        known.add("seconds")
    if "cost" in point:
        row["cost"] = _json(point["cost"])
        known.add("cost")
    if rest := {key: value for key, value in point.items() if key not in known}:
        row["other"] = _json(rest)
    return [row | {"metric": name} | _metric(found) for name, found in point["metrics"].items()] or [row]


def _metric(found: dict[str, Any]) -> dict[str, Any]:
    """The columns of a metric, or its JSON text if they cannot hold it exactly."""
    kinds = {"value": float, "stderr": float, "n": int, "n_unscored": int, "reason": str}
    exact = {"value", "stderr", "n"} <= set(found) <= set(METRIC) and all(
        type(value) is kinds[key] or (value is None and key in ("value", "stderr")) for key, value in found.items()
    )
    return found if exact else {"exact": _json(found)}


def _prompts(record: Mapping[str, Any] | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """One row per prompt, and the other keys of prompts.json; all keys if a column cannot hold a value exactly."""
    if record is None:
        return [], None
    kinds = {"id": str, "kind": str, "n_scored": int}
    columns = {name: record.get(name) for name in (*kinds, *SCORES)}
    if not all(isinstance(column, list) for column in columns.values()):
        return [], dict(record)
    lengths = {len(column) for column in columns.values() if isinstance(column, list)}
    exact = len(lengths) == 1 and all(
        type(value) is kinds.get(name, float) or (value is None and name in SCORES)
        for name, column in columns.items()
        for value in column or ()
    )
    if not exact or lengths == {0}:
        return [], dict(record)
    rest = {key: value for key, value in record.items() if key not in columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], rest  # type: ignore[arg-type]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
