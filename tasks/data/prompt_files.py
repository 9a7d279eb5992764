"""Prompt files of the user: parsing of rows, the fixed split by hash, and tokenization.

A row is one of
    {"prompt": {"text": ..., "toxicity": ...}, "continuation": {"text": ..., "toxicity": ...}, "challenging": true, ...}
                                                                            RealToxicityPrompts (arXiv:2009.11462)
    {"text": ..., "score": ...}
    {"text": ...}  or  {"prompt": "..."}
or any row with a text column, and optionally a score column, named in the settings. A score may be null. Other keys are
ignored. Texts are used unchanged, spaces included.
"""

from __future__ import annotations

import hashlib
import logging
import re
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
LONGEST = 1_000_000  # maximum length of a prompt in characters, beyond the context of any model
NO_PLACES: Mapping[str, str] = MappingProxyType({})


class Prompt(NamedTuple):
    """A prompt with its kind and its score."""

    text: str
    kind: str  # challenging, toxic, nontoxic; unknown without a score
    score: float | None  # toxicity of the prompt itself


class Columns(NamedTuple):
    """The columns of the text and of the score; None stands for the default names."""

    text: str | None = None
    score: str | None = None

    def names(self) -> Collection[str]:
        """The names of all columns that may be read."""
        scores = (self.score,) if self.score else SCORES
        return {*((self.text,) if self.text else ("text", "prompt", "continuation")), "challenging", *scores}


SCORES = ("toxicity", "score")


class Continuation(NamedTuple):
    """How the text goes on after a prompt, with the score of that part; the two together are a document."""

    text: str
    score: float | None


class Placed(NamedTuple):
    """A prompt, its location (a file and line, or a row), and its continuation if the row has one."""

    prompt: Prompt
    place: str
    continuation: Continuation | None = None


def read_prompts(path: str | Path, columns: Columns = Columns()) -> list[Prompt]:  # noqa: B008
    """The prompts of a file in order; repeated texts are dropped and their number is logged.

    Raises MissingPrerequisite if the file is missing, BadData at the first invalid row, EmptySelection if there are no rows.
    """
    return [placed.prompt for placed in placed_prompts(Path(path), columns)]


def placed_prompts(path: Path, columns: Columns) -> list[Placed]:
    """The prompts of a file with their locations; raises as `read_prompts` does."""
    return gathered(tables.read(path, columns.names()), str(path), columns, spelled=tables.is_spelled(path))


def gathered(rows: Iterable[tuple[str, Any]], source: str, columns: Columns, *, spelled: bool = False) -> list[Placed]:
    """Parse (location, row) pairs to prompts, each text once; with `spelled`, numbers may be given as text."""
    found: dict[str, Placed] = {}
    repeated = 0
    for place, row in rows:
        try:
            prompt, continuation = _prompt(row, columns, spelled), _continuation(row, columns, spelled)
        except (ValueError, OverflowError) as e:
            raise BadData(f"{source}, {place}: {e}") from e
        repeated += prompt.text in found
        found.setdefault(prompt.text, Placed(prompt, f"{source}, {place}", continuation))
    if not found:
        raise EmptySelection(f'{source} has no rows; expected some such as {{"text": "..."}}')
    if repeated:
        log.warning("%s: dropped %d rows with a repeated text; %d prompts are left", source, repeated, len(found))
    return list(found.values())


