"""What every method must hold wherever it runs: the shape of its class, what it yields, and what it leaves of its trial.

A method is the user's own code, so a fault of it is one line: its name, its file's line, what was found, what was expected.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, is_dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import BenchError, Interrupted, MethodFailed, one_line
from harness.core.plugins import EXPECTED, at_file, kind_of, line_in, source_file
from harness.policy.weights import digest

if TYPE_CHECKING:
    from harness.policy.policy import Policy

    from .trial import Method, Trial


def built(make: Callable[[], Method], name: str) -> Method:
    """A method from its settings; raises MethodFailed where its constructor fails or does not keep them."""
    with blamed(name, make):
        method = make()
    if not hasattr(method, "settings"):
        raise MethodFailed(f"method {name}{at_file(method)} has no settings; expected {EXPECTED['constructor']}")
    return method


def told(method: Method) -> dict[str, Any]:
    """What a trial takes from its method: the learning rate, and whether it is a control that sees the judge."""
    return {"lr": getattr(method.settings, "lr", None), "sees_judge": getattr(method, "sees_judge", False) is True}


def driven(make: Callable[[], Method], trial: Trial, name: str) -> Iterator[dict[str, float]]:
    """What a method yields as it trains, with every rule looked at after each update; raises MethodFailed.

    An error of the suite's own passes as it is, an interruption too.
    """
    method, given = built(make, name), (trial.policy, trial.reference)
    with blamed(name, method):
        steps = method.train(trial)
    if not isinstance(steps, Iterator):
        raise MethodFailed(f"method {name}{at_file(method)}: train returned {kind_of(steps)}; expected {EXPECTED['train']}")
    end = object()
    while True:
        with blamed(name, method):
            row = next(steps, end)
        found = _trial_fault(trial, given) or (None if row is end else _row_fault(row))
        if found is not None:
            rule, what = found
            raise MethodFailed(f"method {name}{at_file(method, _line(steps))} {what}; expected {EXPECTED[rule]}")
        if row is end:
            return
        yield row  # type: ignore[misc]


@contextmanager
def reference_kept(trial: Trial, name: str) -> Iterator[None]:
    """Raise MethodFailed if a method changed the reference, whose weights are those that the policy is measured against."""
    before = digest(trial.reference)
    yield
    if digest(trial.reference) != before:
        raise MethodFailed(f"method {name} changed the weights of trial.reference; expected {EXPECTED['reference']}")


def _row_fault(row: object) -> tuple[str, str] | None:
    if not isinstance(row, dict):
        return "yield", f"yields {kind_of(row)}"
    for key, value in row.items():
        if not isinstance(key, str):
            return "yield", f"yields a dict with the name {key!r:.40}"
        if not isinstance(value, numbers.Real):
            return "yield", f"yields {kind_of(value)} as {key!r:.40}"
    return None


def _trial_fault(trial: Trial, given: tuple[Policy, Policy]) -> tuple[str, str] | None:
    for name, object_ in zip(("policy", "reference"), given, strict=True):
        if getattr(trial, name) is not object_:
            return "policy", f"replaced trial.{name} by {kind_of(getattr(trial, name))}"
    if not callable(getattr(trial.deployed, "sample", None)) and not hasattr(trial.deployed, "logits"):
        return "deployed", f"deployed {kind_of(trial.deployed)}"
    counts = astuple(trial.cost) if is_dataclass(trial.cost) else (None,)
    wrong = [x for x in counts if not isinstance(x, numbers.Real) or not math.isfinite(x)]
    return ("cost", f"changed trial.cost: it holds {wrong[0]!r:.40}") if wrong else None


@contextmanager
def blamed(name: str, method: object) -> Iterator[None]:
    """Whatever a method raises inside is a MethodFailed that says where; errors of the suite and Ctrl-C pass."""
    try:
        yield
    except MethodFailed as e:  # found by the trial, which does not know whose it is
        raise MethodFailed(f"method {name}{at_file(method, _raised(e, method))}: {e}") from e
    except (BenchError, Interrupted, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as e:  # SystemExit too: a method does not end the program
        what = f"{type(e).__name__}: {one_line(e)}"
        raise MethodFailed(f"method {name}{at_file(method, _raised(e, method))} raised {what} (-v shows the trace)") from e


def _raised(error: BaseException, method: object) -> int | None:
    file = source_file(method)
    return None if file is None else line_in(error, file)


def _line(steps: object) -> int | None:
    """Where a generator stands."""
    frame = getattr(steps, "gi_frame", None)
    return None if frame is None else frame.f_lineno
