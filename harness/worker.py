"""One cell of a sweep in a process of its own, which `harness.launcher` starts.

It is `harness run` with two additions: it stops, as if interrupted, when the sweep that started it is gone (the pipe at its
standard input closes), and it says by its exit code that another process holds the cell.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from .cli import explain
from .environment import own_packages, prepare
from .errors import Busy, Interrupted

BUSY = 75  # as EX_TEMPFAIL of sysexits.h: try again later


def main(cell: dict[str, Any]) -> int:
    from .commands import run_command

    prepare()
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        own_packages()
        return run_command(
            cell["method"], cell["task"], cell["preset"], [cell["seed"]], cell["overrides"], {}, Path(cell["out"]),
            fresh=False, dry_run=False, offline=cell["offline"], as_json=True, unmask=False,
        )  # fmt: skip
    except Busy:
        return BUSY
    except (Exception, Interrupted, SystemExit) as e:
        return explain(e)


def _watch_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end closes
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads the progress any more; a broken pipe would fail the run
    os.kill(os.getpid(), signal.SIGTERM)
