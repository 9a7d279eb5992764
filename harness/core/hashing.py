"""Hashes: of plain data, of files by their content, of a model's folder."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import BadData
from .files import read_json

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first kind that a folder has is the one that is loaded
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model")


def folder_identity(folder: Path) -> dict[str, str]:
    """The hashes that a record knows a model's folder by, without loading it; raises what `load_model` raises of its files."""
    config, weights = check_files(folder)
    return {"sha256": _digest([config, *weights]), "tokenizer_sha256": _digest(matching(folder, *TOKENIZER))}


def check_files(folder: Path) -> tuple[Path, list[Path]]:
    """config.json and the weight files: -> what decides the logits."""
    config = folder / "config.json"
    if not config.is_file():
        raise BadData(f"no config.json in {folder}; expected a Hugging Face model folder (config, weights, tokenizer)")
    read_json(config)
    weights = next((found for kind in WEIGHTS if (found := matching(folder, kind))), [])
    if not weights:
        raise BadData(f"no weights in {folder}; expected {' or '.join(WEIGHTS)}; copy or download the model again")
    return config, weights


def matching(folder: Path, *patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest(files: list[Path]) -> str:
    """sha256 over the names and the sha256 of files, in order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            total.update(f"{path.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value; raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_hash(identity: Any) -> str:
    """sha256 of plain data, such as of what decides a run's result, known before it starts."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """sha256 of what a record's file says: of JSON its values, however they are spelled; of any other file its bytes.

    Raises OSError or ValueError where it cannot be read.
    """
    if path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))
        with suppress(ValueError):  # a number that JSON does not have, which the config of a model may hold
            return identity_hash(value)
    if path.suffix == ".jsonl":
        return identity_hash([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
