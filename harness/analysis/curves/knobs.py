"""The curves of a group of runs: those of one method that differ in its knob and the seed alone, from weak to strong."""

from __future__ import annotations

import ast
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.core import registry
from harness.core.hashing import canonical
from harness.core.text import plain
from harness.records.schema import Manifest, Run

from ..groups import Entry, Group, apart, counted, measure

FEWEST = 3
"""The least number of knob values of a curve: two settings are a comparison."""


@dataclass(frozen=True, eq=False)
class Point:
    """The runs of a method at one value of its knob; the value is None for a method without a knob."""

    value: Any
    entry: Entry


@dataclass(frozen=True, eq=False)
class Curve:
    """A method with one choice of all settings but its knob, at the values of the knob from weak to strong."""

    name: str
    method: str
    knob: str | None
    points: list[Point]

    @property
    def runs(self) -> list[Run]:
        return [run for point in self.points for run in point.entry.runs]

    @property
    def middle(self) -> Entry:
        """The runs at the value with the most seeds, of several such at the middle one."""
        most = max(len(counted(point.entry)) for point in self.points)
        places = [i for i, point in enumerate(self.points) if len(counted(point.entry)) == most]
        return self.points[min(places, key=lambda i: abs(i - (len(self.points) - 1) / 2))].entry


def curves(group: Group) -> list[Curve]:
    """The curves and single points of a group, by name; nothing if no method has FEWEST values of its knob."""
    found: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in group.entries:
        run = entry.runs[0]
        found[run.manifest.method][canonical(_without_knob(run.manifest))].append(entry)
    made = [
        curve for method in sorted(found) for curve in _curves(method, [found[method][key] for key in sorted(found[method])])
    ]
    return made if any(len(curve.points) >= FEWEST for curve in made) else []


def knob_of(manifest: Manifest) -> str | None:
    """The setting that is the knob of a run's method; of an older record that of the method's class, read from its source."""
    if "knob" in manifest.model_fields_set:
        return manifest.knob
    target = registry.table("method").get(manifest.method, ("", ""))[0]
    return _in_source(*target.split(":", 1)) if ":" in target else None


@cache
def _in_source(module: str, of: str) -> str | None:
    """The first argument of `knob = Knob(...)` in a class, without an import of what the class needs."""
    try:
        spec = importlib.util.find_spec(module)
        body = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8")).body
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    nodes = [node for kind in body if isinstance(kind, ast.ClassDef) and kind.name == of for node in kind.body]
    calls = [node.value for node in nodes if isinstance(node, ast.Assign) and _names(node) == ["knob"]]
    names = [c.args[0].value for c in calls if isinstance(c, ast.Call) and c.args and isinstance(c.args[0], ast.Constant)]
    return next((name for name in names if isinstance(name, str)), None)


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _settings(manifest: Manifest) -> dict[str, Any]:
    method = manifest.identity.get("method")
    settings = method.get("settings") if isinstance(method, dict) else None
    return settings if isinstance(settings, dict) else {}


def _without_knob(manifest: Manifest) -> dict[str, Any]:
    """The identity of a run without its seed and the value of its knob."""
    same = {key: value for key, value in manifest.identity.items() if key != "seed"}
    knob, settings = knob_of(manifest), _settings(manifest)
    if knob is None or knob not in settings:
        return same
    return same | {"method": manifest.identity["method"] | {"settings": {k: v for k, v in settings.items() if k != knob}}}


def _curves(method: str, variants: list[list[Entry]]) -> list[Curve]:
    words = apart([[_knobless(entries[0].runs[0])] for entries in variants])
    names = [method] if len(variants) == 1 else [f"{method} ({i}: {said})" for i, said in enumerate(words, 1)]
    return [_curve(plain(name), method, entries) for name, entries in zip(names, variants, strict=True)]


def _knobless(run: Run) -> Run:
    return run._replace(manifest=run.manifest.model_copy(update={"identity": _without_knob(run.manifest)}))


def _curve(name: str, method: str, entries: list[Entry]) -> Curve:
    knob = knob_of(entries[0].runs[0].manifest)
    points = [Point(_settings(e.runs[0].manifest).get(knob) if knob else None, e) for e in entries]
    return Curve(name, method, knob, _weak_to_strong(points))


def _weak_to_strong(points: Sequence[Point]) -> list[Point]:
    """Points by the value of the knob, in the direction in which the KL grows; by KL where values are no numbers."""
    drift = {id(point): _kl(point) for point in points}
    if not all(isinstance(point.value, int | float) for point in points):
        return sorted(points, key=lambda point: (drift[id(point)], canonical(point.value)))
    ordered = sorted(points, key=lambda point: point.value)
    middle = (len(ordered) - 1) / 2
    rises = sum((i - middle) * drift[id(point)] for i, point in enumerate(ordered))
    return ordered if rises >= 0 else ordered[::-1]


def _kl(point: Point) -> float:
    known = [found.value for run in point.entry.runs if (found := measure(run, "kl")).value is not None]
    return fmean(v for v in known if v is not None) if known else 0.0
