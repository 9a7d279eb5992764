"""Worker process for one cell of a sweep, started by an engine.

It does the same as `harness run` without a picture. It stops, as if interrupted, when the sweep ends (the pipe at its
standard input closes), and exits with BUSY if another process holds the cell.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from harness.core.errors import Busy, Interrupted
from harness.core.process import explain, prepare
from harness.export.live import Tracking, tracked
from harness.runs.progress import loading

from .engines.process import PATIENCE
from .engines.remote import GRACE

BUSY = 75  # EX_TEMPFAIL of sysexits.h: try again later


def main(cell: dict[str, Any]) -> int:
    prepare()
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        return _run(cell)
    except Busy:
        return BUSY
    except (Exception, Interrupted, SystemExit) as e:
        return explain(e)


def _run(cell: dict[str, Any]) -> int:
    progress = loading(f"{cell['method']} × {cell['task']}, preset {cell['preset']}, seed {cell['seed']}")
    from harness.runs.assemble import named_cell
    from harness.runs.finished.probe import probe_cell
    from harness.runs.session import run

    ready = named_cell(
        cell["method"], cell["task"], cell["preset"], cell["seed"], cell["overrides"], {}, Path(cell["out"]), cell["offline"]
    )  # fmt: skip
    with tracked(Tracking(tuple(cell["track"])), ready.path, ready.out, progress.say) as live:
        progress.written = live.written
        summary, _ = run(ready, fresh=False, progress=progress, lease=cell["lease"])
        probe_cell(ready, progress, cell["lease"])
        live.end()
    return 4 if summary.status == "degraded" else 0


def _watch_parent() -> None:
    os.read(0, 1)  # nothing is ever written; it returns when the other end closes
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the progress has no reader any more, and a broken pipe would fail the run
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
        os.kill(os.getpid(), number)  # after the current update; at once; a method or a scorer that never returns hears neither
        time.sleep(seconds)
