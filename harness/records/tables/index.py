"""An index beside many records, so that `harness status` need not open every one of them again.

`.index.sqlite` in the folder that was read holds of each record what its state depends on. An entry counts only while the
files of the record have the times and sizes that they had; the index is never trusted beyond that, and may be deleted.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.core.hashing import canonical
from harness.records.schema import CurvePoint, Evaluation, Frontier, Manifest, Run, Summary

NAME = ".index.sqlite"
FORM = 1  # raise it whenever what is kept changes
LEAST = 500  # records; fewer are read in seconds without an index
FILES = ("manifest.json", "summary.json", "trajectory.jsonl")
TABLE = "CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, run TEXT NOT NULL)"


class States:
    """Reads of records what their states depend on, with values that many of them share kept once."""

    def __init__(self, read: Callable[[Path], Run]) -> None:
        self._read = read
        self._shared: dict[str, Any] = {}

    def __call__(self, folder: Path) -> Run:
        """Read a record; raises CorruptRecord as `read` does."""
        return self.light(self._read(folder))

    def light(self, run: Run) -> Run:
        """A record without samples' sources, metrics and curves, but for what tells its state and its group."""
        manifest = run.manifest.model_copy(
            update={"identity": self._once(run.manifest.identity), "settings": self._once(run.manifest.settings)}
        )
        summary = None if run.summary is None else self._summary(run.summary)
        return Run(run.dir, manifest, summary, run.trajectory[-1:])

    def _summary(self, summary: Summary) -> Summary:
        frontier = summary.frontier
        if frontier is not None:
            curve = [CurvePoint(kl=0.0, reward=point.reward, solid=False) for point in frontier.curve]
            light = Frontier(base_reward=frontier.base_reward, kl_cap=frontier.kl_cap, curve=curve)
            frontier = self._shared.setdefault(canonical(light.plain()), light)
        final = summary.final if summary.status == "degraded" else {}
        return summary.model_copy(
            update={"settings": self._once(summary.settings), "base": {}, "final": final, "frontier": frontier}
        )

    def _once(self, table: dict[str, Any] | None) -> dict[str, Any] | None:
        """A table whose values are those of an earlier one where they are equal."""
        if table is None:
            return None
        return {key: self._shared.setdefault(canonical(value), value) for key, value in table.items()}


class Index:
    """Reads records through the index of a folder, and writes what it had to read itself; without one it only reads."""

    def __init__(self, top: Path, states: States) -> None:
        self.top, self._states = Path(os.path.abspath(top)), states
        self._known = dict(_rows(self.top / NAME))
        self._new: dict[str, tuple[str, str]] = {}
        self._seen = 0

    def __call__(self, folder: Path) -> Run:
        """Read a record; raises CorruptRecord as `read` does."""
        self._seen += 1
        name, now = os.path.relpath(folder, self.top), stamp(folder)
        stamped, text = self._known.get(name, ("", ""))
        if stamped == now and now:
            found = _decoded(folder, text)
            if found is not None:
                return self._states.light(found)
        run = self._states(folder)
        if now and now == stamp(folder):  # not changed meanwhile
            self._new[name] = (now, _encoded(run))
        return run

    def save(self) -> None:
        """Write what is new; nothing for few records, or where the folder cannot be written to."""
        path = self.top / NAME
        if not self._new or self._seen < LEAST or not _regular_or_absent(path):
            return
        try:
            with closing(sqlite3.connect(path, timeout=1.0)) as base, base:
                base.execute(f"PRAGMA user_version = {FORM}")
                base.execute(TABLE)
                rows = [(name, *row) for name, row in self._new.items()]
                base.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
        except sqlite3.Error:  # of another form, damaged, read-only, or in use: the next command reads the records
            return


def stamp(folder: Path) -> str:
    """The times and sizes of a record's files, empty if it has no manifest; a file that is written anew has others."""
    found = []
    for name in FILES:
        try:
            seen = os.stat(folder / name, follow_symlinks=False)
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


def _rows(path: Path) -> Iterable[tuple[str, tuple[str, str]]]:
    """The entries of an index; none if there is none of this form that can be read."""
    if not path.is_file() or not _regular_or_absent(path):
        return []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as base:
            if base.execute("PRAGMA user_version").fetchone() != (FORM,):
                return []
            return [(str(name), (str(when), str(run))) for name, when, run in base.execute("SELECT name, stamp, run FROM runs")]
    except sqlite3.Error:
        return []


def _encoded(run: Run) -> str:
    summary = None if run.summary is None else run.summary.plain()
    rows = [row.plain() for row in run.trajectory]
    return json.dumps({"manifest": run.manifest.plain(), "summary": summary, "trajectory": rows}, allow_nan=False)


def _decoded(folder: Path, text: str) -> Run | None:
    """A record from an entry, None if it is not one."""
    try:
        found = json.loads(text)
        summary = None if found["summary"] is None else Summary.model_validate(found["summary"])
        rows = [Evaluation.model_validate(row) for row in found["trajectory"]]
        return Run(folder, Manifest.model_validate(found["manifest"]), summary, rows)
    except (ValueError, ValidationError, KeyError, TypeError, RecursionError):
        return None
