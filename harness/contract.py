"""What every method must hold wherever it runs: the shape of its class, what it yields, and what it leaves of its trial.

A method is the user's own code, so a fault of it is one line: its name, its file's line, what was found, what was expected.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadData, BenchError, Interrupted, MethodFailed, one_line
from .types import Settings

if TYPE_CHECKING:
    from .trial import Trial

EXPECTED = {
    "settings": "a class Settings below harness.types.Settings",
    "version": "a version that is a whole number from 1",
    "constructor": "a constructor that takes the settings alone, and keeps them as self.settings",
    "train": "a generator train(self, trial)",
    "yield": "a dict of numbers by name at each yield",
    "policy": "trial.policy and trial.reference to stay the objects that they are: train the weights of the one",
    "deployed": "a policy, or an object with a method sample, in trial.deploy",
    "cost": "trial.cost to be left to the harness: finite numbers",
}


def check_class(kind: Any, name: str) -> Any:
    """The class of a method as it is; raises BadData where it has not the shape of one."""
    found = _class_fault(kind)
    if found is not None:
        rule, what = found
        raise BadData(f"method {name}{_at(kind, _first_line(kind))} {what}; expected {EXPECTED[rule]}")
    return kind


def _class_fault(kind: Any) -> tuple[str, str] | None:
    settings, version = getattr(kind, "Settings", None), getattr(kind, "version", None)
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        return "settings", "has no Settings" if settings is None else f"has as Settings {_kind(settings)}"
    if type(version) is not int or version < 1:
        return "version", "has no version" if version is None else f"has the version {version!r:.40}"
    if not _takes(kind, None):
        return "constructor", "cannot be made from its settings"
    if not _takes(getattr(kind, "train", None), None, None):
        return "train", "has no train that takes a trial"
    return None


def _takes(what: Any, *arguments: Any) -> bool:
    try:
        inspect.signature(what).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def built(make: Callable[[], Any], name: str) -> Any:
    """A method from its settings; raises MethodFailed where its constructor fails or does not keep them."""
    with blamed(name, make):
        method = make()
    if not hasattr(method, "settings"):
        raise MethodFailed(f"method {name}{_at(method)} has no settings; expected {EXPECTED['constructor']}")
    return method


def driven(make: Callable[[], Any], trial: Trial, name: str) -> Iterator[dict[str, float]]:
    """What a method yields as it trains, with every rule looked at after each update; raises MethodFailed.

    An error of the suite's own passes as it is, an interruption too.
    """
    method, given = built(make, name), (trial.policy, trial.reference)
    with blamed(name, method):
        steps = method.train(trial)
    if not isinstance(steps, Iterator):
        raise MethodFailed(f"method {name}{_at(method)}: train returned {_kind(steps)}; expected {EXPECTED['train']}")
    end = object()
    while True:
        with blamed(name, method):
            row = next(steps, end)
        found = _trial_fault(trial, given) or (None if row is end else _row_fault(row))
        if found is not None:
            rule, what = found
            raise MethodFailed(f"method {name}{_at(method, _line(steps))} {what}; expected {EXPECTED[rule]}")
        if row is end:
            return
        yield row  # type: ignore[misc]


def _row_fault(row: Any) -> tuple[str, str] | None:
    if not isinstance(row, dict):
        return "yield", f"yields {_kind(row)}"
    for key, value in row.items():
        if not isinstance(key, str):
            return "yield", f"yields a dict with the name {key!r:.40}"
        if not isinstance(value, numbers.Real):
            return "yield", f"yields {_kind(value)} as {key!r:.40}"
    return None


def _trial_fault(trial: Trial, given: tuple[Any, Any]) -> tuple[str, str] | None:
    for name, object_ in zip(("policy", "reference"), given):
        if getattr(trial, name) is not object_:
            return "policy", f"replaced trial.{name} by {_kind(getattr(trial, name))}"
    if not callable(getattr(trial.deployed, "sample", None)) and not hasattr(trial.deployed, "logits"):
        return "deployed", f"deployed {_kind(trial.deployed)}"
    counts = astuple(trial.cost) if is_dataclass(trial.cost) else (None,)
    wrong = [x for x in counts if not isinstance(x, numbers.Real) or not math.isfinite(x)]
    return ("cost", f"changed trial.cost: it holds {wrong[0]!r:.40}") if wrong else None


@contextmanager
def blamed(name: str, method: Any) -> Iterator[None]:
    """Whatever a method raises inside is a MethodFailed that says where; errors of the suite and Ctrl-C pass."""
    try:
        yield
    except MethodFailed as e:  # found by the trial, which does not know whose it is
        raise MethodFailed(f"method {name}{_at(method, _raised(e, method))}: {e}") from e
    except (BenchError, Interrupted, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as e:  # SystemExit too: a method does not end the program
        what = f"{type(e).__name__}: {one_line(e)}"
        raise MethodFailed(f"method {name}{_at(method, _raised(e, method))} raised {what} (-v shows the trace)") from e


def line_in(error: BaseException, file: str) -> int | None:
    """The line of a file at which an error was raised or, where that was elsewhere, from which it was called."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _raised(error: BaseException, method: Any) -> int | None:
    file = _file(method)
    return None if file is None else line_in(error, file)


def _line(steps: Any) -> int | None:
    """Where a generator stands."""
    frame = getattr(steps, "gi_frame", None)
    return None if frame is None else frame.f_lineno


def _at(method: Any, line: int | None = None) -> str:
    """` (mine.py:12)`, of the line of `train` where no other is known; nothing where there is no file."""
    file = _file(method)
    line = _first_line(getattr(method, "train", None)) if line is None else line
    return "" if file is None else f" ({shown_path(file)}{'' if line is None else f':{line}'})"


def shown_path(file: str) -> str:
    """A path as short as can be: below the working folder it is said from there."""
    try:
        return str(Path(file).relative_to(os.getcwd()))
    except (ValueError, OSError):
        return file


def _file(method: Any) -> str | None:
    kind = getattr(method, "func", method)  # a class with its settings, not yet made
    kind = kind if isinstance(kind, type) else type(kind)
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


def _first_line(what: Any) -> int | None:
    try:
        return inspect.getsourcelines(what)[1]
    except (TypeError, OSError):
        return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__!r:.60}"
