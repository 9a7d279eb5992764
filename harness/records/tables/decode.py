"""Read records from the tables of a study, with every value unchanged."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import CorruptRecord
from harness.core.files import strict_json
from harness.core.hashing import identity_hash

from ..schema import Frontier, ProbeResult, Prompts, Scalars, check_version, parsed, place
from . import layout
from .encode import METRIC, PARTS, PLAIN, SCORES, short
from .layout import OPTIONAL

if TYPE_CHECKING:
    import pyarrow

Columns = dict[str, list[Any]]


class Tables:
    """The tables of a study, each read once on first use; raises CorruptRecord if one is broken."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.frontiers: dict[str, Frontier | None] = {}  # by their JSON text
        self._read: dict[str, tuple[pyarrow.Table, list[list[int]]]] = {}
        found, self._written_with = layout.read(dir, "runs")
        self.runs: Columns = found.to_pydict()
        if self.runs["run"] != list(range(found.num_rows)):
            raise CorruptRecord(f"{dir}: runs.parquet does not number its rows; copy the study again")

    def records(self) -> list[TableRecord]:
        """All records of the study in their stored order."""
        return [TableRecord(self, number) for number in self.runs["run"]]

    def check(self, name: str) -> None:
        """Read a table now; raises CorruptRecord if it cannot be read."""
        if name not in self._read:
            self._read[name] = self._table(name)

    def rows(self, name: str, run: int) -> pyarrow.Table:
        """The rows of one run in a table, in their order; raises CorruptRecord if the table cannot be read."""
        import pyarrow

        self.check(name)
        table, rows = self._read[name]
        return table.take(pyarrow.array(rows[run], pyarrow.int64()))

    def _table(self, name: str) -> tuple[pyarrow.Table, list[list[int]]]:
        """A table and the row numbers of each run in it; raises CorruptRecord if it does not match runs.parquet."""
        table, written_with = layout.read(self.dir, name)
        if written_with not in (self._written_with, None):
            raise CorruptRecord(f"{self.dir}: {name}.parquet and runs.parquet are of different studies; copy the study again")
        rows: list[list[int]] = [[] for _ in self.runs["run"]]
        for i, run in enumerate(table["run"].to_pylist()):
            if not 0 <= run < len(rows):
                raise CorruptRecord(f"{self.dir}: {name}.parquet has rows of unknown run {run}; copy the study again")
            rows[run].append(i)
        return table, rows


