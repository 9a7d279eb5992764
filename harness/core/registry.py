"""The registry of plug-ins: names of methods, tasks, scorers and data sets, and the classes behind them.

Tables hold "module:attribute" strings, so that listing them imports nothing heavy.
"""

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

PACKAGES = {"method": "harness.methods"} | dict.fromkeys(("task", "scorer", "dataset", "probe"), "harness.tasks")
HINTS = {kind: f"harness list {kind}s" for kind in PACKAGES}
IN_FILES = {"method": "train", "task": "train_prompts", "scorer": "score", "probe": "run"}
"""The kinds of plug-in that may be given as a file, and the method that identifies the plug-in's class in it."""
SCAFFOLDED = ("method", "task", "scorer")
"""The kinds of plug-in that `harness new` writes and `harness check` checks."""

TRAINED = "scorer.json"
"""The file that describes a trained scorer in its folder."""


class Offer(NamedTuple):
    """A plug-in of another package: its name, the target "module:attribute", the package, and a fault of the name, if any."""

    name: str
    target: str
    package: str
    fault: str = ""


def entry_points(group: str) -> Iterable[metadata.EntryPoint]:
    """The entry points of a group in all installed packages."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, cached per path, because a file of each package must be read."""
    return tuple(metadata.entry_points(group=group))


def offers(kind: str) -> list[Offer]:
    """The plug-ins of other packages under the group `harness.KINDs`, not imported; two with the same name are both faulty."""
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
    """The table {name: ("module:attribute", one line)} of a kind: built-in plug-ins, then those of other packages.

    Plug-ins whose names cannot be used are left out; `broken` lists them.
    """
    return _ours(kind) | {o.name: (o.target, f"from {o.package}") for o in offers(kind) if not o.fault}


def broken(kind: str) -> list[Offer]:
    """The plug-ins of other packages that cannot be used, each with its error as its fault; imports all of them."""
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
    """A literal or Knob of the class behind a name, read from its source without importing it; None if there is none."""
    module, _, class_name = table(kind).get(name, ("", ""))[0].partition(":")
    return _literal(module, class_name, attribute, tuple(sys.path)) if module else None


@cache
def _literal(module: str, class_name: str, attribute: str, path: tuple[str, ...]) -> Any:
    try:
        return plugins.constant(module, attribute, class_name)
    except Exception:  # finding a module of another package imports the package, which may raise anything
        return None


def canonical(kind: str, name: str) -> str:
    """The registered spelling of a name (best-of-n for best_of_n); raises UnknownName, or BadData if two plug-ins share it."""
    names = table(kind)
    for spelled in (name, name.replace("-", "_"), name.replace("_", "-")):
        if spelled in names:
            return spelled
    for offer in offers(kind):
        if offer.name == name:
            raise _at_fault(kind, offer)
    raise UnknownName(kind, name, names, HINTS[kind])


def is_file(kind: str, name: str) -> bool:
    """True if a name on the command line is that of a file with a plug-in of this kind."""
    return kind in IN_FILES and name.endswith(".py")


def is_folder(kind: str, name: str) -> bool:
    """True if a name on the command line is that of a folder with a trained scorer."""
    if kind != "scorer" or name.endswith(".py"):
        return False
    return os.sep in name or (os.path.isdir(name) and _key(name) not in map(_key, table(kind)))


def _trained(name: str) -> str:
    """The folder of a trained scorer unchanged; raises MissingPrerequisite, BadData if it holds none."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise MissingPrerequisite(f"no scorer folder {name}; expected one that harness train-scorer wrote")
    if not (folder / TRAINED).is_file():
        raise BadData(
            f"no {TRAINED} in {name}; expected a folder that harness train-scorer wrote (any other sequence classifier: "
            f"scorers.NAME.kind=classifier, scorers.NAME.model={name})"
        )
    return name


def given(kind: str, name: str) -> str:
    """The argument for `load` from a name on the command line: its registered spelling, or a path unchanged.

    Use it for names from the user only; names in records go through `canonical`, which accepts no paths. Raises UnknownName,
    MissingPrerequisite if there is no such file or folder, BadData if a folder holds no trained scorer, BadSetting if the file
    has the name of a plug-in of the same kind.
    """
    if is_folder(kind, name):
        return _trained(name)
    if not is_file(kind, name):
        return canonical(kind, name)
    if not os.path.isfile(name):
        raise MissingPrerequisite(f"no {kind} file {name}")
    if kind != "method" and _key(Path(name).stem) in map(_key, table(kind)):
        raise BadSetting(f"{kind} file {name} has the name of an installed {kind}, which records use; rename the file")
    return name


def load(kind: str, name: str) -> Any:
    """Load the class behind a name or in a file: `./my_method.py` must hold one class with a method `train`.

    The class of a folder with a trained scorer is that of all of them, which takes the folder as an option.

    Raises UnknownName, MissingPrerequisite if it cannot be imported, BadData if it violates the interface of its kind.
    """
    name = "trained" if is_folder(kind, name) else name
    if is_file(kind, name):
        return plugins.CHECKS[kind](_from_file(kind, Path(name)), Path(name).stem)
    target = table(kind)[canonical(kind, name)][0]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (BenchError, Interrupted, KeyboardInterrupt):
        raise
    except BaseException as e:  # another package may raise anything, even SystemExit
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
        raise BadData(f"{kind} file {path}: expected one class with a method {has}; found {len(found)}")
    if kind == "task" and not hasattr(found[0], "name"):
        setattr(found[0], "name", path.stem)  # noqa: B010  # the name defaults to that of the file
    return found[0]


def _executed(kind: str, path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up the types of settings here, and `show` the docstring
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
