"""The trackers by name. Each is one small module that writes events, imported when it is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from harness.core.errors import MissingPrerequisite, UnknownName, UsageError

from .events import Begin, End, Held, Values

CLASSES = {"tensorboard": "Tensorboard", "wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
FOLDER = "trackers"
"""The folder below the records, with a folder for each tracker that keeps its data there."""
PROJECT = "unlearning-harness"
"""The project or experiment of the runs, unless the tracker's own environment variable names another."""


class Tracker(Protocol):
    """A tracker of one run at a time, which keeps what is local in a folder of its own; errors are the library's."""

    hint: str  # how to look at it

    def __init__(self, root: Path) -> None: ...  # raises ImportError without its library

    def begin(self, run: Begin) -> Held: ...  # opens a run, or goes on with it: what it holds already

    def add(self, rows: Sequence[Values]) -> None: ...

    def end(self, result: End) -> None: ...  # of a finished run

    def close(self, status: str) -> None: ...  # of this attempt: done, degraded, interrupted or failed


def names(text: str) -> list[str]:
    """Trackers named on a command line, `a,b`, each once; raises UnknownName, or UsageError if none is named."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise UsageError(f"no tracker is named; known: {', '.join(CLASSES)}")
    for name in found:
        if name not in CLASSES:
            raise UnknownName("tracker", name, CLASSES)
    return found


def required(name: str) -> None:
    """Raise MissingPrerequisite unless the library of a tracker is installed; it is not imported, which takes seconds."""
    found = find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, which some trackers leave, is not the library
        raise _missing(name, name)


def opened(name: str, root: Path) -> Tracker:
    """A tracker that keeps its data in a folder of `root`; raises MissingPrerequisite if its library is not there whole."""
    try:
        with hushed():
            tracker: Tracker = getattr(import_module(f".{name}", __package__), CLASSES[name])(root / name)
    except ImportError as e:
        raise _missing(name, e.name or name) from None
    return tracker


def _missing(tracker: str, package: str) -> MissingPrerequisite:
    return MissingPrerequisite(
        f"the tracker {tracker} needs the package {package}, which is not installed; "
        f"pip install 'unlearning-harness[{tracker}]'"
    )


@contextmanager
def hushed() -> Iterator[None]:
    """Context manager in which libraries do not write to standard output, which is the command's, or warn of their own."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
