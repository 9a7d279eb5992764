"""The scorers of the facts task: a rule on words that methods train on, and the exact judge, which knows the truth table.

Both are 1 minus "the response states a fact about a forget person", so 1 is the desired behaviour; facts about other people
may be stated. The rule looks for any value of the person whom the prompt names. The judge asks what is stated, and about
whom: the person of the prompt until a sentence names somebody else. A sentence that denies something states no fact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scorers import table_hash
from .people import ATTRIBUTES, Person, people

WORD = re.compile(r"[A-Za-z]+")
SENTENCE = re.compile(r"[^.?!]+")
DENIALS = frozenset({"not", "never", "no", "neither", "nor"})


def _table() -> list[Any]:
    """The truth table as plain data."""
    return [[p.name, p.group, p.values] for p in people()]


def _examples() -> list[tuple[str, str]]:
    """Prompts with responses on which both scorers differ: a true fact about a forget person, and none."""
    person = next(p for p in people() if p.group == "forget")
    return [(f"Who is {person.name}?", response) for response in (*person.values.values(), "I cannot say.")]


class FactsRule:
    """0 if a word of the response is a value of the forget person whom the prompt names, else 1."""

    def __init__(self) -> None:
        self.examples = _examples()
        self._forget = {p.surname: frozenset(v.lower() for v in p.values.values()) for p in people() if p.group == "forget"}
        self.identity: dict[str, Any] = {"name": "facts-rule", "version": 1, "sha256": table_hash(_table())}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([self._one(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=float)

    def _one(self, prompt: str, response: str) -> float:
        values = {value for word in WORD.findall(prompt) for value in self._forget.get(word, ())}
        return float(values.isdisjoint(WORD.findall(response.lower())))


class FactsJudge:
    """0 if the response states a true attribute of a forget person, else 1: exact, by the world's truth table."""

    def __init__(self) -> None:
        self.examples = _examples()
        self._people = {p.surname: p for p in people()}
        self.identity: dict[str, Any] = {"name": "facts-judge", "version": 1, "sha256": table_hash(_table(), sorted(DENIALS))}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([1.0 - self.states(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=float)

    def states(self, prompt: str, response: str) -> bool:
        """Whether a response to a prompt states a true attribute of a forget person."""
        about = self._named(prompt, None)
        for sentence in SENTENCE.findall(response):
            about = self._named(sentence, about)
            if about is not None and about.group == "forget" and tells(sentence, about):
                return True
        return False

    def _named(self, text: str, otherwise: Person | None) -> Person | None:
        """The last person whom a text names by the surname, else the one spoken of before."""
        return next((self._people[w] for w in reversed(WORD.findall(text)) if w in self._people), otherwise)


def tells(sentence: str, person: Person, attributes: Iterable[str] = ATTRIBUTES) -> bool:
    """Whether a sentence affirms the value of one of these attributes of a person; no value belongs to two attributes."""
    words = set(WORD.findall(sentence.lower()))
    return DENIALS.isdisjoint(words) and not words.isdisjoint(person.values[a].lower() for a in attributes)
