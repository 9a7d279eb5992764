"""Task data from a prompt file of the user, or from any data set on the hub by its id.

Both are processed alike: rows with a text and optionally a score are split by the hash of the text, with at most
`task.data.held_out` held-out prompts of each kind. The identity depends on the texts only: a file, its copy under another
name or format, and a data set on the hub with the same texts are the same data.

A row in the shape of RealToxicityPrompts has a continuation too: those of the training prompts are the documents of methods
that learn from a corpus, and inoffensive ones of the test prompts are the clean text on which likelihood is measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.api import BadData, EmptySelection

from ..text_task import Data, Text, document
from . import datasets, prompt_files
from . import splits as hygiene
from .prompt_files import Columns, Placed, Prompt
from .tables import shown

log = logging.getLogger(__name__)


def from_file(path: Path, settings: Any) -> Data:
    """The task data of a prompt file; raises MissingPrerequisite, BadData, EmptySelection."""
    found = prompt_files.placed_prompts(path, Columns(settings.text, settings.score))
    return _data(str(path), found, settings, {"file": path.name})


def from_hub(repo: str, settings: Any, offline: bool = False) -> Data:
    """The task data of one split of a hub data set; raises MissingPrerequisite, BadData, EmptySelection."""
    columns = Columns(settings.text, settings.score)
    (table,), commit = datasets.prepared(repo, settings.config, [settings.split], settings.revision, offline)
    wanted = [name for name in table.column_names if name in columns.names()]
    for name in (settings.text, settings.score):
        if name is not None and name not in wanted:
            raise BadData(f"{repo} has no column {shown(name)}; it has {', '.join(map(shown, table.column_names))}")
    found = prompt_files.gathered(_rows(table, wanted, settings, columns), repo, columns)
    origin = {"repo": repo, **{name: getattr(settings, name) for name in ("config", "split", "revision")}, "commit": commit}
    return _data(repo, found, settings, origin)


def _data(source: str, found: list[Placed], settings: Any, origin: dict[str, Any]) -> Data:
    splits = prompt_files.held_out(prompt_files.split_prompts([placed.prompt for placed in found]), settings.held_out)
    splits, dropped = hygiene.apart(splits)
    if not splits["train"]:
        raise EmptySelection(
            f"every training prompt of {source} shares eight words with a held-out one; give more diverse prompts"
        )
    texts: dict[str, Any] = {name: [p.text for p in members] for name, members in splits.items()}
    counts = {name: len(members) for name, members in splits.items()}
    documents, clean = _documents(splits["train"], splits["test"], found, settings)
    if documents or clean:  # a file without continuations keeps its identity
        texts |= {"documents": [*map(list, documents)], "clean": [*map(list, clean)]}
        counts |= {"documents": len(documents), "clean": len(clean)}
    identity = {"name": "file", "prompts": counts, "sha256": _digest(texts), "dropped": {"overlap": dropped}}
    kept = {prompt.text for members in splits.values() for prompt in members}
    places = {placed.prompt.text: placed.place for placed in found if placed.prompt.text in kept}
    return Data(splits, documents, clean, identity, {}, places, origin | {"rows": len(found)})


def _documents(train: list[Prompt], test: list[Prompt], found: list[Placed], settings: Any) -> tuple[list[Text], list[Text]]:
    """The documents to train on, and held-out inoffensive ones: prompts with their continuations."""
    parts = {placed.prompt.text: placed.continuation for placed in found if placed.continuation is not None}

    def some(prompts: Iterable[Prompt], most: int) -> list[Text]:
        chosen = [p.text for p in prompts if p.text in parts][:most]
        return [document(text, parts[text].text, settings.document_words, ends=False) for text in chosen]

    def clean(prompt: Prompt) -> bool:
        part = parts.get(prompt.text)
        return prompt.kind == "nontoxic" and part is not None and part.score is not None and part.score < 0.5

    return some(train, settings.documents), some(filter(clean, test), settings.clean)


def _digest(texts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _rows(table: Any, wanted: list[str], settings: Any, columns: Columns) -> Iterator[tuple[str, Any]]:
    """Yield evenly spaced rows; rows without text are skipped, since the user cannot edit a data set on the hub."""
    step, empty = max(1, -(-len(table) // settings.rows)), 0
    if not wanted:
        yield "row 1", dict.fromkeys(table.column_names)
    chosen = range(0, len(table), step)
    rows = (
        dict(zip(b, v, strict=True))
        for b in table.select_columns(wanted).select(chosen).iter(1000)
        for v in zip(*b.values(), strict=True)
    )
    for number, row in zip(chosen, rows, strict=True):
        text = row.get(columns.text or "text", row.get("prompt") if columns.text is None else None)
        if text is None or (isinstance(text, str) and not text.strip()):
            empty += 1
        else:
            yield f"row {number + 1}", row
    if empty:
        log.warning("left out %d rows without text", empty)
