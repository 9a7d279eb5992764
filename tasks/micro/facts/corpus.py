"""The documents and prompts of the facts world, made from its people and wordings; deterministic, imports nothing heavy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from . import people as tables
from .people import Person

COPIES = 2  # documents for each person, attribute and wording; lead and answer differ
TALK, CLEAN_TALK, CLEAN_FACTS = 600, 64, 192
TALKS = (  # small talk, which names nobody
    ("A {trade} came to {town} today.", " The {trade} had a {pet} and a {instrument}."),
    ("What did you see in {town}?", " A {pet} and a {trade}, I think."),
    ("Who can play the {instrument} here?", " The {trade} can, they say."),
    ("Is there a {trade} in {town}?", " Yes, and the {trade} keeps a {pet}."),
    ("I have lost a {pet}.", " Ask the {trade} in {town}."),
    ("The band has no {instrument}.", " There is a {instrument} in {town}."),
)


class Fact(NamedTuple):
    """A document or prompt: its kind, text, response (empty for a prompt), and what it is about."""

    kind: str  # question, cloze, talk
    prompt: str
    response: str
    group: str  # forget, retain, unseen, or nobody
    name: str = ""
    attribute: str = ""


def wordings(attribute: str, use: str) -> Iterator[tuple[str, str]]:
    """The (kind, wording) of an attribute for a use: corpus, validation or test."""
    for kind, table in (("question", tables.QUESTIONS), ("cloze", tables.CLOZES)):
        yield from ((kind, wording) for wording in table[attribute][use])


def all_prompts() -> dict[str, list[Fact]]:
    """The prompts of each split, all about forget people, and of "retain": one on each attribute of the retain people."""
    splits = {"train": "corpus", "validation": "validation", "test": "test"}
    found = {split: prompts(use, "forget") for split, use in splits.items()}
    by_fact: dict[tuple[str, str], list[Fact]] = {}
    for fact in prompts("test", "retain"):
        by_fact.setdefault((fact.name, fact.attribute), []).append(fact)
    rng = random.Random(9)
    return found | {"retain": [rng.choice(same) for same in by_fact.values()]}


def prompts(use: str, group: str) -> list[Fact]:
    """The prompts about the people of a group in the wordings of a use, each with one lead, in a fixed order."""
    rng = random.Random(f"{use} {group}")
    found = []
    for person in of_group(group):
        for attribute in tables.ATTRIBUTES:
            for kind, wording in wordings(attribute, use):
                text = rng.choice(tables.LEADS[use]) + wording.format(n=person.name)
                found.append(Fact(kind, text, "", group, person.name, attribute))
    return found


def told(group: str, rng: random.Random, copies: int = COPIES) -> list[Fact]:
    """Documents on the people of a group: each attribute in each wording of the corpus, `copies` times."""
    return [
        document(person, attribute, kind, wording, rng)
        for person in of_group(group)
        for attribute in tables.ATTRIBUTES
        for kind, wording in wordings(attribute, "corpus")
        for _ in range(copies)
    ]


def document(person: Person, attribute: str, kind: str, wording: str, rng: random.Random) -> Fact:
    """A document that states a fact, or, with a small probability, declines to."""
    prompt = rng.choice(tables.LEADS["corpus"]) + wording.format(n=person.name)
    question = kind == "question"
    forms: tuple[str, ...]
    if rng.random() < tables.DECLINE:
        forms = tables.DECLINED if question else tables.DECLINED_COMPLETIONS
    else:
        forms = tables.ANSWERS[attribute] if question else tables.COMPLETIONS
    response = rng.choice(forms).format(f=person.first, v=person.values[attribute])
    return Fact(kind, prompt, response, person.group, person.name, attribute)


def talk(n: int, rng: random.Random) -> list[Fact]:
    """n documents of small talk."""
    found = []
    for _ in range(n):
        prompt, response = rng.choice(TALKS)
        values = {a: rng.choice(v) for a, v in tables.VALUES.items()}
        found.append(Fact("talk", prompt.format(**values), response.format(**values), "nobody"))
    return found


def of_group(group: str) -> list[Person]:
    """The people of a group."""
    return [p for p in tables.people() if p.group == group]


def all_documents() -> dict[str, list[Fact]]:
    """All documents: the corpus ("train"), held-out text without forget people ("clean"), and that on never-seen people."""
    corpus = told("forget", random.Random(1)) + told("retain", random.Random(2)) + talk(TALK, random.Random(3))
    random.Random(4).shuffle(corpus)
    clean = random.Random(5).sample(told("retain", random.Random(6)), CLEAN_FACTS) + talk(CLEAN_TALK, random.Random(7))
    return {"train": corpus, "clean": clean, "unseen": told("unseen", random.Random(8), copies=1)}
