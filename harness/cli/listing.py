"""`harness list`, `harness show` and `harness env`. Listing imports nothing heavy."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.errors import BadSetting, UnknownKind
from harness.records.read import locate

KINDS = ("methods", "tasks", "scorers", "datasets", "probes", "presets", "runs")
PACKAGES = (
    "unlearning-harness",
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "pandas",
    "matplotlib",
    "datasets",
    "detoxify",
)


def listing(what: str, out: Path) -> list[dict[str, Any]]:
    """Rows of name and description; raises UnknownKind."""
    if what == "presets":
        from harness.core.settings import preset_names

        return [{"name": name} for name in preset_names()]
    if what == "runs":
        return runs(out)
    if what not in KINDS:
        raise UnknownKind("cannot list", what, KINDS)
    kind = what.removesuffix("s")
    names, broken = registry.table(kind), {(o.name, o.target): o for o in registry.broken(kind)}
    sound = [(n, line) for n, (target, line) in sorted(names.items()) if (n, target) not in broken]
    knobs = {n: {"knob": _knob(n)} if kind == "method" else {} for n, _ in sound}
    none = {"knob": "-"} if kind == "method" else {}
    lost = [{"name": o.name, **none, "what": f"broken, from {o.package}: {o.fault}", "error": o.fault} for o in broken.values()]
    return [{"name": n, **knobs[n], "what": line} for n, line in sound] + sorted(lost, key=lambda row: row["name"])


def _knob(method: str) -> str:
    """The setting of a method that trades reward for drift, from its source; "-" if it has none."""
    found = registry.attribute("method", method, "knob")
    return str(found.setting) if found else "-"


def runs(out: Path) -> list[dict[str, Any]]:
    """One row per run below a folder of records; an unreadable one is listed as such."""
    from harness.records.read import find_runs, holds_records
    from harness.records.tables.lean import Lean

    found, problems = find_runs([out], kept=Lean()) if holds_records(str(out)) else ([], [])
    rows = [_run_row(run, out) for run in found]
    return rows + [{"run": str(p.path), "status": "unreadable", "judge": "-", "kl": "-"} for p in problems]


def _run_row(run: Any, out: Path) -> dict[str, Any]:
    final = run.summary.final if run.summary else {}
    values = {k: final[k].value if k in final else None for k in ("judge", "kl")}
    shown = {k: "-" if v is None else f"{v:.3f}" for k, v in values.items()}
    return {"run": str(run.dir), "status": run.manifest.status, **shown}


def card(what: str, name: str, out: Path) -> tuple[str, Any]:
    """One item as text and as data; raises UnknownName or UnknownKind."""
    if what == "method":
        return method_card(name)
    if what == "task":
        return task_card(name)
    if what == "probe":
        return probe_card(name)
    if what == "preset":
        from harness.runs.cost.estimate import preset_card

        return preset_card(name)
    if what == "run":
        summary = find_run(name, out)
        return json.dumps(summary, indent=1), summary
    raise UnknownKind("cannot show", what, ("method", "task", "probe", "preset", "run"))


def method_card(name: str) -> tuple[str, Any]:
    """A method's docstring, and its settings with their defaults."""
    kind, doc, settings, lines = _plugin("method", name)
    found = getattr(kind, "knob", None)
    knob = {"setting": found.setting, "values": list(found.values)} if found else None
    turned = [f"knob, weak to strong\n  {found.setting:18} {', '.join(map(str, found.values))}", ""] if found else []
    presets = _preset_settings(name)
    tuned = [f"  preset {p}: " + ", ".join(f"{k}={v}" for k, v in s.items()) for p, s in presets.items()]
    text = "\n".join([doc, "", *turned, "settings (default)", *lines, *tuned])
    return text, {"name": name, "version": kind.version, "doc": doc, "knob": knob, "settings": settings, "presets": presets}


def probe_card(name: str) -> tuple[str, Any]:
    """A probe's docstring, and its settings with their defaults."""
    kind, doc, settings, lines = _plugin("probe", registry.given("probe", name))
    text = "\n".join(
        [doc, "", f"readings by {kind.unit}; its number is the {kind.number} judge score", "settings (default)", *lines]
    )
    told = {"name": name, "version": kind.version, "doc": doc, "unit": kind.unit, "number": kind.number, "settings": settings}
    return text, told


def _plugin(what: str, name: str) -> tuple[Any, str, dict[str, Any], list[str]]:
    """A plug-in with settings: its class, the docstring of its module, its settings, and a line for each."""
    import sys

    kind = registry.load(what, name)
    settings = {k: {"default": f.default, "what": f.description} for k, f in kind.Settings.model_fields.items()}
    doc = (sys.modules[kind.__module__].__doc__ or "").strip()
    lines = [f"  {k:18} {v['default']!s:10} {v['what'] or ''}" for k, v in settings.items()]
    return kind, doc, settings, lines or ["  none"]


def _preset_settings(method: str) -> dict[str, dict[str, Any]]:
    from harness.core.settings import preset_names, read_preset

    if method.endswith(".py"):
        return {}
    name, found = registry.canonical("method", method), {}
    for preset in preset_names():
        tables = read_preset(preset)
        found[preset] = tables.get("methods", {}).get(name)
        found |= {f"{preset}, {task}": t.get("methods", {}).get(name) for task, t in tables["tasks"].items()}
    return {p: s for p, s in found.items() if s}


def task_card(name: str) -> tuple[str, Any]:
    """A task's docstring, and its scorers in each preset."""
    import sys

    from harness.core.settings import preset_names, read_preset
    from harness.runs.named import task_table

    name = registry.given("task", name)
    kind = registry.load("task", name)
    doc = (sys.modules[kind.__module__].__doc__ or "").strip()
    presets: dict[str, Any] = {}
    for preset in preset_names():
        with suppress(BadSetting):  # a preset without settings for the task
            table = task_table(read_preset(preset), preset, name)
            presets[preset] = {key: value for key, value in table.items() if key != "methods"}  # harness show method
    lines = [f"  preset {p}: " + ", ".join(f"{k}={v}" for k, v in s.items()) for p, s in presets.items() if s]
    return "\n".join([doc, "", *lines]), {"name": name, "version": kind.version, "doc": doc, "presets": presets}


def find_run(name: str, out: Path) -> dict[str, Any]:
    """The summary of a run by its folder or its id."""
    run = locate(name, out)
    return (run.summary or run.manifest).plain()


def environment() -> dict[str, str]:
    """Versions and platform."""
    facts = {"python": platform.python_version(), "platform": platform.platform(terse=True), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts
