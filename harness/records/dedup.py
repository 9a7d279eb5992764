"""Deduplication of values shared by the records of an archive, stored once in a folder `shared` above them, named by hash.

In a record the value is replaced by {"shared": sha256}; reading the record puts the value back after checking its hash. All
runs of one world have the same frontier and base metrics, which make up most of a record.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import CorruptRecord

FOLDER = "shared"
MOST = 2 * files.JSON_BYTES  # bytes of all values that one file refers to, so that a small file cannot expand without bound
ABOVE = 5  # parent folders of a record to search: preset/task/method/run, and one more
DIGEST = re.compile("[0-9a-f]{64}")


def digest(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def reference(value: Any) -> dict[str, str]:
    """The reference that replaces a value in a record."""
    return {FOLDER: digest(value)}


def file_name(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:16]}.json"


def put_back(value: Any, dir: Path) -> Any:
    """Replace every reference in plain data by its value; raises CorruptRecord if a value is missing or changed."""
    return _Found(dir).put_back(value)


class _Found:
    """The values that one file refers to, each read once, and their total size in bytes."""

    def __init__(self, dir: Path) -> None:
        self.dir, self.size = dir, 0
        self._known: dict[str, tuple[Any, int]] = {}

    def put_back(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.put_back(v) for v in value]
        if not isinstance(value, dict):
            return value
        sha256 = value.get(FOLDER) if len(value) == 1 else None
        if isinstance(sha256, str) and DIGEST.fullmatch(sha256):
            return self._one(sha256)
        return {key: self.put_back(v) for key, v in value.items()}

    def _one(self, sha256: str) -> Any:
        if sha256 not in self._known:
            self._known[sha256] = _find(sha256, self.dir)
        value, size = self._known[sha256]
        self.size += size
        if self.size > MOST:
            raise CorruptRecord(f"{self.dir}: its references to {FOLDER}/ stand for more than {MOST} bytes")
        return value


def _find(sha256: str, dir: Path) -> tuple[Any, int]:
    """The value of a digest and its size in bytes; raises CorruptRecord if it is missing or changed."""
    for folder in Path(os.path.abspath(dir)).parents[:ABOVE]:
        if os.path.isfile(folder / file_name(sha256)):
            return _read(folder, sha256, dir)
    raise CorruptRecord(f"{dir}: {file_name(sha256)} is missing; an archive is copied with its folder {FOLDER}/")


def _read(folder: Path, sha256: str, dir: Path) -> tuple[Any, int]:
    try:
        content = files.read(folder, file_name(sha256))
        value = json.loads(content)
        found = digest(value)
    except (OSError, ValueError, RecursionError, CorruptRecord) as error:
        raise CorruptRecord(f"{dir}: {file_name(sha256)} cannot be read: {type(error).__name__}") from None
    if found != sha256:
        raise CorruptRecord(f"{dir}: {file_name(sha256)} differs from its hash in the record; copy the archive again")
    return value, len(content)
