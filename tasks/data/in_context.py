"""Encoding and decoding of a response in the context of its prompt.

Most SentencePiece tokenizers (Llama 2) add a space before a text when they encode it and remove one when they decode it. A
response continues its prompt, so the two are encoded and decoded together. A byte-level BPE adds no space, so responses are
encoded and decoded alone.
"""

from __future__ import annotations

from typing import Any


def stands_alone(tokenizer: Any) -> bool:
    """True if decoding does not depend on the preceding tokens, as for a byte-level BPE."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.decoder).__name__ == "ByteLevel"


def decoded(tokenizer: Any, prompts: list[list[int]], responses: list[list[int]]) -> list[str]:
    """The text that each response adds to the text of its prompt, without special tokens."""
    if stands_alone(tokenizer):
        return tokenizer.batch_decode(responses, skip_special_tokens=True)
    rows = {tuple(row) for row in prompts}
    heads = {row: tokenizer.decode(list(row), skip_special_tokens=True) for row in rows}
    wholes = tokenizer.batch_decode([p + r for p, r in zip(prompts, responses, strict=True)], skip_special_tokens=True)
    return [whole[_shared(heads[tuple(p)], whole) :] for p, whole in zip(prompts, wholes, strict=True)]


def _shared(head: str, whole: str) -> int:
    """The length of the common prefix: all of the prompt, unless it ends within a multi-byte character."""
    if whole.startswith(head):
        return len(head)
    return next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))


def encoded(
    tokenizer: Any, prompts: list[str], responses: list[str], offsets: bool = False
) -> list[tuple[list[int], list[int]]]:
    """The tokens of each response after its prompt and, with `offsets`, the character at which each begins.

    If a token would cross from the prompt into the response, the response is encoded alone. Where that holds for every
    response, one call encodes them all.
    """
    if not stands_alone(tokenizer):
        return [_in_context(tokenizer, p, r, offsets) for p, r in zip(prompts, responses, strict=True)]
    if not responses:
        return []
    found = tokenizer(responses, add_special_tokens=False, return_offsets_mapping=offsets)
    places = found["offset_mapping"] if offsets else [[]] * len(responses)
    return [(ids, [start for start, _ in place]) for ids, place in zip(found["input_ids"], places, strict=True)]


def _in_context(tokenizer: Any, prompt: str, response: str, offsets: bool) -> tuple[list[int], list[int]]:
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=offsets)
    if whole["input_ids"][: len(head)] != head:
        return _parts(tokenizer(response, add_special_tokens=False, return_offsets_mapping=offsets), 0, 0)
    return _parts(whole, len(head), len(prompt))


def _parts(found: Any, tokens: int, characters: int) -> tuple[list[int], list[int]]:
    starts = [max(0, start - characters) for start, _ in found.get("offset_mapping", [])[tokens:]]
    return list(found["input_ids"][tokens:]), starts
