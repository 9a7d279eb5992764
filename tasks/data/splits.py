"""Checks that the splits do not overlap: no prompt in two splits, no 8-gram of words in both training and held-out prompts.

A shared 8-gram indicates a shared source, as in the contamination checks of large corpora (Brown et al. 2020,
arXiv:2005.14165, appendix C, with 8 to 13 words). Words are compared without case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from typing import Any

from harness.api import BadData

from .prompt_files import Prompt

GRAM = 8
HELD_OUT = ("validation", "test")
Splits = dict[str, list[Prompt]]


def grams(text: str) -> set[tuple[str, ...]]:
    """The 8-grams of words of a text, in lower case; empty for a shorter text."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def apart(splits: Splits) -> tuple[Splits, int]:
    """The splits without training prompts that share an 8-gram with a held-out prompt, and the number of those dropped."""
    taken = _grams(p for name in HELD_OUT for p in splits[name])
    kept = [prompt for prompt in splits["train"] if taken.isdisjoint(grams(prompt.text))]
    return splits | {"train": kept}, len(splits["train"]) - len(kept)


def check(splits: Splits) -> dict[str, Any]:
    """The split statistics for the record: prompts per split, and for each pair those in the later that share an 8-gram.

    Raises BadData if a prompt is in two splits; the empty prompt may be in all.
    """
    texts = {name: {p.text for p in split} - {""} for name, split in splits.items()}
    for one, other in combinations(texts, 2):
        if both := texts[one] & texts[other]:
            raise BadData(f"{len(both)} prompts are in both {one} and {other}; expected disjoint splits")
    pairs = {f"{one}-{other}": _overlapping(splits[one], splits[other]) for one, other in combinations(splits, 2)}
    return {"counts": {name: len(split) for name, split in splits.items()}, "shared_prompts": 0, f"shared_{GRAM}_grams": pairs}


def _overlapping(earlier: list[Prompt], later: list[Prompt]) -> int:
    taken = _grams(earlier)
    return sum(not taken.isdisjoint(grams(prompt.text)) for prompt in later)


def _grams(prompts: Iterable[Prompt]) -> set[tuple[str, ...]]:
    return {gram for prompt in prompts for gram in grams(prompt.text)}
