"""Prompts of the user's own: what a row says, the split for good, the tokens.

A row is one of
    {"prompt": {"text": ..., "toxicity": ...}, "challenging": true, ...}    RealToxicityPrompts (arXiv:2009.11462)
    {"text": ..., "score": ...}
    {"text": ...}  or  {"prompt": "..."}
or any other with a column for the text, and perhaps one for the score, that the settings name. A score may be null. Other keys
are ignored. Texts are taken as they are, spaces included.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from harness.api import BadData, EmptySelection, Prompts, PromptTooLong, refusing

from . import tables
from .tables import shown

log = logging.getLogger(__name__)
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
LONGEST = 1_000_000  # characters of a prompt; no model reads more, and no tokenizer need try
NO_PLACES: Mapping[str, str] = MappingProxyType({})


class Prompt(NamedTuple):
    text: str
    kind: str  # challenging, toxic, nontoxic; unknown without a score
    score: float | None  # of the prompt itself, higher is more toxic


class Columns(NamedTuple):
    """Where a row has its text and its score; None is by the usual names."""

    text: str | None = None
    score: str | None = None

    def names(self) -> Collection[str]:
        """All columns that may be read."""
        return {self.text or "text", self.text or "prompt", "challenging", *((self.score,) if self.score else SCORES)}


SCORES = ("toxicity", "score")


class Placed(NamedTuple):
    """A prompt, and where the user finds it."""

    prompt: Prompt
    place: str


def read_prompts(path: str | Path, columns: Columns = Columns()) -> list[Prompt]:  # noqa: B008
    """The prompts of a file, in its order; a text that comes again is dropped, and the count logged.

    Raises MissingPrerequisite without the file, BadData at the first row that is no prompt, EmptySelection without any row.
    """
    return [placed.prompt for placed in placed_prompts(Path(path), columns)]


def placed_prompts(path: Path, columns: Columns) -> list[Placed]:
    """The same with the line or the row that each is from."""
    return gathered(tables.read(path, columns.names()), str(path), columns, spelled=tables.is_spelled(path))


def gathered(rows: Iterable[tuple[str, Any]], source: str, columns: Columns, *, spelled: bool = False) -> list[Placed]:
    """Rows with their places as prompts, each text once; `spelled` says that a number may be spelled as text."""
    found: dict[str, Placed] = {}
    repeated = 0
    for place, row in rows:
        try:
            prompt = _prompt(row, columns, spelled)
        except (ValueError, OverflowError) as e:
            raise BadData(f"{source}, {place}: {e}") from e
        repeated += prompt.text in found
        found.setdefault(prompt.text, Placed(prompt, f"{source}, {place}"))
    if not found:
        raise EmptySelection(f'{source} has no rows; expected some such as {{"text": "..."}}')
    if repeated:
        log.warning("%s: dropped %d rows whose text came before; %d prompts are left", source, repeated, len(found))
    return list(found.values())


def _prompt(row: Any, columns: Columns, spelled: bool) -> Prompt:
    """Raises ValueError that says what is wrong with the row."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {_kind(row)}")
    inner = row.get("prompt", row) if columns.text is None else row
    fields = inner if isinstance(inner, dict) else row | {"text": inner}
    text, score = _text(fields, columns.text), _score(fields, columns.score, spelled)
    if row.get("challenging") is True:
        return Prompt(text, "challenging", score)
    return Prompt(text, "unknown" if score is None else "toxic" if score >= 0.5 else "nontoxic", score)


def _text(fields: dict[str, Any], column: str | None) -> str:
    if (column or "text") not in fields:
        wanted = '"text" or "prompt"' if column is None else f"column {shown(column)}"
        raise ValueError(f"no {wanted}; found the keys {_names(fields)}; name one with --set task.data.text=COLUMN")
    text = fields[column or "text"]
    if not isinstance(text, str):
        raise ValueError(f"expected a text that is a string, found {_kind(text)}")
    if not text.strip():
        raise ValueError("the text is empty; remove the row")
    if len(text) > LONGEST:
        raise ValueError(f"the text has {len(text):,} characters, more than {LONGEST:,}; shorten it")
    if "\0" in text:
        raise ValueError("the text has a NUL character; remove it")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("the text has half of a surrogate pair, which no tokenizer can read; remove it")
    return text


