"""Labelled texts: rows of a file or of a hub data set, the fixed split by hash, and hashes that tell of shared rows.

A column is a key of a row, or a path of keys: `continuation.toxicity` is the toxicity in {"continuation": {"toxicity": ...}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.api import BadData, BadSetting, EmptySelection, MissingPrerequisite, Settings

from ..data import datasets, prompt_files, tables
from ..data.tables import shown

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
MISSING = object()


class Source(Settings):
    """The rows to learn from, and what their scores mean."""

    data: str = Field(description="a file (.jsonl, .csv, .tsv, .parquet, also .gz) or the id of a data set on the hub")
    text: tuple[str, ...] = Field(description="columns of the texts, each with its own column of scores")
    score: tuple[str, ...] = Field(description="columns of the scores, in [0, 1]")
    higher_is: Literal["worse", "better"] = Field("worse", description="whether a high score marks undesired or desired text")
    split: str = Field("train", description="split of a data set on the hub")
    config: str | None = Field(None, description="configuration of a data set on the hub")
    revision: str = Field("main", description="commit, tag or branch of a data set on the hub")

    def columns(self) -> list[tuple[str, str]]:
        """The pairs of a text's column and its score's; raises BadSetting if their numbers differ."""
        if len(self.text) != len(self.score):
            raise BadSetting(
                f"{len(self.text)} columns of texts and {len(self.score)} of scores; give --score for each --text, in its order"
            )
        return list(zip(self.text, self.score, strict=True))


class Labelled(NamedTuple):
    """N texts, how undesired each is, and how many rows had no text or no score."""

    texts: list[str]  # [N]
    undesired: NDArray[np.float64]  # [N] in [0, 1], higher is worse
    columns: NDArray[np.str_]  # [N]: the column of each text
    left_out: dict[str, int]
    revision: str | None = None  # commit of a data set on the hub

    @property
    def share(self) -> float:
        """The share that is undesired: the mean label."""
        return float(self.undesired.mean())

    def split(self) -> dict[str, NDArray[np.int64]]:
        """The indices of the texts of train, validation and test, by the hash of the normalised text.

        Raises EmptySelection if a split is empty.
        """
        names = np.array([prompt_files.split_of(prompt_files.place(normalised(text))) for text in self.texts])
        found = {name: np.flatnonzero(names == name) for name in prompt_files.SPLITS}
        if not all(len(members) for members in found.values()):
            sizes = ", ".join(f"{name} {len(members)}" for name, members in found.items())
            raise EmptySelection(f"{len(self.texts)} labelled texts are too few to split ({sizes}); give a few hundred or more")
        return found

    def sha256(self) -> str:
        """SHA-256 of all texts with their labels, in order."""
        rows = json.dumps([self.texts, self.undesired.tolist()], separators=(",", ":"))
        return hashlib.sha256(rows.encode()).hexdigest()


def normalised(text: str) -> str:
    """The words and numbers of a text in lower case, so that copies with other spaces, signs or capitals are one text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split()) or text.strip()


def row_hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """The sorted distinct 64-bit hashes of normalised texts: [N] -> [at most N]."""
    digests = {hashlib.sha256(normalised(text).encode()).digest()[:8] for text in texts}
    return np.sort(np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64))


def data_sha256(source: Source) -> str | None:
    """SHA-256 of the bytes of a data file, None for a data set on the hub; raises MissingPrerequisite if there is neither."""
    if not is_file(source.data):
        return None
    try:
        with open(source.data, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise MissingPrerequisite(
            f"cannot read {source.data} ({e.strerror}); {tables.FORMATS}, or the id of a hub data set"
        ) from e


def is_file(data: str) -> bool:
    """True if a source of rows is a file or the name of one, False if it is the id of a data set on the hub."""
    return os.path.exists(data) or tables.is_table(data) or not HUB_ID.fullmatch(data)


def labelled(source: Source, offline: bool = False) -> Labelled:
    """The labelled texts of a source; rows without a text or a score are left out and counted.

    Raises MissingPrerequisite if it cannot be found, BadData at the first invalid row, EmptySelection if nothing is left.
    """
    columns = source.columns()
    if is_file(source.data):
        wanted = {part for pair in columns for name in pair for part in (name, name.partition(".")[0])}
        rows, revision = tables.read(Path(source.data), wanted), None
    else:
        rows, revision = _hub(source, columns, offline)
    return _gathered(rows, source, columns, revision)


def _hub(source: Source, columns: list[tuple[str, str]], offline: bool) -> tuple[Iterator[tuple[str, Any]], str | None]:
    (table,), commit = datasets.prepared(source.data, source.config, [source.split], source.revision, offline)
    names = {name if name in table.column_names else name.partition(".")[0] for pair in columns for name in pair}
    if lost := sorted(names - set(table.column_names)):
        raise BadData(f"{source.data} has no column {shown(lost[0])}; it has {', '.join(map(shown, table.column_names))}")
    return ((f"row {i}", row) for i, row in enumerate(table.select_columns(sorted(names)), 1)), commit


def _gathered(
    rows: Iterable[tuple[str, Any]], source: Source, columns: Sequence[tuple[str, str]], revision: str | None
) -> Labelled:
    texts, scores, origins, left_out = [], [], [], Counter[str]()
    spelled = tables.is_spelled(Path(source.data)) and is_file(source.data)
    for place, row in rows:
        for text_column, score_column in columns:
            try:
                text, score = _text(row, text_column), _score(row, score_column, spelled)
            except ValueError as e:
                raise BadData(f"{source.data}, {place}: {e}") from e
            if text is None or score is None:
                left_out["no text" if text is None else "no score"] += 1
            else:
                texts.append(text)
                scores.append(score)
                origins.append(text_column)
    if not texts:
        raise EmptySelection(f"{source.data} has no row with a text and a score in {', '.join(map(' and '.join, columns))}")
    found = np.array(scores)
    undesired = found if source.higher_is == "worse" else 1 - found
    return Labelled(texts, undesired, np.array(origins), dict(left_out), revision)


def _text(row: Any, column: str) -> str | None:
    text = _cell(row, column, "--text")
    return None if text is None or text == "" or (isinstance(text, str) and not text.strip()) else prompt_files.sound_text(text)


def _score(row: Any, column: str, spelled: bool) -> float | None:
    score = prompt_files.sound_score(_cell(row, column, "--score"), spelled)
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"the score is {score:g}; expected 0 to 1; scale the column {shown(column)}")
    return score


def _cell(row: Any, column: str, option: str) -> Any:
    """The value in a column of a row, along a path of keys if no key has the whole name; a null on the path is a null."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {prompt_files.kind_of(row)}")
    if column in row:
        return row[column]
    found: Any = row
    for part in column.split("."):
        if found is None:
            return None
        found = found.get(part, MISSING) if isinstance(found, dict) else MISSING
        if found is MISSING:
            raise ValueError(
                f"no column {shown(column)}; found the keys {prompt_files.names_of(row)}; name one with {option} COLUMN"
            )
    return found
