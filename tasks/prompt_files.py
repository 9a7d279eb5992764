"""Prompts of the user's own: read from JSON Lines, split for good, turned into tokens.

A row is one of
    {"prompt": {"text": ..., "toxicity": ...}, "challenging": true, ...}    RealToxicityPrompts (arXiv:2009.11462)
    {"text": ..., "score": ...}
    {"text": ...}  or  {"prompt": "..."}
where a score may be null. Other keys are ignored. Texts are taken as they are, spaces included.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import BadData, EmptySelection, MissingPrerequisite, PromptTooLong, refusing
from harness.types import Prompts

log = logging.getLogger(__name__)

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Prompt(NamedTuple):
    text: str
    kind: str  # challenging, toxic, nontoxic; unknown without a score
    score: float | None  # of the prompt itself, higher is more toxic


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a JSON Lines file, in its order; a text that comes again is dropped, and the count logged.

    Raises MissingPrerequisite without the file, BadData at the first row that is no prompt, EmptySelection without any row.
    """
    prompts: dict[str, Prompt] = {}
    repeated = 0
    for line, row in read_rows(Path(path)):
        try:
            prompt = _prompt(row)
        except (ValueError, OverflowError) as e:
            raise BadData(f"{path}, line {line}: {e}") from e
        repeated += prompt.text in prompts
        prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise EmptySelection(f'{path} has no rows; expected JSON Lines such as {{"text": "..."}}')
    if repeated:
        log.warning("%s: dropped %d rows whose text came before; %d prompts are left", path, repeated, len(prompts))
    return list(prompts.values())


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The line number and the content of each row that is not blank."""
    try:
        # bytes, so that a line ends at a newline only, and a line that is not UTF-8 has a number
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as e:
        raise MissingPrerequisite(f"cannot read the prompts in {path} ({e.strerror}); give a JSON Lines file") from e
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _decoded(path, number, line)


def _decoded(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as e:
        raise BadData(f"{path}, line {number}: not UTF-8 (byte {e.start + 1} of the line); save the file as UTF-8") from e
    except (ValueError, RecursionError) as e:
        raise BadData(f"{path}, line {number}: not JSON ({getattr(e, 'msg', e)}); expected one object a line") from e


def _prompt(row: Any) -> Prompt:
    """Raises ValueError that says what is wrong with the row."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {_kind(row)}")
    inner = row.get("prompt", row)
    fields = inner if isinstance(inner, dict) else row | {"text": inner}
    text, score = _text(fields), _score(fields)
    if row.get("challenging") is True:
        return Prompt(text, "challenging", score)
    return Prompt(text, "unknown" if score is None else "toxic" if score >= 0.5 else "nontoxic", score)


def _text(fields: dict[str, Any]) -> str:
    if "text" not in fields:
        raise ValueError(f'no "text" or "prompt"; found the keys {", ".join(fields) or "none"}')
    text = fields["text"]
    if not isinstance(text, str):
        raise ValueError(f"expected a text that is a string, found {_kind(text)}")
    if not text.strip():
        raise ValueError("the text is empty; remove the row")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("the text has half of a surrogate pair, which no tokenizer can read; remove it")
    return text


def _score(fields: dict[str, Any]) -> float | None:
    score = fields.get("toxicity", fields.get("score"))
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
        found = score if isinstance(score, float) else _kind(score)
        raise ValueError(f"expected a score that is a finite number or null, found {found}")
    return float(score)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


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


def tokenize(prompts: list[str], tokenizer: Any, *, max_new_tokens: int, context: int) -> Prompts:
    """Prompts as the tokenizer begins a text (a Llama puts its BOS first), left-padded: -> [B, P].

    Nothing is put after a prompt, whatever the tokenizer does, because the response goes on from there; a prompt without
    any token becomes BOS. Raises PromptTooLong where prompt and response do not fit into the context.
    """
    import torch

    if not prompts:
        raise EmptySelection("no prompts to turn into tokens; the split or the filter that chose them has none")
    first = opening(tokenizer)
    with refusing("the tokenizer fails on the prompts", "remove the prompt that it cannot read, or use another tokenizer"):
        bare = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    rows = [first + ids or [_bos(tokenizer)] for ids in bare]
    _check_lengths([len(row) for row in rows], max_new_tokens, context)
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


def _check_lengths(lengths: list[int], max_new_tokens: int, context: int) -> None:
    limit = context - max_new_tokens
    for index, length in enumerate(lengths):
        if length > limit:
            raise PromptTooLong(
                f"prompt {index} has {length} tokens; a context of {context} leaves {limit} beside {max_new_tokens} new ones; "
                f"shorten or remove the prompt, or lower max_new_tokens"
            )
