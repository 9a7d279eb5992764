"""The engine that a command asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.errors import BadSetting, UnknownName
from harness.core.files import in_a_file_system
from harness.core.settings import parse_override

from .contract import Engine, Terms
from .local import LocalEngine

NAMES = ("local", "slurm", "ray")


def check(out: Path, name: str, slurm: str | None, ray: str | None) -> None:
    """Check what a command says of its engine, before anything is loaded.

    Raises UnknownName, BadSetting for options that cannot be read or are another engine's, Unwritable for an object store.
    """
    in_a_file_system(out)
    if name not in NAMES:
        raise UnknownName("engine", name, NAMES)
    for flag, given in (("slurm", slurm), ("ray", ray)):
        if given is not None and name != flag:
            raise BadSetting(f"--{flag} is an option of --engine {flag}; the engine is {name}")
        options(f"--{flag}", given or "")


def engine(name: str, workers: int | None, out: Path, terms: Terms, slurm: str | None = None, ray: str | None = None) -> Engine:
    """The engine of a checked name; raises MissingPrerequisite for its extra, BadSetting for options that it refuses."""
    if name == "slurm":
        from .slurm import SlurmEngine

        return SlurmEngine(options("--slurm", slurm or ""), out, workers, terms)
    if name == "ray":
        from .ray_tasks import RayEngine

        return RayEngine(options("--ray", ray or ""), out, workers, terms)
    return LocalEngine(workers or 1, terms)


def options(flag: str, text: str) -> dict[str, Any]:
    """The options of KEY=VALUE,KEY=VALUE, numbers as numbers; raises BadSetting."""
    found: dict[str, Any] = {}
    if flag == "--ray" and text and "=" not in text:
        return {"address": text}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = item.partition("=")
        if not sign or not key.isidentifier() or not value:
            raise BadSetting(f"{flag} takes KEY=VALUE,KEY=VALUE; found {item!r:.60}")
        found[key] = value if ":" in value or "/" in value else parse_override(item)[1]
    return found
