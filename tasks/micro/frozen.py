"""The files of the micro world's frozen assets, read only if their hashes match; imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.api import BadData, MissingPrerequisite

REBUILD = "reinstall the package, or rebuild the world with `python -m harness.tasks.micro.build`"


WORLDS = {"micro": Path(__file__).parent / "assets", "facts": Path(__file__).parent / "facts" / "assets"}
"""The worlds that ship, each with a base policy and prompts of the same name, and the folder of its assets."""


def folder() -> Path:
    """The folder of the assets."""
    return WORLDS["micro"]


def verified(name: str, root: Path | None = None) -> Path:
    """The path of an asset, file or folder, after a check of its hash; raises BadData, MissingPrerequisite."""
    root = root or folder()
    for part, expected in hashes(root).items():
        if part == name or part.startswith(name + "/"):
            _check(root / part, expected)
    return root / name


def hashes(root: Path | None = None) -> dict[str, str]:
    """The expected hash of each asset; raises MissingPrerequisite."""
    root = root or folder()
    try:
        return json.loads((root / "world.json").read_text())["sha256"]
    except FileNotFoundError:
        raise MissingPrerequisite(f"the micro world is not in {root}; {REBUILD}") from None


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise MissingPrerequisite(f"{path} of the micro world is missing; {REBUILD}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise BadData(f"{path} of the micro world has sha256 {found[:8]}, expected {expected[:8]}; {REBUILD}")


def version(root: Path | None = None) -> int:
    """The version of the assets."""
    return json.loads(((root or folder()) / "world.json").read_text())["version"]


def identity(name: str) -> dict[str, Any]:
    """The hashes of an asset, file or folder."""
    return {k: v for k, v in hashes().items() if k == name or k.startswith(name + "/")}
