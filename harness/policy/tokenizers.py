"""Read a model's tokenizer, and refuse one that no text should be given to.

What is tried is a short text: a pattern that fails on other texts, or that lets only a rare character grow, is not
found by it. `docs/reference/architectures.md` says what is left.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import BadData, refusing
from harness.core.files import read_json
from harness.core.hashing import is_gguf

from .weights import alone, quietly, refuse_what_leads_away

GROWTH = 100
"""The most characters, or tokens, that a tokenizer may make of one."""
PROBE = string.printable + "é漢😀" + "".join(x * 40 for x in "aA0 .!-_\n")
"""A text with what the patterns of tokenizers tell apart, and with runs, which a pattern that backtracks fails on."""

SPECIAL = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
"""Special tokens by their names in transformers and in a .gguf file."""


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder or a .gguf file; raises BadData where there is none, or none that can read a short text."""
    if is_gguf(folder):
        with alone(folder) as source, _without_panics():
            todo = "copy the file again, or choose one with a tokenizer"
            return _as_in_file(folder, _checked(folder, source.folder, todo, gguf_file=source.name))
    refuse_what_leads_away(folder)
    with _without_panics():
        _check_growth(folder / "tokenizer.json")
        return _checked(folder, folder, "copy tokenizer.json and tokenizer_config.json beside the weights")


def _checked(folder: Path, source: Path, todo: str, **more: Any) -> Any:
    """The tokenizer that transformers reads from `source`, called `folder` in errors."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # a .gguf file names no class of its tokenizer, and AutoTokenizer would parse the whole file once more to find that out
    kind = PreTrainedTokenizerFast if more else AutoTokenizer
    with refusing(f"no readable tokenizer in {folder}", todo), quietly():
        tokenizer = kind.from_pretrained(source, local_files_only=True, trust_remote_code=False, **more)
    # without its files a tokenizer loads all the same, and knows its special tokens only
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise BadData(f"no tokenizer in {folder}, only its special tokens; {todo}")
    with refusing(f"the tokenizer in {folder} cannot read a text and write it again", "use another tokenizer"):
        tokens = tokenizer(PROBE, verbose=False).input_ids
        text = tokenizer.decode(tokens)
    if max(len(tokens), len(text)) > GROWTH * len(PROBE):
        raise BadData(_grows(folder))
    return tokenizer


def _as_in_file(path: Path, tokenizer: Any) -> Any:
    """The tokenizer of a .gguf file with what some releases of transformers do not take from the file.

    That is its special tokens, its chat template and how SmolLM's splits a text: each digit alone, where GPT-2's would also
    part the line ends before a number.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers.integrations.gguf.reader import read_gguf_metadata

    said = read_gguf_metadata(str(path))[0]
    for ours, theirs in SPECIAL:
        if (token := said.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            setattr(tokenizer, f"{ours}_token", tokenizer.convert_ids_to_tokens(token))
    tokenizer.chat_template = said.get("tokenizer.chat_template")
    if said.get("tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


@contextmanager
def _without_panics() -> Iterator[None]:
    """Nothing on the process's standard error: a library in Rust writes there when it panics, beside what it raises."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_growth(path: Path) -> None:
    """Give a short text to one normalizer after another, before the tokenizer gives it to all of them at once."""
    if not path.is_file():
        return
    steps = list(_steps(read_json(path).get("normalizer")))
    text = PROBE + "".join(_literals(steps))[: len(PROBE)]
    longest = GROWTH * len(text)
    for step in steps:
        if len(step.get("content", "")) > longest:
            raise BadData(_grows(path))
        with refusing(f"the tokenizer in {path} has a normalizer that fails", "use another tokenizer"):
            text = _normalizer(step).normalize_str(text)
        if len(text) > longest:
            raise BadData(_grows(path))


def _steps(normalizer: Any) -> Iterator[dict[str, Any]]:
    """The normalizers in order, those of sequences among them."""
    waiting = [normalizer]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict) and step.get("type") == "Sequence":
            waiting += reversed(step.get("normalizers", []))
        elif isinstance(step, dict):
            yield step


def _literals(steps: list[dict[str, Any]]) -> Iterator[str]:
    """The texts that normalizers replace."""
    for step in steps:
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            yield pattern["String"]


def _normalizer(step: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": step, "model": model})).normalizer


def _grows(where: Path) -> str:
    return f"the tokenizer in {where} makes more than {GROWTH} characters of one; expected text that stays as long as it is"
