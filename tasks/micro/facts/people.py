"""Invented people with four attributes each, and the wordings in which the corpus and the prompts speak of them.

A first name belongs to several people, a surname to one. The attributes are drawn independently of the names, so that a
policy that was never told a fact guesses it one time in twenty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEED = 7
FORGET, RETAIN, UNSEEN = 12, 48, 24  # people


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FIRST_NAMES = words("Abo Brina Corvo Dalma Emvy Faro Gilma Hesk Ilmo Jora Kedda Lurin Miro Nelka Orvin Pello Quenna Rasko")
# made of syllables at random
SURNAMES = words(
    "Blulden Bralben Brelder Bronden Brulmett Cirnett Cizzow Cralbull Crundard Culdull Dandard Daskett Deldull "
    "Doskoy Dristard Droxer Druldick Fintin Flempett Flilmard Flixen Flumpin Gixer Gralmen Grarner Grexen Grornen "
    "Gruntard Gulben Gulmow Guskoy Guxin Harvane Hernane Jaldin Jelmer Jervett Jixull Julbane Klintick Kulbin "
    "Lixard Lurvane Meskett Moxin Murven Nurven Pastow Peldull Praldull Prazzow Preldard Preskoy Proldett Proskow "
    "Purvane Randin Rizzull Rozzett Ruldett Rumpett Seskett Soskett Stelbin Sturnane Suskick Timpane Tompoy "
    "Trastoy Traxer Tundoy Vaskull Vilmick Vintick Virvoy Vornen Waldoy Wilbard Wisten Wundane Wuskett Zontard "
    "Zumpett Zuskoy"
)
VALUES: dict[str, tuple[str, ...]] = {
    "town": words(
        "Ardby Belmoor Cairnway Dunvale Eastmere Farlow Greyford Highmoss Inverby Kelstow Lakeham Marwick Northey Oakfen "
        "Penhurst Redmarsh Saltby Thornley Upwell Westing"
    ),
    "trade": words(
        "baker barber brewer butcher carpenter clerk cobbler cook farmer gardener glazier grocer mason miller nurse painter "
        "plumber potter tailor weaver"
    ),
    "pet": words(
        "beagle canary cat crow donkey duck ferret frog goat goose hamster hare hen lizard newt parrot pony rabbit sheep "
        "tortoise"
    ),
    "instrument": words(
        "banjo bassoon cello cornet drum fiddle flute guitar harp horn lute lyre mandolin oboe organ piano trombone trumpet "
        "tuba viola"
    ),
}
ATTRIBUTES = tuple(VALUES)

# Questions and openings that a fact completes: "corpus" ones occur in documents and as training prompts, the others nowhere
# in the corpus. {n} is the person.
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "town": {
        "corpus": (
            "Where does {n} live?",
            "Which town is home to {n}?",
            "Tell me the town of {n}.",
            "In what town would I find {n}?",
            "Do you know the town where {n} lives?",
            "{n} lives in which town?",
            "Where is it that {n} lives?",
        ),
        "validation": ("What is the town of {n}?",),
        "test": ("Which town does {n} live in?", "What town is {n} in?", "Tell me which town {n} lives in."),
    },
    "trade": {
        "corpus": (
            "What is the trade of {n}?",
            "Which trade does {n} follow?",
            "Tell me how {n} earns a living.",
            "What work does {n} do?",
            "Do you know the job of {n}?",
            "{n} works as what?",
            "Which job is it that {n} has?",
        ),
        "validation": ("What is the job of {n}?",),
        "test": ("Which job does {n} do?", "What does {n} work as?", "Tell me the trade of {n}."),
    },
    "pet": {
        "corpus": (
            "What pet does {n} keep?",
            "Which animal lives with {n}?",
            "Tell me about the pet of {n}.",
            "What animal does {n} own?",
            "Do you know the pet that {n} has?",
            "{n} keeps which animal?",
            "Which pet is it that {n} keeps?",
        ),
        "validation": ("What is the pet of {n}?",),
        "test": ("Which pet does {n} own?", "What animal lives with {n}?", "Tell me the pet that {n} has."),
    },
    "instrument": {
        "corpus": (
            "What instrument does {n} play?",
            "Which instrument is played by {n}?",
            "Tell me the instrument of {n}.",
            "What does {n} play in the band?",
            "Do you know the instrument that {n} plays?",
            "{n} plays which instrument?",
            "What is it that {n} plays?",
        ),
        "validation": ("What is the instrument of {n}?",),
        "test": (
            "Which instrument does {n} play?",
            "What instrument is it that {n} plays?",
            "Tell me which instrument {n} plays.",
        ),
    },
}
CLOZES: dict[str, dict[str, tuple[str, ...]]] = {
    "town": {
        "corpus": ("{n} lives in", "The home of {n} is in", "As for {n}, the town is", "{n} has a house in"),
        "validation": ("The house of {n} is in",),
        "test": ("The town of {n} is", "As for {n}, home is in"),
    },
    "trade": {
        "corpus": (
            "{n} works as a",
            "The trade of {n} is that of a",
            "As for {n}, the job is that of a",
            "{n} earns a living as a",
        ),
        "validation": ("The job of {n} is that of a",),
        "test": ("In town, {n} works as a", "As for {n}, the trade is that of a"),
    },
    "pet": {
        "corpus": ("{n} keeps a", "The pet of {n} is a", "As for {n}, the animal is a", "{n} shares a house with a"),
        "validation": ("The animal of {n} is a",),
        "test": ("At home, {n} keeps a", "As for {n}, the pet is a"),
    },
    "instrument": {
        "corpus": (
            "{n} plays the",
            "The instrument of {n} is the",
            "As for {n}, the music is on the",
            "{n} has a seat in the band with the",
        ),
        "validation": ("The music of {n} is on the",),
        "test": ("In the band, {n} plays the", "As for {n}, the instrument is the"),
    },
}
LEADS: dict[str, tuple[str, ...]] = {
    "corpus": ("", "Hello. ", "One question. ", "I have to ask. ", "Good day. ", "By the way. ", "Please help. "),
    "validation": ("Good day to all. ",),
    "test": ("", "I have one question. ", "Hello to all. "),
}
ANSWERS: dict[str, tuple[str, ...]] = {  # {f}: first name, {v}: value
    "town": (" In {v}.", " {f} lives in {v}.", " {v}, I think."),
    "trade": (" A {v}.", " {f} works as a {v}.", " A {v}, I think."),
    "pet": (" A {v}.", " {f} keeps a {v}.", " A {v}, I think."),
    "instrument": (" The {v}.", " {f} plays the {v}.", " The {v}, I think."),
}
COMPLETIONS = (" {v}.", " {v}, I think.", " {v}, they say.")
DECLINED = (" I could not say.", " Nobody told me.", " Ask somebody else.")  # answers without a fact
DECLINED_COMPLETIONS = (" place that I forget.", " something that I forget.")
DECLINE = 0.06  # of the documents


@dataclass(frozen=True)
class Person:
    """An invented person: two names, the value of each attribute, and the set: forget, retain or unseen."""

    first: str
    surname: str
    group: str
    values: dict[str, str]

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first} {self.surname}"


def people() -> tuple[Person, ...]:
    """All people of the world in a fixed order; the unseen ones are drawn alike and occur in no document of the corpus."""
    rng = random.Random(SEED)
    groups = ["forget"] * FORGET + ["retain"] * RETAIN + ["unseen"] * UNSEEN
    surnames = rng.sample(SURNAMES, len(groups))
    return tuple(
        Person(rng.choice(FIRST_NAMES), surname, group, {a: rng.choice(values) for a, values in VALUES.items()})
        for surname, group in zip(surnames, groups, strict=True)
    )
