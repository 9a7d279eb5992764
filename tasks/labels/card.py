"""scorer.json, the description of a trained scorer in its folder: what it learned from, how well, and hashes of its files.

The file of row hashes tells whether two scorers learned from the same texts, without the texts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from harness.api import BadData, Settings, one_line

from . import measures
from .rows import Source

CARD, ROWS = "scorer.json", "rows.safetensors"
Kind = Literal["linear", "encoder"]


class Request(Settings):
    """What a scorer was asked to be: the same request gives the same files."""

    kind: Kind
    source: Source  # of a file only its name
    data_sha256: str  # of the file's bytes, or of the rows of a hub data set
    start: str | None = None  # folder's name or hub id of the model that an encoder was fine-tuned from; None from scratch
    start_sha256: str | None = None
    seed: int
    settings: dict[str, Any]

    def differs(self, other: Request) -> str | None:
        """The first difference from another request in words, None if there is none; a file may have another name."""
        mine, theirs = _facts(self), _facts(other)
        return next((f"{key} {theirs[key]}, not {mine[key]}" for key in mine if mine[key] != theirs.get(key)), None)


def _facts(request: Request) -> dict[str, Any]:
    source = request.source.model_dump(exclude={"data"})
    own = request.model_dump(exclude={"source", "settings", "start"})
    return own | source | request.settings


class Split(Settings):
    """The number of texts in each part; a part is decided by the hash of the normalised text."""

    train: int
    validation: int  # calibrates, and chooses the epoch of an encoder
    test: int  # measured below


class Card(Settings):
    """The content of scorer.json."""

    schema_version: Literal[1] = 1
    kind: Kind
    request: Request
    revision: str | None  # commit of a data set on the hub
    rows: Split
    left_out: dict[str, int]  # rows without a text or without a score
    test: measures.Fit
    auc_by_column: dict[str, float | None]  # of the test texts of each column, if there are several
    training: dict[str, float]  # what the training itself reports
    versions: dict[str, str]
    files: dict[str, str]  # sha256 of every other file


class Trained(NamedTuple):
    """A trained scorer in a folder."""

    folder: Path
    card: Card
    sha256: str  # of scorer.json, which has the hashes of the other files

    def rows(self) -> NDArray[np.uint64]:
        """The sorted hashes of the texts that it was fitted or calibrated on."""
        from safetensors.numpy import load_file

        return load_file(self.folder / ROWS)["rows"]


def read(folder: Path) -> Trained:
    """Read and verify a trained scorer; raises BadData if the folder is none, or if a file has changed."""
    try:
        content = (folder / CARD).read_bytes()
        card = Card.model_validate_json(content)
    except FileNotFoundError:
        raise BadData(f"no {CARD} in {folder}; expected a folder written by harness train-scorer") from None
    except (OSError, ValidationError) as e:
        raise BadData(f"{folder / CARD} cannot be read ({one_line(e)}); train the scorer again with --fresh") from e
    for name, expected in card.files.items():
        if _sha256(folder / name) != expected:
            raise BadData(f"{folder / name} is not the file that was trained; copy the folder again, or train it with --fresh")
    return Trained(folder, card, hashlib.sha256(content).hexdigest())


def is_trained(folder: Path) -> bool:
    """True if a folder has the description of a trained scorer."""
    return (folder / CARD).is_file()


def names(folder: Path) -> list[str]:
    """The names of the files of a trained scorer that are in a folder, whether they are intact or not; empty if it has none."""
    try:
        said = json.loads((folder / CARD).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return [CARD] if is_trained(folder) else []
    return [CARD, *(p.name for p in folder.iterdir() if p.name in said)]


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder but the description."""
    return {p.name: _sha256(p) for p in sorted(folder.iterdir()) if p.name != CARD}


def write_rows(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the hashes of the texts that a scorer was fitted or calibrated on."""
    from safetensors.numpy import save

    (folder / ROWS).write_bytes(save({"rows": hashes}))


def shared_rows(a: Trained, b: Trained) -> int:
    """The number of texts that both scorers learned from."""
    return len(np.intersect1d(a.rows(), b.rows(), assume_unique=True))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "missing"
