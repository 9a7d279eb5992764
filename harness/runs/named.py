"""Presets, tasks and scorers that a command line gives by name or by file; names from records are never resolved here.

A record identifies a file by its stem and the sha256 of its bytes, not by its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.errors import BadSetting
from harness.core.settings import RunSettings, assembled, beside, key_of, merged, method_table, preset_tables, stem_of
from harness.records.write import file_name


def settings(
    preset: str, method: str, task: str, overrides: Iterable[str] | Mapping[str, Any] = (), **flags: Any
) -> RunSettings:
    """The settings of a run whose preset and task may be files; raises the errors of `resolve` and of loading the files."""
    tables = preset_tables(preset, method, task)
    return assembled(tables, preset, method, task_table(tables, preset, task), overrides, flags)


def task_table(tables: Mapping[str, Any], preset: str, task: str) -> dict[str, Any]:
    """The settings table of a task in a preset; for any other task that of its class, overridden by the preset's.

    Raises BadSetting if neither the preset nor the class has one.
    """
    own = tables["tasks"].get(key_of(task))
    if own is not None and not registry.is_file("task", task):
        return dict(own)
    kind = registry.load("task", task)
    like, told = getattr(kind, "like", None), getattr(kind, "settings", None)
    if like is None and told is None and own is None:
        raise BadSetting(_no_table(tables, preset, task))
    if like is not None and like not in tables["tasks"]:
        raise BadSetting(f"task {task} is like {like!r}; preset {preset!r} has only {', '.join(sorted(tables['tasks']))}")
    said = beside(Path(task).parent, told or {}) if registry.is_file("task", task) else told or {}
    return merged(merged(tables["tasks"].get(like, {}), said), own or {})


def knob_values(preset: str, method: str, task: str) -> Any:
    """The values of a method's knob that a preset gives for a task (`knob = [...]`), unchecked; None if it gives none."""
    tables = preset_tables(preset, method, task)
    return method_table(tables, task_table(tables, preset, task), method).get("knob")


def _no_table(tables: Mapping[str, Any], preset: str, task: str) -> str:
    return (
        f"preset {preset!r} has no settings for task {task!r}; it has {', '.join(sorted(tables['tasks']))}; a task of your own "
        f'names them itself: like = "toxicity", or settings = {{"reward": ..., "judge": ...}} in its class, or '
        f"[tasks.{stem_of(task)}] in a preset file"
    )


def recorded(settings: RunSettings) -> RunSettings:
    """The settings as recorded: files are named by their stems, so that a record does not depend on their paths."""
    t, scorers = settings.task, settings.scorers
    kinds = {name: o | ({"kind": stem_of(str(o["kind"]))} if "kind" in o else {}) for name, o in scorers.items()}
    task = t.model_copy(update={"reward": stem_of(t.reward), "judge": stem_of(t.judge)})
    evaluation = settings.evaluation.model_copy(update={"probes": list(map(stem_of, settings.evaluation.probes))})
    changed = {"preset": file_name(stem_of(settings.preset)), "task": task, "evaluation": evaluation, "scorers": kinds}
    return settings.model_copy(update=changed)


def known_as(kind: str, name: str) -> str:
    """The name of a method or a task in records."""
    return file_name(stem_of(name)) if registry.is_file(kind, name) else registry.canonical(kind, name)


def file_identity(kind: str, name: str) -> dict[str, Any]:
    """The identity of a plug-in that is a file: its stem and its sha256; empty if it is not a file."""
    if not registry.is_file(kind, name):
        return {}
    return {"name": file_name(stem_of(name)), "sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest()}
