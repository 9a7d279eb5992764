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
from typing import Any, NamedTuple

from . import plugins
from .errors import BadData, BadSetting, BenchError, Interrupted, MethodFailed, MissingPrerequisite, UnknownName, one_line

PACKAGES = {"method": "harness.methods", "task": "harness.tasks", "scorer": "harness.tasks", "dataset": "harness.tasks"}
HINTS = {kind: f"harness list {kind}s" for kind in PACKAGES}
IN_FILES = {"method": "train", "task": "train_prompts", "scorer": "score"}
"""The kinds of plug-in that may be a file, and the method by which their class is found in it."""


class Offer(NamedTuple):
    """A plug-in of another package: its name, where its class is, whose it is, and why the name cannot be used."""

    name: str
    target: str
    package: str
    fault: str = ""


def entry_points(group: str) -> Iterable[metadata.EntryPoint]:
    """What installed packages offer under a group's name."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """The group's entry points of all packages on the path: a file a package is read, so once a path."""
    return tuple(metadata.entry_points(group=group))


def offers(kind: str) -> list[Offer]:
    """What other packages offer under `harness.KINDs`; nothing is imported. Two offers of one name are both at fault."""
    points = [(p.name, p.value, p.dist.name if p.dist else p.value) for p in entry_points(group=f"harness.{kind}s")]
    points = list(dict.fromkeys(points))  # a package may be found twice, on two paths
    ours = {_key(name): target for name, (target, _) in _ours(kind).items()}
    found = []
    for name, target, package in points:
        same = [t for n, t, p in points if _key(n) == _key(name) and (n, t, p) != (name, target, package)]
        taken = ours.get(_key(name)) or next(iter(same), None)
        fault = f"the name is already taken by {taken}" if taken else ""
        if name.endswith((".py", ".toml")) or os.sep in name:
            fault = "the name is that of a file"
        found.append(Offer(name, target, package, fault))
    return found


def _key(name: str) -> str:
    return name.replace("-", "_")


def _ours(kind: str) -> dict[str, tuple[str, str]]:
    return dict(getattr(importlib.import_module(PACKAGES[kind]), f"{kind.upper()}S"))


def table(kind: str) -> dict[str, tuple[str, str]]:
    """{name: ("module:attribute", one line)} of methods, tasks, scorers or data sets: ours, then those of other packages.

    An offer whose name cannot be used is left out; `broken` lists it.
    """
    return _ours(kind) | {o.name: (o.target, f"from {o.package}") for o in offers(kind) if not o.fault}


def broken(kind: str) -> list[Offer]:
    """The plug-ins of other packages that cannot be used, each with its error as its fault; to know, they are imported."""
    found = []
    for offer in offers(kind):
        try:
            if offer.fault:
                raise _at_fault(kind, offer)
            load(kind, offer.name)
        except BenchError as e:
            found.append(offer._replace(fault=str(e)))
    return found


def _at_fault(kind: str, offer: Offer) -> BadData:
    return BadData(f"{kind} {offer.name!r} of {offer.package} ({offer.target}) cannot be used: {offer.fault}")


def attribute(kind: str, name: str, attribute: str) -> Any:
    """A literal that the class behind a name has, read from its source without importing it; None where there is none."""
    module, _, class_name = table(kind).get(name, ("", ""))[0].partition(":")
    return _literal(module, class_name, attribute, tuple(sys.path)) if module else None


@cache
def _literal(module: str, class_name: str, attribute: str, path: tuple[str, ...]) -> Any:
    try:
        return plugins.constant(module, attribute, class_name)
    except Exception:  # to find a module of another package, that package is imported, which may raise anything
        return None


def canonical(kind: str, name: str) -> str:
    """The name as its table spells it: best-of-n and best_of_n are one; raises UnknownName, BadData on one that clashes."""
    names = table(kind)
    for spelled in (name, name.replace("-", "_"), name.replace("_", "-")):
        if spelled in names:
            return spelled
    for offer in offers(kind):
        if offer.name == name:
            raise _at_fault(kind, offer)
    raise UnknownName(kind, name, names, HINTS[kind])


def is_file(kind: str, name: str) -> bool:
    """Whether a name on the command line stands for a file that holds a plug-in of this kind."""
    return kind in IN_FILES and name.endswith(".py")


def given(kind: str, name: str) -> str:
    """What a command line names, as `load` takes it: a name as its table spells it, a path as it is.

    For names of the user's only: what a record names is looked up by `canonical`, which knows no paths. Raises UnknownName,
    MissingPrerequisite where there is no such file, BadSetting where its name is that of a plug-in of the same kind.
    """
    if not is_file(kind, name):
        return canonical(kind, name)
    if not os.path.isfile(name):
        raise MissingPrerequisite(f"no {kind} file {name}")
    if kind != "method" and _key(Path(name).stem) in map(_key, table(kind)):
        raise BadSetting(f"{kind} file {name} has the name of an installed {kind}, and records go by it; rename the file")
    return name


def load(kind: str, name: str) -> Any:
    """The class behind a name, or behind a path: `./my_method.py` holds one class with a `train`.

    Raises UnknownName, MissingPrerequisite where it cannot be imported, BadData where it is not what it should be.
    """
    if is_file(kind, name):
        return plugins.CHECKS[kind](_from_file(kind, Path(name)), Path(name).stem)
    target = table(kind)[canonical(kind, name)][0]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (BenchError, Interrupted, KeyboardInterrupt):
        raise
    except BaseException as e:  # a package of somebody else may raise anything, SystemExit too
        raise MissingPrerequisite(f"{kind} {name!r} at {target} cannot be imported: {type(e).__name__}: {one_line(e)}") from e
    return plugins.CHECKS[kind](found, name)


def _from_file(kind: str, path: Path) -> Any:
    if not os.path.isfile(path):
        raise MissingPrerequisite(f"no {kind} file {path}")
    name, has = f"{kind}_file.{path.stem}", IN_FILES[kind]
    module = _executed(kind, path, name)
    found = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name and hasattr(c, has)]
    found = list(dict.fromkeys(found))  # one class may have two names
    if len(found) != 1:
        raise BadData(f"{kind} file {path} should hold one class with a {has} method; found {len(found)}")
    if kind == "task" and not hasattr(found[0], "name"):
        setattr(found[0], "name", path.stem)  # noqa: B010  # which a class has by its file
    return found[0]


def _executed(kind: str, path: Path, name: str) -> ModuleType:
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
        error = MethodFailed if kind == "method" and isinstance(e, SystemExit) else BadData
        raise error(f"{kind} file {where} cannot be imported: {type(e).__name__}: {one_line(e)}") from e
    return module
