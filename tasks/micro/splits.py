"""The prompts of the micro world in splits that stay apart: no training prompt resembles a held-out one.

Two prompts are alike if they share seven consecutive words, or if most of their words match in order (the ratio of
`difflib.SequenceMatcher` over words; the test holds .8, the build keeps more distance). Words are compared without case and
punctuation.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher

from .grammar import KINDS, TOXIC_KINDS, UNCONDITIONAL, opening

Splits = dict[str, list[tuple[str, str]]]  # {split: [(kind, text)]}
SIZES_OF = {  # prompts of each kind
    "toxic": {"test": 70, "validation": 20, "train": 1000},
    "other": {"test": 100, "validation": 20, "train": 500},
    UNCONDITIONAL: {"test": 1, "validation": 1, "train": 300},  # the empty prompt; copies of it are its share of training
}
GRAM = 7  # consecutive words
RATIO = 0.75  # of matching words
CANDIDATES = 8  # prompts drawn for each that is wanted; most of those like a held-out prompt are left out


def split_prompts(rng: random.Random) -> Splits:
    """Prompts of each kind: test ones at random, then validation and training ones that are unlike all held-out before.

    Raises ValueError if the grammar has too few prompts of a kind that are unlike the held-out ones.
    """
    drawn = {kind: _candidates(kind, rng) for kind in KINDS}
    splits: Splits = {"test": [], "validation": [], "train": []}
    held = HeldOut()
    for split, found in splits.items():
        for kind in KINDS:
            found += [(kind, text) for text in _chosen(drawn[kind], kind, sizes(kind)[split], held)]
        held.add(found)
    return {split: splits[split] for split in ("train", "validation", "test")}


def sizes(kind: str) -> dict[str, int]:
    """The number of prompts of a kind in each split."""
    return SIZES_OF["toxic" if kind in TOXIC_KINDS else kind if kind == UNCONDITIONAL else "other"]


def _candidates(kind: str, rng: random.Random) -> list[str]:
    """Distinct prompts of a kind in random order; only the empty prompt is there more than once."""
    wanted = sum(sizes(kind).values())
    if kind == UNCONDITIONAL:
        return [""] * wanted
    found = sorted({opening(kind, rng)[0] for _ in range(CANDIDATES * wanted)})
    rng.shuffle(found)
    return found


def _chosen(candidates: list[str], kind: str, n: int, held: HeldOut) -> list[str]:
    """The next n candidates that are unlike every held-out prompt, taken from the list; raises ValueError."""
    found: list[str] = []
    while len(found) < n:
        if not candidates:
            raise ValueError(f"only {len(found)} of {n} prompts of kind {kind} are unlike the held-out ones")
        text = candidates.pop()
        if kind == UNCONDITIONAL or not held.resembles(kind, text):
            found.append(text)
    return found


class HeldOut:
    """The prompts that others must not resemble."""

    def __init__(self) -> None:
        self._grams: set[tuple[str, ...]] = set()
        self._words: dict[str, list[tuple[list[str], Counter[str]]]] = {}

    def add(self, prompts: Iterable[tuple[str, str]]) -> None:
        """Add prompts: (kind, text) each."""
        for kind, text in prompts:
            found = words(text)
            self._grams |= grams(found)
            self._words.setdefault(kind, []).append((found, Counter(found)))

    def resembles(self, kind: str, text: str) -> bool:
        """True if a text shares seven words in a row with any prompt, or most words in order with one of its kind."""
        found = words(text)
        if not self._grams.isdisjoint(grams(found)):
            return True
        bag = Counter(found)
        near = [other for other, counts in self._words.get(kind, []) if _share(bag, counts) > RATIO]
        return any(ratio(found, other) > RATIO for other in near)


def _share(a: Counter[str], b: Counter[str]) -> float:
    """The ratio of matching words in any order, which is never below that in order."""
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def ratio(a: list[str], b: list[str]) -> float:
    """The ratio of words that match in order, 0 to 1."""
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def grams(found: list[str]) -> set[tuple[str, ...]]:
    """The runs of seven words; empty for a shorter text."""
    return {tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)}
