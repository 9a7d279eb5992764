"""Names to things. Tables hold "module:attribute" strings, so that listing them imports nothing heavy."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from . import plugins
from .errors import BadData, BenchError, Interrupted, MethodFailed, MissingPrerequisite, UnknownName, one_line

PACKAGES = {"method": "harness.methods", "task": "harness.tasks", "scorer": "harness.tasks", "dataset": "harness.tasks"}
HINTS = {kind: f"harness list {kind}s" for kind in PACKAGES}


def entry_points(group: str) -> Iterable[metadata.EntryPoint]:
    """What installed packages offer under a group's name."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """The group's entry points of all packages on the path: a file a package is read, so once a path."""
    return tuple(metadata.entry_points(group=group))


def table(kind: str) -> dict[str, tuple[str, str]]:
    """{name: ("module:attribute", one line)} of methods, tasks, scorers or data sets: ours, then those of other packages."""
    ours = dict(getattr(importlib.import_module(PACKAGES[kind]), f"{kind.upper()}S"))
    for point in entry_points(group=f"harness.{kind}s"):
        if point.name in ours:
            raise BadData(f"{kind} {point.name!r} of {point.value} has a name that is already taken by {ours[point.name][0]}")
        ours[point.name] = (point.value, f"from {point.dist.name if point.dist else point.value}")
    return ours


def canonical(kind: str, name: str) -> str:
    """The name as its table spells it: best-of-n and best_of_n are one; raises UnknownName."""
    names = table(kind)
    for spelled in (name, name.replace("-", "_"), name.replace("_", "-")):
        if spelled in names:
            return spelled
    raise UnknownName(kind, name, names, HINTS[kind])


def load(kind: str, name: str) -> Any:
    """The class behind a name, or behind a path: `./my_method.py` holds one class with a `train`.

    Raises UnknownName, MissingPrerequisite where it cannot be imported, BadData where it is not what it should be.
    """
    if kind == "method" and name.endswith(".py"):
        return plugins.check_class(_from_file(Path(name)), Path(name).stem)
    target = table(kind)[canonical(kind, name)][0]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except BenchError:
        raise
    except Exception as e:  # a package of somebody else may raise anything
        raise MissingPrerequisite(f"{kind} {name!r} at {target} cannot be imported: {type(e).__name__}: {one_line(e)}") from e
    return plugins.check_class(found, name) if kind == "method" else found


def _from_file(path: Path) -> Any:
    if not os.path.isfile(path):
        raise MissingPrerequisite(f"no method file {path}")
    name = f"method_file.{path.stem}"
    module = _executed(path, name)
    found = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name and hasattr(c, "train")]
    found = list(dict.fromkeys(found))  # one class may have two names
    if len(found) != 1:
        raise BadData(f"method file {path} should hold one class with a train method; found {len(found)}")
    return found[0]


def _executed(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pydantic looks up the types of settings, and `show` the docstring
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        del sys.modules[name]
        if isinstance(e, (BenchError, Interrupted, KeyboardInterrupt)):
            raise
        line = plugins.line_in(e, str(spec.origin))
        where = f"{path}" if line is None else f"{path}:{line}"
        kind = MethodFailed if isinstance(e, SystemExit) else BadData
        raise kind(f"method file {where} cannot be imported: {type(e).__name__}: {one_line(e)}") from e
    return module
