"""Cards of the methods, the task and the scorers of a group: their descriptions and settings.

Descriptions are docstrings of the installed source, read without running it; settings are those of the records.
"""

from __future__ import annotations

import ast
import importlib.util
from typing import Any, NamedTuple

from harness.analysis.groups import Entry, Group, described
from harness.analysis.study import StudyGroup
from harness.core import registry
from harness.core.hashing import canonical
from harness.core.text import plain

from .figures.style import family

Table = dict[str, tuple[str, str]]  # a table of the registry: name to target and description


class Card(NamedTuple):
    """The description of a plug-in: its name, one line, the whole docstring, and facts from the records."""

    name: str
    line: str
    doc: str
    facts: list[tuple[str, str]]


def method_cards(group: Group) -> list[Card]:
    """One card per entry, with the settings of its runs and the number of settings tried for its method."""
    tried: dict[str, int] = {}
    for entry in group.entries:
        method = entry.runs[0].manifest.method
        tried[method] = tried.get(method, 0) + 1
    known = registry.table("method")  # once, since it searches every installed package
    return [_method(known, entry, tried) for entry in group.entries]


def task_card(group: StudyGroup) -> Card:
    """The card of the task: its evaluation, and the rule that selected the checkpoint."""
    identity = group.runs[0].manifest.identity | group.world
    said = [key for key in ("task", "decoding", "evaluation", "budget") if key in identity]
    facts = [(str(key), plain(canonical(identity[key]))) for key in said]
    facts.append(("checkpoint that is measured", plain(identity.get("select", "last"))))
    return _card(registry.table("task"), "task", group.task, facts)


def scorer_cards(group: Group) -> list[Card]:
    """The cards of reward, judge and fluency model, as far as the records name them."""
    identity = described(group.runs[0].manifest, group.runs[0].manifest.identity)
    scorers = identity.get("scorers")
    found = dict(scorers) if isinstance(scorers, dict) else {}
    if isinstance(identity.get("fluency"), dict):
        found["fluency"] = identity["fluency"]
    known = registry.table("scorer")
    return [_scorer(known, role, found[role]) for role in sorted(found)]


def _method(known: Table, entry: Entry, tried: dict[str, int]) -> Card:
    manifest = entry.runs[0].manifest
    name, identity = manifest.method, manifest.identity.get("method")
    settings = identity.get("settings") if isinstance(identity, dict) else None
    facts = [("family", family(name)), ("choices of settings in these records", str(tried[name]))]
    if isinstance(identity, dict):
        facts.append(("version", plain(canonical(identity.get("version")))))
    facts += [(plain(key), plain(canonical(value))) for key, value in sorted((settings or {}).items())]
    return _card(known, "method", name, facts)._replace(name=entry.name)


def _scorer(known: Table, role: str, identity: Any) -> Card:
    name = str(identity.get("name", "unnamed")) if isinstance(identity, dict) else plain(identity)
    facts = [(plain(k), plain(canonical(v))) for k, v in sorted(identity.items())] if isinstance(identity, dict) else []
    card = _card(known, "scorer", name, facts)
    return card._replace(name=f"{plain(role)}: {card.name}")


def _card(known: Table, kind: str, name: str, facts: list[tuple[str, str]]) -> Card:
    if name not in known:
        return Card(plain(name), f"a {kind} that is not installed here, so it has no description", "", facts)
    target, line = known[name]
    return Card(plain(name), plain(line), "\n".join(map(plain, _docstring(target).splitlines())), facts)


def _docstring(target: str) -> str:
    """The docstring of a plug-in's module, read from its source; empty if there is none."""
    module, _, _ = target.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    with open(spec.origin, encoding="utf-8") as source:
        return ast.get_docstring(ast.parse(source.read())) or ""