def _score(fields: dict[str, Any], column: str | None, spelled: bool) -> float | None:
    if column is not None and column not in fields:
        raise ValueError(
            f"no column {shown(column)}; found the keys {_names(fields)}; name one with --set task.data.score=COLUMN"
        )
    score = fields.get("toxicity", fields.get("score")) if column is None else fields[column]
    if spelled and isinstance(score, str):
        score = _number(score)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
        found = score if isinstance(score, float) else _kind(score)
        raise ValueError(f"expected a score that is a finite number or null, found {found}")
    return float(score)


def _number(spelled: str) -> float | str | None:
    """The number that a text spells, nothing for an empty one; a text that is none stays."""
    try:
        return float(spelled) if spelled.strip() else None
    except ValueError:
        return spelled


def _names(fields: dict[str, Any]) -> str:
    """The first of a row's keys, for a message."""
    names = [shown(name) for name in fields]
    return ", ".join(names[:20] + ["..."] * (len(names) > 20)) or "none"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def split_prompts(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    """Train, validation and test prompts by the sha256 of the text, in the order of the hash: disjoint, shares 80/10/10.

    A prompt stays in its split whatever else the file has and in whatever order. Raises EmptySelection where a split has none.
    """
    split: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for prompt in sorted(prompts, key=lambda p: place(p.text)):
        split[split_of(place(prompt.text))].append(prompt)
    empty = [name for name, members in split.items() if not members]
    if empty:
        found = ", ".join(f"{name} {len(members)}" for name, members in split.items())
        raise EmptySelection(
            f"{len(prompts)} prompts are too few to split by the hash of their text ({found}); give about 100 or more"
        )
    return split


def place(text: str) -> float:
    """Where the hash of a text falls in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def split_of(place: float) -> str:
    """The split that a place is in."""
    names = list(SPLITS)
    for name in names[:-1]:
        if place < SPLITS[name]:
            return name
        place -= SPLITS[name]
    return names[-1]


def held_out(splits: dict[str, list[Prompt]], most: int) -> dict[str, list[Prompt]]:
    """The splits with at most so many prompts of each kind in validation and in test: the first by the hash of their text."""
    return {name: members if name == "train" else _first(members, most) for name, members in splits.items()}


def _first(members: list[Prompt], most: int) -> list[Prompt]:
    seen: Counter[str] = Counter()
    kept = []
    for prompt in members:
        seen[prompt.kind] += 1
        if seen[prompt.kind] <= most:
            kept.append(prompt)
    return kept


def tokenize(
    prompts: list[str],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    context: int,
    bos: int | None = None,
    places: Mapping[str, str] = NO_PLACES,
) -> Prompts:
    """Prompts as the tokenizer begins a text (a Llama puts its BOS first), left-padded: -> [B, P].

    Nothing is put after a prompt, whatever the tokenizer does, because the response goes on from there; a prompt without
    any token becomes `bos`, the policy's, or the tokenizer's where none is given. Raises PromptTooLong, which names
    the place of the prompt, where prompt and response do not fit into the context.
    """
    import torch

    if not prompts:
        raise EmptySelection("no prompts to turn into tokens; the split or the filter that chose them has none")
    first = opening(tokenizer)
    with refusing("the tokenizer fails on the prompts", "remove the prompt that it cannot read, or use another tokenizer"):
        bare = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    rows = [first + ids or [_bos(tokenizer) if bos is None else bos] for ids in bare]
    _check_lengths({text: len(row) for text, row in zip(prompts, rows)}, places, max_new_tokens, context)
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompts(tokens, mask)


def opening(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    bare, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:start]


def _bos(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise BadData("a prompt has no token, and the tokenizer has neither a BOS nor an EOS to begin with; remove the prompt")


def _check_lengths(lengths: dict[str, int], places: Mapping[str, str], max_new_tokens: int, context: int) -> None:
    limit = context - max_new_tokens
    long = {text: length for text, length in lengths.items() if length > limit}
    if not long:
        return
    where = f"a context of {context} leaves {limit} beside {max_new_tokens} new ones"
    first = next((text for text in long if text in places), None)
    if first is None:  # prompts that come with the task: there is no row to change
        raise PromptTooLong(
            f"{len(long)} of {len(lengths)} prompts are too long, one has {max(long.values())} tokens; {where}; lower "
            "task.decoding.max_new_tokens, or choose a model with a longer context"
        )
    more = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
    raise PromptTooLong(
        f"{places[first]}{more}: the prompt has {long[first]} tokens; {where}; shorten or remove the prompt, or lower "
        "task.decoding.max_new_tokens"
    )