def _prompt(row: Any, columns: Columns, spelled: bool) -> Prompt:
    """Parse a row; raises ValueError with the fault of the row."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {kind_of(row)}")
    inner = row.get("prompt", row) if columns.text is None else row
    fields = inner if isinstance(inner, dict) else row | {"text": inner}
    text, score = _text(fields, columns.text), _score(fields, columns.score, spelled)
    if row.get("challenging") is True:
        return Prompt(text, "challenging", score)
    return Prompt(text, "unknown" if score is None else "toxic" if score >= 0.5 else "nontoxic", score)


def _continuation(row: dict[str, Any], columns: Columns, spelled: bool) -> Continuation | None:
    """The continuation of a row in the shape of RealToxicityPrompts, if it has one; raises ValueError if it is at fault."""
    said = row.get("continuation")
    if columns.text is not None or not (isinstance(row.get("prompt"), dict) and isinstance(said, dict)):
        return None
    text = said.get("text")
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    return Continuation(sound_text(text), _score(said, None, spelled))


def _text(fields: dict[str, Any], column: str | None) -> str:
    if (column or "text") not in fields:
        wanted = '"text" or "prompt"' if column is None else f"column {shown(column)}"
        raise ValueError(f"no {wanted}; found the keys {names_of(fields)}; name one with --set task.data.text=COLUMN")
    return sound_text(fields[column or "text"])


def sound_text(text: Any) -> str:
    """A text unchanged; raises ValueError if it is no string, empty, too long, or if no tokenizer can read it."""
    if not isinstance(text, str):
        raise ValueError(f"expected a text that is a string, found {kind_of(text)}")
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
            f"no column {shown(column)}; found the keys {names_of(fields)}; name one with --set task.data.score=COLUMN"
        )
    return sound_score(fields.get("toxicity", fields.get("score")) if column is None else fields[column], spelled)


def sound_score(score: Any, spelled: bool) -> float | None:
    """A score as a number, None for null or a blank; raises ValueError for any other; `spelled` numbers may be text."""
    if spelled and isinstance(score, str):
        score = _number(score)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
        found = score if isinstance(score, float) else kind_of(score)
        raise ValueError(f"expected a score that is a finite number or null, found {found}")
    return float(score)


def _number(spelled: str) -> float | str | None:
    """The number in a text, None if it is blank; the text itself if it is not a number."""
    try:
        return float(spelled) if spelled.strip() else None
    except ValueError:
        return spelled


def names_of(fields: dict[str, Any]) -> str:
    """The first 20 keys of a row, for an error message."""
    names = [shown(name) for name in fields]
    return ", ".join(names[:20] + ["..."] * (len(names) > 20)) or "none"


def kind_of(value: Any) -> str:
    """The type of a value of a row in words, for an error message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def cut(text: str, words: int) -> str:
    """The first `words` words of a text, with the spaces between them."""
    end = 0
    for n, word in enumerate(re.finditer(r"\S+", text)):
        if n == words:
            return text[:end]
        end = word.end()
    return text


def split_prompts(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    """Split prompts into train, validation and test by the SHA-256 of the text, 80/10/10, sorted by the hash.

    The split of a prompt does not depend on other rows or on their order. Raises EmptySelection if a split is empty.
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
    """The hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def split_of(place: float) -> str:
    """The split of a hash in [0, 1)."""
    names = list(SPLITS)
    for name in names[:-1]:
        if place < SPLITS[name]:
            return name
        place -= SPLITS[name]
    return names[-1]


def held_out(splits: dict[str, list[Prompt]], most: int) -> dict[str, list[Prompt]]:
    """The splits with at most `most` prompts of each kind in validation and in test, the first by hash."""
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
    opened: bool = True,
) -> Prompts:
    """Tokenize prompts with the tokenizer's opening special tokens (BOS for Llama) if `opened`, left-padded: -> [B, P].

    No special token follows a prompt, since the response continues it; a prompt without tokens becomes `bos`, the policy's,
    or else the tokenizer's. Raises PromptTooLong, with the location of the prompt, if prompt and response exceed the
    context; EmptySelection without prompts; BadData if the tokenizer fails.
    """
    import torch

    if not prompts:
        raise EmptySelection("no prompts to tokenize; choose a split or a filter with prompts")
    first = opening(tokenizer) if opened else []
    with refusing("the tokenizer fails on the prompts", "remove the prompt that it cannot read, or use another tokenizer"):
        bare = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    rows = [first + ids or [_bos(tokenizer) if bos is None else bos] for ids in bare]
    _check_lengths({text: len(row) for text, row in zip(prompts, rows, strict=True)}, places, max_new_tokens, context)
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
    raise BadData("a prompt has no tokens, and the tokenizer has neither BOS nor EOS; remove the prompt")


def _check_lengths(lengths: dict[str, int], places: Mapping[str, str], max_new_tokens: int, context: int) -> None:
    limit = context - max_new_tokens
    long = {text: length for text, length in lengths.items() if length > limit}
    if not long:
        return
    where = f"a context of {context} leaves {limit} for the prompt beside {max_new_tokens} new tokens"
    first = next((text for text in long if text in places), None)
    if first is None:  # prompts shipped with the task: the user has no row to change
        raise PromptTooLong(
            f"{len(long)} of {len(lengths)} prompts are too long, one has {max(long.values())} tokens; {where}; lower "
            "task.decoding.max_new_tokens, or choose a model with a longer context"
        )
    more = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
    raise PromptTooLong(
        f"{places[first]}{more}: the prompt has {long[first]} tokens; {where}; shorten or remove the prompt, or lower "
        "task.decoding.max_new_tokens"
    )
