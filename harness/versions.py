"""What a record was made with, against what the code has now: the reasons why it is stale, without running any of that code.

Versions of methods, tasks and the evaluation are read from their source, so nothing heavy is imported; the micro world is
compared by the hashes of its files, and its scorers by their identity. What cannot be seen so (a method in a file of one's
own, a classifier, a data set of the hub) is not compared: it is part of a run's identity, and with another it is another run.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from . import registry
from .errors import MissingPrerequisite, UnknownName
from .loading import folder_identity
from .records import Run
from .store import SCHEMA_VERSION

LIGHT = "tasks.micro.scorers"  # whose classes say their identity without loading a model


def outdated(runs: Iterable[Run]) -> dict[Path, list[str]]:
    """What of each run is not as the code has it now, by the run's folder; a run that is up to date is not in it."""
    now = Now()
    found = {run.dir: reasons(run, now) for run in runs}
    return {dir: why for dir, why in found.items() if why}


class Now:
    """What the code has: each thing looked up once, None where it cannot be seen or is not there any more."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}

    def version(self, kind: str, name: str) -> int | None:
        """Of a method or a task."""
        return self._once((kind, name), lambda: _version(kind, name))

    def evaluation(self) -> int | None:
        return self._once(("evaluation", ""), lambda: constant("harness.evaluation", "EVALUATION_VERSION"))

    def scorer(self, name: str) -> dict[str, Any] | None:
        return self._once(("scorer", name), lambda: _scorer(name))

    def world(self) -> dict[str, Any]:
        """The micro world's version and the hashes of its files."""
        return self._once(("world", ""), lambda: json.loads((_assets() / "world.json").read_text(encoding="utf-8")))

    def model(self, name: str) -> dict[str, str]:
        """Hashes of the micro world's policy or judge, as a run records them."""
        return self._once(("model", name), lambda: folder_identity(_assets() / name))

    def _once(self, key: tuple[str, str], look: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = look()
        return self._known[key]


def reasons(run: Run, now: Now) -> list[str]:
    """Why a run is stale, a line each: its version, and the one that the code has."""
    identity = run.manifest["identity"]
    found = [_differs("the records' schema", identity.get("schema"), SCHEMA_VERSION)]
    for kind in ("method", "task"):
        made = _dict(identity.get(kind))
        name = str(made.get("name"))
        if "sha256" not in made:  # a method in a file of one's own is known by its hash
            found.append(_differs(f"{kind} {name}", made.get("version"), now.version(kind, name)))
    found.append(_differs("the evaluation", _dict(identity.get("evaluation")).get("version"), now.evaluation()))
    found += [_scorer_differs(scorer, now) for scorer in _dict(identity.get("scorers")).values()]
    return [line for line in [*found, *_world(run, now)] if line]


def constant(module: str, name: str, of: str | None = None) -> Any:
    """The literal that a module, or a class in it or its base there, gives to a name; None where none can be read."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    return _literal(body, name) if of is None else _of_class(body, of, name)


def _of_class(body: list[ast.stmt], of: str, name: str) -> Any:
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    node = classes.get(of)
    if node is None:
        return None
    own = _literal(node.body, name)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != of]
    return own if own is not None else next((v for b in bases if (v := _of_class(body, b, name)) is not None), None)


def _literal(body: list[ast.stmt], name: str) -> Any:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = getattr(node, "value", None)
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(value, ast.Constant):
            return value.value
    return None


def _version(kind: str, name: str) -> int | None:
    try:
        module, _, attribute = registry.table(kind)[registry.canonical(kind, name)][0].partition(":")
        found = constant(module, "version", attribute)
    except Exception:  # looking for a plugin of another package imports that package, which may raise anything
        return None
    return found if isinstance(found, int) else None


def _scorer(name: str) -> dict[str, Any] | None:
    try:
        target = registry.table("scorer")[registry.canonical("scorer", name)][0]
        return registry.load("scorer", name)().identity if target.startswith(LIGHT) else None
    except (UnknownName, MissingPrerequisite):
        return None


def _assets() -> Any:
    return resources.files("tasks.micro") / "assets"


def _differs(what: str, made: Any, has: Any) -> str:
    if made is None or has is None or made == has:
        return ""
    newer = type(made) is type(has) is int and made > has
    return f"{what}: version {made}, the code has {has}" + (", which is older: update the package" if newer else "")


def _scorer_differs(made: Any, now: Now) -> str:
    name = str(_dict(made).get("name"))
    has = now.scorer(name)
    if has is None or has == made:
        return ""
    return _differs(f"scorer {name}", made.get("version"), has["version"]) or f"scorer {name}: its words or rules have changed"


def _world(run: Run, now: Now) -> list[str]:
    """What of the micro world has changed since, for a run that used it."""
    identity = run.manifest["identity"]
    data, settings = _dict(identity.get("data")), settings_of(run)
    found = []
    if data.get("name") == "micro":
        hashes = {name: now.world()["sha256"].get(name) for name in _dict(data.get("sha256"))}
        changed = ", ".join(name for name, has in hashes.items() if has != data["sha256"][name])
        found = [_differs("the micro world", data.get("version"), now.world()["version"])]
        found = found if found[0] or not changed else [f"the micro world: {changed} changed"]
    used = {
        "model": ("policy", settings.get("model", {}).get("id")),
        "fluency": ("judge", settings.get("task", {}).get("fluency")),
    }
    for key, (folder, chosen) in used.items():
        made = {k: v for k, v in _dict(identity.get(key)).items() if k != "name"}
        if chosen == "micro" and made != now.model(folder):
            found.append(f"the micro world's {folder} model changed")
    return found


def settings_of(run: Run) -> dict[str, Any]:
    """What the run was told; empty where its record does not say."""
    return _dict(run.manifest.get("settings") or (run.summary or {}).get("settings"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
