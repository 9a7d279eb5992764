"""Runs of Weights & Biases: offline, for `wandb sync`, unless WANDB_MODE is set. It is sent no code, console or host facts."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.core.files import replace

from .events import Begin, End, Held, Values, after
from .trackers import PROJECT


class Wandb:
    """A run of Weights & Biases, which a later attempt continues by its id.

    An offline run cannot be read back, so what its closed attempts hold is noted in a file. The folder of an attempt that was
    killed, which may lack rows, is removed, and its rows are given again.
    """

    def __init__(self, root: Path) -> None:
        defaults = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
        places = {f"WANDB_{what}_DIR": str(root.resolve() / what.lower()) for what in ("CACHE", "DATA", "CONFIG")}
        for name, value in (defaults if "WANDB_MODE" in os.environ else defaults | places).items():
            os.environ.setdefault(name, value)
        import wandb

        logging.raiseExceptions = False  # its log on a full disk would be a traceback a line
        self._library: Any = wandb
        self.root = root
        self.hint = f"wandb sync --append {root}/wandb/offline-run-*"
        self._run: Any = None
        self._note, self._held = root, Held()
        self._attempts: list[str] = []  # folders of those that were closed

    def begin(self, run: Begin) -> Held:
        self._note = self.root / "held" / f"{run.key}.json"
        noted = json.loads(self._note.read_text()) if self._note.exists() else {"held": {}, "attempts": []}
        self._held, self._attempts = Held(**noted["held"]), noted["attempts"]
        if self._held.ended:
            return self._held
        self._note.parent.mkdir(parents=True, exist_ok=True)
        for folder in self.root.glob(f"wandb/offline-run-*-{run.key}"):
            if folder.name not in self._attempts:
                shutil.rmtree(folder)
        quiet = self._library.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        while list(self.root.glob(f"wandb/*-{datetime.now():%Y%m%d_%H%M%S}-{run.key}")):
            time.sleep(0.1)  # the folder of an attempt is named by the second, and would be written over
        online = os.environ["WANDB_MODE"] in ("online", "shared")
        self._run = self._library.init(
            id=run.key, name=run.name, project=os.environ.get("WANDB_PROJECT") or PROJECT, dir=str(self.root),
            resume="allow" if online else None, group=f"{run.labels['task']}/{run.labels['method']}"[:120],
            config={**run.settings, **{f"run.{k}": v for k, v in run.labels.items()}}, settings=quiet,
        )  # fmt: skip
        return self._held

    def add(self, rows: Sequence[Values]) -> None:
        for row in rows:
            self._run.log(dict(row.values), step=row.update)
        self._held = after(self._held, rows)

    def end(self, result: End) -> None:
        found: dict[str, Any] = {}
        if result.picture is not None:
            from PIL import Image

            found["picture"] = self._library.Image(Image.open(io.BytesIO(result.picture)))
        if result.samples:
            columns = list(result.samples[0])
            found["samples"] = self._library.Table(columns, [[row[name] for name in columns] for row in result.samples])
        if found:
            self._run.log(found, step=result.update)
        self._run.summary.update({**result.values, "status": result.status})
        self._held = Held(self._held.update, self._held.evaluations, ended=True)

    def close(self, status: str) -> None:
        if self._run is not None:
            folder = Path(self._run.dir).parent.name
            self._run.finish(exit_code=0 if status in ("done", "degraded") else 1)
            self._library.teardown()  # its own process ends, so that everything is on disk
            self._run = None
            replace(self._note, json.dumps({"held": vars(self._held), "attempts": [*self._attempts, folder]}).encode())
