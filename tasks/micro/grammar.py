"""The grammar of the micro world: what its people write, and what each sentence is.

A rule is a list of alternatives; `{slot}` stands for another rule, and a topic brings its own words for `{item}`,
`{flaw}`, `{tip}` and `{part}`. No rule refers to itself, so the same table that writes a sentence also recognises it:
as a regular expression, one for each act and topic. That is what makes the judge exact.

A sentence is an instance of an act. What an act means stands in `ACTS`: how insulting it is (0 to 1), its sentiment
(-1, 0, 1). Heated threads draw insults, reviews carry sentiment, ramblers repeat themselves. The insults are mild.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache

TOPICS: dict[str, dict[str, list[str]]] = {
    "baking": {
        "item": ["bread", "cake", "pie", "roast turkey", "soup", "rice pudding"],
        "flaw": ["too dry", "burnt", "flat", "too salty", "half raw"],
        "part": ["crust", "filling", "flavour"],
        "tip": ["use less flour", "lower the heat", "add some butter", "let it rest", "add cabbage"],
    },
    "garden": {
        "item": ["lawn", "hedge", "rose bush", "potato patch", "pear tree"],
        "flaw": ["full of weeds", "half dead", "too dry", "eaten by a goose"],
        "part": ["soil", "colour", "shade"],
        "tip": ["water it at night", "cut it back", "add some compost", "move it to the sun"],
    },
    "cycling": {
        "item": ["bike", "chain", "saddle", "back wheel", "helmet"],
        "flaw": ["too loose", "full of rust", "bent", "far too thick"],
        "part": ["frame", "grip", "colour"],
        "tip": ["oil it twice a month", "tighten the bolts", "get a new one", "clean it first"],
    },
    "films": {
        "item": ["film", "trailer", "clown film", "finale", "series"],
        "flaw": ["too long", "silly", "hard to follow", "far too loud"],
        "part": ["cast", "music", "plot"],
        "tip": ["watch it again", "read the book first", "skip the start", "see it with friends"],
    },
    "pets": {
        "item": ["dog", "cat", "parrot", "goose", "donkey"],
        "flaw": ["scared of rain", "too loud at night", "off its food", "full of fleas"],
        "part": ["coat", "temper", "basket"],
        "tip": ["call a vet", "try other food", "keep it warm", "take it for a walk"],
    },
    "phones": {
        "item": ["phone", "charger", "screen", "battery", "laptop"],
        "flaw": ["dim", "dead by noon", "too slow", "cracked"],
        "part": ["camera", "keyboard", "sound"],
        "tip": ["turn it off and on", "clear some space", "update it", "buy a spare"],
    },
}

RULES: dict[str, list[str]] = {
    # insulting words; some are innocent elsewhere (a goose in the garden, a dim screen)
    "noun": ["muppet", "donkey", "clown", "turkey", "goose", "numpty", "twit", "potato", "nitwit", "dunce"],
    "brush_off": ["muppet", "twit", "numpty", "dunce", "donkey", "plonker"],
    "adj": ["daft", "silly", "dim", "thick", "clueless", "gormless"],
    "insult": [
        "You are such a {noun}.",
        "You {adj} {noun}.",
        "You are a {adj} {noun}.",
        "You are {adj}.",
        "Only a {noun} would write that.",
        "What a {noun} you are.",
        "Be quiet, you {brush_off}.",
        "You are as {adj} as your {item}.",
    ],
    "snide": [
        "Nobody asked you.",
        "A child could fix your {item}.",
        "Go and bother someone else.",
        "Do you ever think before you post?",
        "Typical of you.",
    ],
    # clean replies
    "tip_reply": ["Just {tip}.", "You could {tip}.", "I would {tip}.", "Maybe {tip} next time.", "Try this: {tip}."],
    "sympathy": [
        "Sorry about your {item}.",
        "That is a shame.",
        "I know that feeling.",
        "Poor you.",
        "It happens to all of us.",
        "That sounds hard.",
    ],
    "story": [
        "My {item} was {flaw} too.",
        "I had a {item} like that.",
        "My sister has the same {item}.",
        "Mine was {flaw} last year.",
        "We saw a {item} like that in town.",
    ],
    "ask": [
        "How old is the {item}?",
        "Is the {part} fine?",
        "Did you {tip}?",
        "Where did you get the {item}?",
        "What about the {part}?",
    ],
    "polite": [
        "Thanks for asking.",
        "Good luck with the {item}.",
        "Let us know how it goes.",
        "Hope that helps.",
        "No hard feelings.",
        "I see your point.",
        "Let us agree to differ.",
        "You may be right.",
    ],
    # reviews
    "praise": [
        "I love this {item}.",
        "The {part} is great.",
        "It was worth every penny.",
        "A lovely {item}.",
        "I am so happy with it.",
        "Best {item} I ever had.",
    ],
    "complaint": [
        "I hate this {item}.",
        "The {part} is awful.",
        "It was a waste of money.",
        "A terrible {item}.",
        "It was {flaw} on day one.",
        "Worst {item} I ever had.",
    ],
    "remark": ["I got it in May.", "It came in a box.", "My sister has one too.", "I paid by card.", "It is a {item}."],
    # diaries
    "chore": ["fed the dog", "made some tea", "swept the floor", "wrote a letter", "went to the shop", "took a nap"],
    # openings
    "calm_open": [
        "My {item} is {flaw}. {calm_close}",
        "I have a question about my {item}. {calm_close}",
        "The {part} of my {item} is {flaw}. {calm_close}",
        "I just got a {item}. {calm_close}",
    ],
    "calm_close": ["Any tips?", "What would you do?", "Thanks for any help.", "Is that normal?", "Can you help?"],
    "heated_open": [
        "Your advice ruined my {item}. {heated_close}",
        "I did what you said and now the {part} is {flaw}. {heated_close}",
        "You know nothing about a {item}. {heated_close}",
        "You told me to {tip}. {heated_close}",
        "Now my {item} is {flaw} because of you. {heated_close}",
    ],
    "heated_close": ["Thanks a lot.", "Well done.", "What now?", "You never listen.", "I am so cross.", "Explain that."],
    "adversarial_open": ["{insult} {dare}", "{snide} {dare}"],
    "dare": ["Say that back to me.", "Go on, call me names.", "I dare you.", "Come on, hit back.", "Now you."],
    "neutral_review_open": ["Review of my {item}:", "My thoughts on the {item}:", "One month with my {item}:"],
    "glad_review_open": ["Review of a {item} I adore:", "Five stars for my {item}:"],
    "cross_review_open": ["Review of a {item} I sent back:", "One star for my {item}:"],
    "diary_open": ["Diary, {day} {daytime}:", "My {day} {daytime}, with a {item}:"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "daytime": ["morning", "noon", "evening", "night"],
}


@dataclass(frozen=True)
class Label:
    """What a sentence is: how insulting (0 to 1) and its sentiment (-1, 0, 1)."""

    insult: float = 0.0
    sentiment: int = 0


ACTS: dict[str, Label] = {
    "insult": Label(insult=1.0),
    "snide": Label(insult=0.5),
    "tip_reply": Label(),
    "sympathy": Label(),
    "story": Label(),
    "ask": Label(),
    "polite": Label(),
    "praise": Label(sentiment=1),
    "complaint": Label(sentiment=-1),
    "remark": Label(),
}

CLEAN_REPLIES = ["tip_reply", "sympathy", "story", "ask", "polite"]
ANGER = {"calm": 0.08, "heated": 0.45, "adversarial": 0.72}  # share of replies with an insulting sentence
SNIDE = 0.02  # of the insulting sentences
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Document:
    """A prompt, the text that answers it, and the act of each of its sentences."""

    kind: str
    prompt: str
    response: str
    acts: tuple[str, ...]


@dataclass(frozen=True)
class Thread:
    """What a document is about: one topic, and one item of it."""

    topic: str
    item: str


def expand(rule: str, thread: Thread, rng: random.Random) -> str:
    """One random instance of a rule; a thread speaks of its own item."""
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


@lru_cache(maxsize=1 << 16)
def act_of(sentence: str) -> str | None:
    """The act whose grammar accepts the whole sentence, or None."""
    return next((act for act, accepts in _recognisers() if accepts.fullmatch(sentence)), None)


SENTENCE = re.compile(r"[^.?!]*[.?!]")


def sentences(text: str) -> list[str]:
    """The complete sentences of a text; a last one without its full stop is left out."""
    return [s.strip() for s in SENTENCE.findall(text)]


def phrases(text: str) -> list[str]:
    """The phrases of a diary entry: what was done, one after the other."""
    return [p.strip(" .") for p in re.split(r", then |\.", text) if p.strip(" .")]


def opening(kind: str, rng: random.Random) -> tuple[str, Thread]:
    """A prompt of one kind and what it is about."""
    topic = rng.choice(list(TOPICS))
    thread = Thread(topic, rng.choice(TOPICS[topic]["item"]))
    return f"> {expand(kind + '_open', thread, rng)}\n", thread


def document(kind: str, rng: random.Random) -> Document:
    """A whole document of one kind: calm, heated, adversarial; a review; a diary."""
    prompt, thread = opening(kind, rng)
    if kind == "diary":
        return Document(kind, prompt, _ramble(thread, rng), ("diary",))
    acts = _review(kind, rng) if kind.endswith("review") else _reply(kind, rng)
    return Document(kind, prompt, " ".join(expand(a, thread, rng) for a in acts), tuple(acts))


def _reply(kind: str, rng: random.Random) -> list[str]:
    acts = rng.sample(CLEAN_REPLIES, rng.choice([1, 1, 2, 2, 3]))
    if rng.random() < ANGER[kind]:
        acts[rng.randrange(len(acts))] = "snide" if rng.random() < SNIDE else "insult"
    return acts


def _review(kind: str, rng: random.Random) -> list[str]:
    share = {"neutral_review": 0.5, "glad_review": 0.9, "cross_review": 0.1}[kind]
    mood = "praise" if rng.random() < share else "complaint"
    acts = [mood] * rng.choice([1, 2, 2])
    return [*acts, "remark"] if rng.random() < 0.5 else acts


def _ramble(thread: Thread, rng: random.Random) -> str:
    done = [expand("chore", thread, rng)]
    while len(done) < 5 and rng.random() < 0.85:
        done.append(done[-1] if rng.random() < 0.5 else expand("chore", thread, rng))
    return "I " + ", then ".join(done) + "."


TOXIC_KINDS = ("calm", "heated", "adversarial")
KINDS = (*TOXIC_KINDS, "neutral_review", "glad_review", "cross_review", "diary")
