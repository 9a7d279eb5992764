"""Detection of stale records: the versions in a record against those of the installed code, without running that code.

Versions of methods, tasks and the evaluation are read from their source, so nothing heavy is imported; the micro world is
compared by the hashes of its files, and its scorers by their identity. Anything else (a method in a user's file, a classifier,
a data set of the hub) is not compared: it is part of the identity, so a change of it gives another run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.errors import MissingPrerequisite, UnknownName
from harness.core.hashing import folder_identity
from harness.core.plugins import constant

from .read import as_table, settings_of
from .schema import SCHEMA_VERSION, Run

LIGHT = (  # classes whose identity needs no model
    "harness.tasks.micro.scorers", "harness.tasks.micro.facts.scorers", "harness.tasks.micro.linear",
)  # fmt: skip


def outdated(runs: Iterable[Run]) -> dict[Path, list[str]]:
    """The reasons why runs are stale, by the run's folder; runs that are up to date are absent."""
    now = Now()
    found = {run.dir: reasons(run, now) for run in runs}
    return {dir: why for dir, why in found.items() if why}


class Now:
    """Versions and identities of the installed code, each looked up once; None if unavailable or removed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}

    def version(self, kind: str, name: str) -> int | None:
        """The version of a method or a task."""
        return self._once((kind, name), lambda: _version(kind, name))

    def evaluation(self) -> int | None:
        return self._once(("evaluation", ""), lambda: constant("harness.measure.evaluator", "EVALUATION_VERSION"))

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
    """The reasons why a run is stale, one line each with its version and that of the code."""
    identity = run.manifest.identity
    found = [_differs("the records' schema", identity.get("schema"), SCHEMA_VERSION)]
    for kind in ("method", "task"):
        made = as_table(identity.get(kind))
        name = str(made.get("name"))
        if "sha256" not in made:  # a plug-in in a file is identified by its hash
            found.append(_differs(f"{kind} {name}", made.get("version"), now.version(kind, name)))
    found.append(_differs("the evaluation", as_table(identity.get("evaluation")).get("version"), now.evaluation()))
    found += [_scorer_differs(scorer, now) for scorer in as_table(identity.get("scorers")).values()]
    return [line for line in [*found, *_world(run, now)] if line]


def _version(kind: str, name: str) -> int | None:
    try:
        module, _, attribute = registry.table(kind)[registry.canonical(kind, name)][0].partition(":")
        found = constant(module, "version", attribute)
    except Exception:  # a plug-in of another package is imported, which may raise anything
        return None
    return found if isinstance(found, int) else None


def _scorer(name: str) -> dict[str, Any] | None:
    try:
        target = registry.table("scorer")[registry.canonical("scorer", name)][0]
        return registry.load("scorer", name)().identity if target.startswith(LIGHT) else None
    except (UnknownName, MissingPrerequisite):
        return None


def _assets() -> Any:
    return resources.files("harness.tasks.micro") / "assets"


def _differs(what: str, made: Any, has: Any) -> str:
    if made is None or has is None or made == has:
        return ""
    newer = type(made) is type(has) is int and made > has
    return f"{what}: version {made}, the code has {has}" + (", which is older: update the package" if newer else "")


def _scorer_differs(made: Any, now: Now) -> str:
    name = str(as_table(made).get("name"))
    has = now.scorer(name)
    if has is None or has == made:
        return ""
    return _differs(f"scorer {name}", made.get("version"), has["version"]) or f"scorer {name}: its words or rules have changed"


def _world(run: Run, now: Now) -> list[str]:
    """The changes of the micro world since a run that used it, one line each."""
    identity = run.manifest.identity
    data, settings = as_table(identity.get("data")), settings_of(run)
    found = []
    if data.get("name") == "micro":
        hashes = {name: now.world()["sha256"].get(name) for name in as_table(data.get("sha256"))}
        changed = ", ".join(name for name, has in hashes.items() if has != data["sha256"][name])
        found = [_differs("the micro world", data.get("version"), now.world()["version"])]
        found = found if found[0] or not changed else [f"the micro world: {changed} changed"]
    used = {
        "model": ("policy", settings.get("model", {}).get("id")),
        "fluency": ("judge", settings.get("task", {}).get("fluency")),
    }
    for key, (folder, chosen) in used.items():
        made = {k: v for k, v in as_table(identity.get(key)).items() if k != "name"}
        if chosen == "micro" and made != now.model(folder):
            found.append(f"the micro world's {folder} model changed")
    return found
