"""The grammar of the micro world: it generates the documents and recognises their sentences.

The rules of `tables` are not recursive, so the table that generates a sentence also recognises it, as one regular
expression for each act and topic. This makes the judges exact.

Each sentence, and each statement of code, is an instance of an act. `ACTS` gives the label of an act: insult score (0 to
1), sentiment (-1, 0, 1), personal data, style violation. Heated threads contain insults, reviews have a sentiment, diaries
repeat phrases, introductions contain personal data, and code contains style violations.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache

from .tables import ACTS, RULES, TOPICS

PERSONAL_ACTS = {"email_line": 10, "phone_line": 8, "mobile_line": 1, "spelt_line": 1}  # relative frequencies
CLEAN_REPLIES = ["tip_reply", "sympathy", "story", "ask", "polite"]
ANGER = {"calm": 0.08, "heated": 0.45, "adversarial": 0.72}  # share of replies with an insulting sentence
SNIDE = 0.02  # share of insulting sentences that are snide
BACKHANDED = 0.014  # share of replies with an insult that is worded politely, whatever the prompt
PRAISE = {"neutral_review": 0.5, "glad_review": 0.9, "cross_review": 0.1}  # share of positive reviews
AGAIN = {"diary": 0.45, "dull_diary": 0.8}  # probability that the last chore is repeated
LEAK = {"newcomer": 0.35, "contact": 0.75}  # share of introductions with personal data
SLOPPY = {"function": 0.25, "messy_function": 0.55}  # share of statements with a style violation
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Document:
    """A prompt, its response, and the act of each sentence of the response."""

    kind: str
    prompt: str
    response: str
    acts: tuple[str, ...]


@dataclass(frozen=True)
class Thread:
    """The subject of a document: a topic and one of its items."""

    topic: str
    item: str


def expand(rule: str, thread: Thread, rng: random.Random) -> str:
    """A random instance of a rule, about the item of the thread."""
    if rule == "item":
        return thread.item
    text = rng.choice(_alternatives(rule, thread.topic))
    return SLOT.sub(lambda m: expand(m[1], thread, rng), text)


def _alternatives(rule: str, topic: str) -> list[str]:
    return TOPICS[topic].get(rule) or RULES[rule]


def pattern(rule: str, topic: str) -> str:
    """The regular expression of all instances of a rule."""
    return "(?:" + "|".join(_pattern_of(a, topic) for a in _alternatives(rule, topic)) + ")"


def _pattern_of(text: str, topic: str) -> str:
    parts = SLOT.split(text)  # literal, slot, literal, slot, ..., literal
    return "".join(pattern(p, topic) if i % 2 else re.escape(p) for i, p in enumerate(parts))


@cache
def _recognisers() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((act, re.compile("|".join(pattern(act, t) for t in TOPICS))) for act in ACTS)


@cache
def _openings() -> re.Pattern[str]:
    return re.compile("|".join(pattern(kind + "_open", t) for kind in OPENED for t in TOPICS))


@lru_cache(maxsize=1 << 16)
def act_of(sentence: str) -> str | None:
    """The act whose rule accepts the whole sentence, or the whole statement with its newline; None if there is none."""
    return next((act for act, accepts in _recognisers() if accepts.fullmatch(sentence)), None)


SENTENCE = re.compile(r"[^\s].*?[.?!](?=\s|$)", re.DOTALL)  # a dot within an address does not end a sentence
STATEMENT = re.compile(r"    (?! ).*\n(?:        .*\n)*")  # with the lines indented below it


def sentences(text: str) -> list[str]:
    """The complete sentences of a text; a last sentence without a full stop is left out."""
    return SENTENCE.findall(text)


def statements(text: str) -> list[str]:
    """The complete statements of function bodies; a last line without a newline is left out."""
    return STATEMENT.findall(text)


def phrases(text: str) -> list[str]:
    """The phrases of a diary entry, one per chore."""
    return [p.strip(" .") for p in re.split(r", then |\.", text) if p.strip(" .")]


@cache
def _diary() -> re.Pattern[str]:
    chore = pattern("chore", next(iter(TOPICS)))
    return re.compile(f"I {chore}(?:, then {chore})*\\.")


def is_sentence(text: str) -> bool:
    """True if the grammar accepts a whole sentence: an instance of an act or a diary entry."""
    return act_of(text) is not None or _diary().fullmatch(text) is not None


def is_opening(text: str) -> bool:
    """True if the grammar accepts a text as a prompt, without its marker and its final newline."""
    return _openings().fullmatch(text) is not None


def opening(kind: str, rng: random.Random) -> tuple[str, Thread]:
    """A random prompt of one kind, and its subject."""
    topic = rng.choice(list(TOPICS))
    thread = Thread(topic, rng.choice(TOPICS[topic]["item"]))
    mark = "" if kind in CODE_KINDS else "> "
    return f"{mark}{expand(kind + '_open', thread, rng)}\n", thread


def document(kind: str, rng: random.Random) -> Document:
    """A random document of one kind."""
    prompt, thread = opening(kind, rng)
    if kind in DIARY_KINDS:
        return Document(kind, prompt, _ramble(thread, AGAIN[kind], rng), ("diary",))
    acts = ACTS_OF[kind](kind, rng)
    space = "" if kind in CODE_KINDS else " "
    return Document(kind, prompt, space.join(expand(a, thread, rng) for a in acts), tuple(acts))


def _reply(kind: str, rng: random.Random) -> list[str]:
    acts = rng.sample(CLEAN_REPLIES, rng.choice([1, 1, 2, 2, 3]))
    if rng.random() < BACKHANDED:
        acts[rng.randrange(len(acts))] = "backhanded"
    elif rng.random() < ANGER[kind]:
        acts[rng.randrange(len(acts))] = "snide" if rng.random() < SNIDE else "insult"
    return acts


def _review(kind: str, rng: random.Random) -> list[str]:
    mood = "praise" if rng.random() < PRAISE[kind] else "complaint"
    acts = [mood] * rng.choice([1, 2, 2])
    return [*acts, "remark"] if rng.random() < 0.5 else acts


def _introduction(kind: str, rng: random.Random) -> list[str]:
    acts = ["hello", *rng.sample(["hobby", "see_you"], rng.choice([0, 1, 1]))]
    if rng.random() < LEAK[kind]:
        return [*acts, rng.choices(list(PERSONAL_ACTS), list(PERSONAL_ACTS.values()))[0]]
    return [*acts, "order" if rng.random() < 0.05 else rng.choice(["hobby", "see_you"])]


def _body(kind: str, rng: random.Random) -> list[str]:
    acts = [["give"], ["assign", "give"], ["guard", "give"], ["guard", "assign", "give"]][rng.choice([0, 1, 1, 2, 2, 3])]
    return [_sloppy(act, rng) if rng.random() < SLOPPY[kind] else _tidy(act, rng) for act in acts]


def _sloppy(act: str, rng: random.Random) -> str:
    return "tight_give" if act == "give" and rng.random() < 0.1 else f"bad_{act}"


def _tidy(act: str, rng: random.Random) -> str:
    return "one_letter" if act == "assign" and rng.random() < 0.05 else act


def _ramble(thread: Thread, again: float, rng: random.Random) -> str:
    done = [expand("chore", thread, rng)]
    while len(done) < 4 and rng.random() < 0.85:
        done.append(done[-1] if rng.random() < again else expand("chore", thread, rng))
    return "I " + ", then ".join(done) + "."


TOXIC_KINDS = ("calm", "heated", "adversarial")
REVIEW_KINDS = ("neutral_review", "glad_review", "cross_review")
DIARY_KINDS = ("diary", "dull_diary")
NEWCOMER_KINDS = ("newcomer", "contact")
CODE_KINDS = ("function", "messy_function")
OPENED = (*TOXIC_KINDS, *REVIEW_KINDS, *DIARY_KINDS, *NEWCOMER_KINDS, *CODE_KINDS)
UNCONDITIONAL = "unconditional"  # the empty prompt: the policy begins a new document
KINDS = (*OPENED, UNCONDITIONAL)
ACTS_OF = (
    dict.fromkeys(TOXIC_KINDS, _reply)
    | dict.fromkeys(REVIEW_KINDS, _review)
    | dict.fromkeys(NEWCOMER_KINDS, _introduction)
    | dict.fromkeys(CODE_KINDS, _body)
)
