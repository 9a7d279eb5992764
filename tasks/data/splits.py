"""Whether the splits keep apart: no prompt in two of them, no eight words in a row that train and held-out prompts share.

Eight words are long enough that sharing them means a shared source, as in the contamination checks of large corpora (Brown et
al. 2020, arXiv:2005.14165, appendix C, with 8 to 13). Words are compared without case and punctuation.
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
    """Every eight words in a row, in lower case; none in a shorter text."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def apart(splits: Splits) -> tuple[Splits, int]:
    """The splits without the training prompts that share eight words in a row with a held-out one, and how many those were."""
    taken = _grams(p for name in HELD_OUT for p in splits[name])
    kept = [prompt for prompt in splits["train"] if taken.isdisjoint(grams(prompt.text))]
    return splits | {"train": kept}, len(splits["train"]) - len(kept)


def check(splits: Splits) -> dict[str, Any]:
    """What a record says of its prompts: how many there are, and how many of a split share eight words with an earlier one.

    Raises BadData where a prompt is in two splits; the prompt without words is everybody's.
    """
    texts = {name: {p.text for p in split} - {""} for name, split in splits.items()}
    for one, other in combinations(texts, 2):
        if both := texts[one] & texts[other]:
            raise BadData(f"{len(both)} prompts are both {one} and {other} prompts; expected splits that share none")
    pairs = {f"{one}-{other}": _overlapping(splits[one], splits[other]) for one, other in combinations(splits, 2)}
    return {"counts": {name: len(split) for name, split in splits.items()}, "shared_prompts": 0, f"shared_{GRAM}_grams": pairs}


def _overlapping(earlier: list[Prompt], later: list[Prompt]) -> int:
    taken = _grams(earlier)
    return sum(not taken.isdisjoint(grams(prompt.text)) for prompt in later)


def _grams(prompts: Iterable[Prompt]) -> set[tuple[str, ...]]:
    return {gram for prompt in prompts for gram in grams(prompt.text)}
