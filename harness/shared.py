"""What the records of an archive have in common, kept once: a value is left in a folder `shared` above them, named by its hash.

In a record the value is {"shared": sha256}, and whoever reads the record finds the value in its place, its hash checked. Every
run of a world has the same frontier and base metrics, and those are most of a record.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import CorruptRecord

FOLDER = "shared"
ABOVE = 5  # folders up from a record in which to look: preset/task/method/run, and one more
DIGEST = re.compile("[0-9a-f]{64}")


def digest(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def reference(value: Any) -> dict[str, str]:
    """What stands for a value in a record."""
    return {FOLDER: digest(value)}


def file_name(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:16]}.json"


def put_back(value: Any, dir: Path) -> Any:
    """Plain data with every reference replaced by what it stands for; raises CorruptRecord where that is gone or changed."""
    if isinstance(value, list):
        return [put_back(v, dir) for v in value]
    if not isinstance(value, dict):
        return value
    sha256 = value.get(FOLDER) if len(value) == 1 else None
    if isinstance(sha256, str) and DIGEST.fullmatch(sha256):
        return _find(sha256, dir)
    return {key: put_back(v, dir) for key, v in value.items()}


def _find(sha256: str, dir: Path) -> Any:
    for folder in Path(os.path.abspath(dir)).parents[:ABOVE]:
        path = folder / file_name(sha256)
        if path.is_file():
            return _read(path, sha256, dir)
    raise CorruptRecord(f"{dir}: {file_name(sha256)} is missing; an archive is copied with its folder {FOLDER}/")


def _read(path: Path, sha256: str, dir: Path) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = digest(value)
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptRecord(f"{dir}: {file_name(sha256)} cannot be read: {type(error).__name__}") from None
    if found != sha256:
        raise CorruptRecord(f"{dir}: {file_name(sha256)} is not what the record refers to; its hash differs")
    return value
