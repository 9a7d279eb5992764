"""An index beside many records, so that `harness status` need not open every one of them again.

`.index.sqlite` in the folder that was read holds of each record what its state depends on. An entry counts only while the
files of the record have the times and sizes that they had; the index is never trusted beyond that, and may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.core.hashing import canonical
from harness.records.schema import FINISHED, CurvePoint, Evaluation, Frontier, Manifest, Record, Run, Summary

NAME = ".index.sqlite"
FORM = 1  # raise it whenever what is kept changes
LEAST = 500  # records; fewer are read in seconds without an index
FILES = ("manifest.json", "summary.json", "trajectory.jsonl")
TABLES = (
    "CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, run TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS parts (key TEXT PRIMARY KEY, value TEXT NOT NULL)",  # what many runs have in common
)


class States:
    """Reads of records what their states depend on, with values that many of them share kept once."""

    def __init__(self, read: Callable[[Path], Run]) -> None:
        self._read = read
        self._shared: dict[str, Any] = {}

    def __call__(self, folder: Path) -> Run:
        """Read a record; raises CorruptRecord as `read` does."""
        run = self._read(folder)
        tables = {"identity": self._once(run.manifest.identity), "settings": self._once(run.manifest.settings)}
        summary = None if run.summary is None else self._light(run.summary)
        rows = [] if run.manifest.status in FINISHED else run.trajectory[-1:]
        return Run(run.dir, run.manifest.model_copy(update=tables), summary, rows)

    def _light(self, summary: Summary) -> Summary:
        """A summary without metrics and curves, but for what tells its state and its group."""
        light = {"settings": self._once(summary.settings), "base": {}, "frontier": self._frontier(summary.frontier)}
        return summary.model_copy(update=light | ({} if summary.status == "degraded" else {"final": {}}))

    def _frontier(self, frontier: Frontier | None) -> Frontier | None:
        if frontier is None:
            return None
        key = canonical([frontier.base_reward, frontier.kl_cap, [point.reward for point in frontier.curve]])
        if key not in self._shared:
            curve = [CurvePoint(kl=0.0, reward=point.reward, solid=False) for point in frontier.curve]
            self._shared[key] = Frontier(base_reward=frontier.base_reward, kl_cap=frontier.kl_cap, curve=curve)
        return self._shared[key]

    def _once(self, table: dict[str, Any] | None) -> dict[str, Any] | None:
        """A table whose values are those of an earlier one where they are equal."""
        if table is None:
            return None
        return {key: self._shared.setdefault(canonical(value), value) for key, value in table.items()}


class Index:
    """Reads records through the index of a folder, and writes what it had to read itself; without one it only reads."""

    def __init__(self, top: Path, states: States) -> None:
        self.top, self._states = Path(os.path.abspath(top)), states
        rows, parts = _entries(self.top / NAME)
        self._known = {str(name): (str(when), str(run)) for name, when, run in rows}
        self._texts = {str(key): str(value) for key, value in parts}
        self._values: dict[str, Any] = {}  # of the texts, each parsed once
        self._keys: dict[int, tuple[Any, str]] = {}  # by the identity of a value, which is kept so that it stays taken
        self._new: dict[str, tuple[str, str]] = {}
        self._seen = 0

    def __call__(self, folder: Path) -> Run:
        """Read a record; raises CorruptRecord as `read` does."""
        self._seen += 1
        name, now = os.path.relpath(folder, self.top), stamp(folder)
        stamped, text = self._known.get(name, ("", ""))
        if stamped == now and now:
            found = self._decoded(folder, text)
            if found is not None:
                return found
        run = self._states(folder)
        if now and now == stamp(folder):  # not changed meanwhile
            self._new[name] = (now, self._encoded(run))
        return run

    def save(self) -> None:
        """Write what is new; nothing for few records, or where the folder cannot be written to."""
        path = self.top / NAME
        if not self._new or self._seen < LEAST or not _regular_or_absent(path):
            return
        try:
            with closing(sqlite3.connect(path, timeout=1.0)) as base, base:
                base.execute(f"PRAGMA user_version = {FORM}")
                for table in TABLES:
                    base.execute(table)
                base.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?)", self._texts.items())
                rows = [(name, *row) for name, row in self._new.items()]
                base.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
        except sqlite3.Error:  # of another form, damaged, read-only, or in use: the next command reads the records
            return

    def _encoded(self, run: Run) -> str:
        summary = None if run.summary is None else self._plain(run.summary) | {"frontier": self._key(run.summary.frontier)}
        manifest = self._plain(run.manifest)
        rows = [row.plain() for row in run.trajectory]
        return json.dumps([manifest, summary, rows], allow_nan=False)

    def _plain(self, record: Manifest | Summary) -> dict[str, Any]:
        """A record as plain data, with the keys of parts in place of them."""
        tables = {name: getattr(record, name) for name in ("identity", "settings") if name in record.model_fields_set}
        found = record.model_dump(by_alias=True, exclude_unset=True, exclude={"identity", "settings", "frontier"})
        for name, table in tables.items():
            found[name] = None if table is None else {key: self._key(value) for key, value in table.items()}
        return found

    def _key(self, value: Any) -> str:
        """The key of a value, which `States` has made one object wherever it is equal."""
        if id(value) not in self._keys:
            text = canonical(value.plain() if isinstance(value, Record) else value)
            key = hashlib.sha256(text.encode()).hexdigest()[:32]
            self._texts[key] = text
            self._keys[id(value)] = (value, key)
        return self._keys[id(value)][1]

    def _value(self, key: str, kind: type[Record] | None = None) -> Any:
        if key not in self._values:
            value = json.loads(self._texts[key])
            self._values[key] = value if kind is None or value is None else kind.model_validate(value)
        return self._values[key]

    def _decoded(self, folder: Path, text: str) -> Run | None:
        """A record from an entry, None if it is not one."""
        try:
            manifest, summary, rows = json.loads(text)
            for table in filter(None, (manifest, summary)):
                for name in {"identity", "settings"} & set(table):
                    old = table[name]
                    table[name] = None if old is None else {key: self._value(part) for key, part in old.items()}
            if summary is not None:
                summary["frontier"] = self._value(summary["frontier"], Frontier)
            whole = None if summary is None else Summary.model_validate(summary)
            return Run(folder, Manifest.model_validate(manifest), whole, [Evaluation.model_validate(row) for row in rows])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a ValidationError is a ValueError
            return None


def stamp(folder: Path) -> str:
    """The times and sizes of a record's files, empty if it has no manifest; a file that is written anew has others."""
    found, at = [], str(folder)
    for name in FILES:
        try:
            seen = os.lstat(f"{at}/{name}")
        except OSError:
            found.append("-")
            continue
        found.append(f"{seen.st_mtime_ns}:{seen.st_size}:{seen.st_ino}")
    return "" if found[0] == "-" else " ".join(found)


def _regular_or_absent(path: Path) -> bool:
    """Whether a path may be opened as a database: never through a link, which in a foreign folder may point anywhere."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _entries(path: Path) -> tuple[list[Any], list[Any]]:
    """The runs and the parts of an index; none if there is none of this form that can be read."""
    if not path.is_file() or not _regular_or_absent(path):
        return [], []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as base:
            if base.execute("PRAGMA user_version").fetchone() != (FORM,):
                return [], []
            runs = base.execute("SELECT name, stamp, run FROM runs").fetchall()
            return runs, base.execute("SELECT key, value FROM parts").fetchall()
    except sqlite3.Error:
        return [], []