class TableRecord:
    """One record within a study; its `dir` is a name only and does not exist on disk."""

    def __init__(self, tables: Tables, number: int) -> None:
        self._tables, self._number = tables, number
        self._row = {name: column[number] for name, column in tables.runs.items()}
        self.home = tables.dir
        self.dir = tables.dir / place(*(self._row[key] for key in ("preset", "task", "method", "run_id", "seed")))

    def manifest(self) -> dict[str, Any]:
        """The manifest as plain data; raises CorruptRecord."""
        rest = self._object("manifest")
        parts = {key: self._json(key) for key in PARTS if self._row[key] is not None}
        return {**rest, **{key: self._row[key] for key in PLAIN}, **parts}

    def summary(self) -> dict[str, Any] | None:
        """The summary as plain data but for its frontier, None if the run has none; raises CorruptRecord."""
        if self._row["summary"] is None:
            return None
        points = self._points()
        sides = {side: points.get(self._row[f"{side}_point"], {}).get("metrics") for side in ("base", "final")}
        rest = list(self._object("summary").items())
        at = next((i for i, (key, _) in enumerate(rest) if key == "cost"), len(rest))  # the order in which a run writes them
        return {**dict(rest[:at]), **sides, "frontier": self._frontier(), **dict(rest[at:])}

    def _frontier(self) -> Frontier | None:
        """The frontier, one object for all runs that record the same."""
        text, known = self._row["frontier"], self._tables.frontiers
        if text is not None and text not in known:
            found = self._json("frontier")
            known[text] = None if found is None else parsed(Frontier, found, self.dir, "the frontier of summary.json")
        return known.get(text)

    def trajectory(self) -> list[dict[str, Any]]:
        """The evaluations in their order, as plain data; raises CorruptRecord."""
        return [point for point in self._points().values() if "update" in point]

    def prompts(self) -> Prompts | None:
        """The scores of each prompt, None if the run has none; raises CorruptRecord."""
        if self._row["prompts"] is None:
            return None
        found = self._prompts()
        check_version(found, self.dir, "prompts.json")
        return parsed(Prompts, found, self.dir, "prompts.json")

    def _prompts(self) -> dict[str, Any]:
        found, rest = self._tables.rows("prompts", self._number), self._object("prompts")
        if not found.num_rows:
            return rest
        columns = found.drop_columns(["run"]).to_pydict()
        if any(str(found[name].type) == "float" for name in SCORES):
            columns |= {name: [v if v is None else short(v) for v in columns[name]] for name in SCORES}
        whole = {**rest, **columns}
        return {name: whole[name] for name in Prompts.model_fields if name in whole} | whole  # in the order of the file

    def scalars(self) -> list[Scalars]:
        """The scalars of the method at the kept updates, one row per update."""
        rows: dict[int, dict[str, Any]] = {}
        for row in self._tables.rows("scalars", self._number).to_pylist():
            rows.setdefault(row["update"], {})[row["name"]] = row["value"]
        plain = [{"scalars": found, "update": update} for update, found in rows.items()]
        return [parsed(Scalars, row, self.dir, f"scalars.jsonl line {i}") for i, row in enumerate(plain, 1)]

    def probes(self) -> list[ProbeResult]:
        """What probes of the finished policy found."""
        found = [self._parse(text, "probes") for text in self._tables.rows("probes", self._number)["result"].to_pylist()]
        return [parsed(ProbeResult, row, self.dir, f"probes.jsonl line {i}") for i, row in enumerate(found, 1)]

    def table(self, name: str, columns: Collection[str] | None = None) -> pyarrow.Table:
        """The kept samples of `samples/NAME.parquet`; raises FileNotFoundError if there are none, CorruptRecord."""
        of = name.removeprefix("samples/").removesuffix(".parquet")
        found = self._tables.rows("samples", self._number)
        chosen = [i for i, value in enumerate(found["of"].to_pylist()) if value == of]
        if not chosen:
            raise FileNotFoundError(name)
        found = found.take(chosen).drop_columns(["run", "of"])
        empty = [c for c in ("kl", "nll", "nll_tokens") if found[c].null_count == found.num_rows]
        found = found.drop_columns(empty)
        return found if columns is None else found.select([c for c in found.column_names if c in columns])

    def names(self) -> list[str]:
        """The names of the files that the record would have in its own folder."""
        kept = sorted({f"samples/{of}.parquet" for of in self._tables.rows("samples", self._number)["of"].to_pylist()})
        has = {"prompts.json": self._row["prompts"], "summary.json": self._row["summary"]}
        kept += [f"{table}.jsonl" for table in OPTIONAL if self._tables.rows(table, self._number).num_rows]
        return sorted(["manifest.json", "trajectory.jsonl", *kept, *(name for name, text in has.items() if text is not None)])

    def hash(self, name: str) -> str:
        """A hash of the kept samples, which are part of the file of that name; raises FileNotFoundError if there are none."""
        return identity_hash(self.table(name).to_pylist())

    def _points(self) -> dict[int, dict[str, Any]]:
        """The evaluations by number, as rows of a trajectory; one that is only in the summary has metrics alone."""
        points: dict[int, dict[str, Any]] = {}
        for row in self._tables.rows("evaluations", self._number).to_pylist():
            if row["point"] not in points:
                points[row["point"]] = self._evaluation(row)
            if row["metric"] is not None:
                points[row["point"]]["metrics"][row["metric"]] = self._metric(row)
        return points

    def _evaluation(self, row: dict[str, Any]) -> dict[str, Any]:
        point: dict[str, Any] = {} if row["cost"] is None else {"cost": self._parse(row["cost"], "evaluations")}
        point |= {"metrics": {}, **{key: row[key] for key in ("seconds", "split", "update") if row[key] is not None}}
        other = self._parse(row["other"], "evaluations") if row["other"] is not None else {}
        return point | (other if isinstance(other, dict) else {})

    def _metric(self, row: dict[str, Any]) -> Any:
        if row["exact"] is not None:
            return self._parse(row["exact"], "evaluations")
        return {key: row[key] for key in METRIC if row[key] is not None or key in ("value", "stderr")}

    def _object(self, name: str) -> dict[str, Any]:
        found = self._json(name)
        if not isinstance(found, dict):
            raise CorruptRecord(f"{self.dir}: its {name} in runs.parquet is not a JSON object; copy the study again")
        return found

    def _json(self, name: str) -> Any:
        return None if self._row[name] is None else self._parse(self._row[name], name)

    def _parse(self, text: str, name: str) -> Any:
        try:
            return strict_json(text)
        except ValueError as error:
            raise CorruptRecord(f"{self.dir}: its {name} is not strict JSON: {error}; copy the study again") from None
