"""Runs of Trackio: in its SQLite files below the records, unless TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .events import Begin, End, Held, Values, after
from .trackers import PROJECT


class Trackio:
    """A run of Trackio, which a later attempt continues by its name."""

    def __init__(self, root: Path) -> None:
        self.folder = os.environ.setdefault("TRACKIO_DIR", str(root.resolve()))  # read once, on import
        import trackio

        warnings.filterwarnings("ignore", module=r"trackio\.")  # of rows that it drops, which `close` counts
        self._library: Any = trackio
        self.hint = f"TRACKIO_DIR={self.folder} trackio show --project {PROJECT}"
        self._run: Any = None
        self._name, self._given = "", Held()

    def begin(self, run: Begin) -> Held:
        self._name = f"{run.name}-{run.key}"
        held = self._given = self._held()
        if held.ended:
            return held
        self._run = self._library.init(
            project=PROJECT, name=self._name, group=f"{run.labels['task']}/{run.labels['method']}", resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
            config={**run.settings, **{f"run.{k}": v for k, v in run.labels.items()}},
        )  # fmt: skip
        return held

    def add(self, rows: Sequence[Values]) -> None:
        for row in rows:
            self._run.log(dict(row.values), step=row.update)
        self._given = after(self._given, rows)

    def end(self, result: End) -> None:
        found: dict[str, Any] = dict(result.values)
        if result.picture is not None:
            from PIL import Image

            found["picture"] = self._library.Image(Image.open(io.BytesIO(result.picture)))
        if result.samples:
            found["samples"] = self._library.Table(data=result.samples)
        self._run.log(found, step=result.update)
        self._given = Held(self._given.update, self._given.evaluations, ended=True)

    def close(self, status: str) -> None:
        if self._run is not None:
            self._library.finish()  # the run's own method leaves it to be finished again at exit, with a line on stdout
            self._run = None
            if self._held() != self._given:  # it drops what it cannot write
                raise OSError(f"Trackio has not kept every row; look at the disk of {self.folder}")

    def _held(self) -> Held:
        logs = self._library.SQLiteStorage.get_logs(PROJECT, self._name)
        sides = [({key.partition("/")[0] for key in log}, log) for log in logs]
        updates = [int(log["step"]) for found, log in sides if "train" in found]
        return Held(
            max(updates, default=-1), sum("eval" in found for found, _ in sides), any("final" in found for found, _ in sides)
        )
