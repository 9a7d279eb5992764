"""What a command line names, by name or by file: a preset, a task, scorers. What a record names never comes here.

In a record a file is known by its stem and by the sha256 of its bytes, wherever it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.errors import BadSetting
from harness.core.settings import RunSettings, assembled, beside, key_of, merged, preset_tables, stem_of
from harness.records.write import file_name


def settings(
    preset: str, method: str, task: str, overrides: Iterable[str] | Mapping[str, Any] = (), **flags: Any
) -> RunSettings:
    """The settings of a run, where preset and task may be files; raises what `resolve` raises, and of a file what is wrong."""
    tables = preset_tables(preset)
    return assembled(tables, preset, method, task_table(tables, preset, task), overrides, flags)


def task_table(tables: Mapping[str, Any], preset: str, task: str) -> dict[str, Any]:
    """The table of a task in a preset: its own there; of a task that the preset may not know, over what its class says.

    Raises BadSetting where neither says anything.
    """
    own = tables["tasks"].get(key_of(task))
    if own is not None and not registry.is_file("task", task):
        return dict(own)
    kind = registry.load("task", task)
    like, told = getattr(kind, "like", None), getattr(kind, "settings", None)
    if like is None and told is None and own is None:
        raise BadSetting(_no_table(tables, preset, task))
    if like is not None and like not in tables["tasks"]:
        raise BadSetting(f"task {task} is like {like!r}, and preset {preset!r} has {', '.join(sorted(tables['tasks']))}")
    said = beside(Path(task).parent, told or {}) if registry.is_file("task", task) else told or {}
    return merged(merged(tables["tasks"].get(like, {}), said), own or {})


def _no_table(tables: Mapping[str, Any], preset: str, task: str) -> str:
    return (
        f"preset {preset!r} has no settings for task {task!r}; it has {', '.join(sorted(tables['tasks']))}; a task of your own "
        f'says which to take: like = "toxicity", or settings = {{"reward": ..., "judge": ...}} in its class, or '
        f'[tasks."{key_of(task)}"] in a preset file'
    )


def recorded(settings: RunSettings) -> RunSettings:
    """The settings as a record holds them: files by their stems, so that a record does not depend on where they lay."""
    t, scorers = settings.task, settings.scorers
    kinds = {name: o | ({"kind": stem_of(str(o["kind"]))} if "kind" in o else {}) for name, o in scorers.items()}
    task = t.model_copy(update={"reward": stem_of(t.reward), "judge": stem_of(t.judge)})
    return settings.model_copy(update={"preset": file_name(stem_of(settings.preset)), "task": task, "scorers": kinds})


def known_as(kind: str, name: str) -> str:
    """The name of a method or a task in records."""
    return file_name(stem_of(name)) if registry.is_file(kind, name) else registry.canonical(kind, name)


def file_identity(kind: str, name: str) -> dict[str, Any]:
    """What an identity says of a plug-in that is a file: its stem and its hash; nothing where it is none."""
    if not registry.is_file(kind, name):
        return {}
    return {"name": file_name(stem_of(name)), "sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest()}
