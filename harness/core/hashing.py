"""SHA-256 hashes of plain data, of files by content, and of model folders."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import BadData
from .files import read_json

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first format present in a folder is loaded
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model")


def is_gguf(path: Path) -> bool:
    """Whether a path names a .gguf file, which holds a whole model: config, tokenizer and weights."""
    return path.suffix == ".gguf" and not path.is_dir()


def folder_identity(folder: Path) -> dict[str, str]:
    """The hashes that identify a model folder in records, without loading the model; raises BadData as `load_model` does.

    A .gguf file is known by the hash of its bytes alone.
    """
    if is_gguf(folder):
        whole = content_hash(folder)
        return {"sha256": whole, "tokenizer_sha256": whole}
    config, weights = check_files(folder)
    return {"sha256": _digest([config, *weights]), "tokenizer_sha256": _digest(matching(folder, *TOKENIZER))}


def check_files(folder: Path) -> tuple[Path, list[Path]]:
    """The paths of config.json and of the weight files, which decide the logits; raises BadData if one is missing."""
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
    """SHA-256 over the names and the SHA-256 hashes of files, in order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            total.update(f"{path.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def canonical(value: Any) -> str:
    """JSON text in canonical form, the same for equal values; raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_hash(identity: Any) -> str:
    """SHA-256 of plain data, such as the identity of a run, which holds everything that decides its result."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a record's file: of the values in JSON, whatever their formatting; of the bytes of any other file.

    Raises OSError or ValueError if it cannot be read.
    """
    if path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))
        with suppress(ValueError):  # the config of a model may hold NaN or Infinity, which JSON does not have
            return identity_hash(value)
    if path.suffix == ".jsonl":
        return identity_hash([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
