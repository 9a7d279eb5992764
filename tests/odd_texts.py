"""Texts of every kind that a policy may write, by a seed: prose, code, Unicode, control characters, nothing, very long ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from harness.tasks.micro import world

PROMPTS = ["", "> Hello\n", "def f(a, b):\n", "# for the shop\ndef pick(l, O):\n", "the cat", "\ud83d", "def f(a):\n\tx = 1\n"]
WORDS = "the cat sat on a mat silly goose my number is great awful not very at dot I l O return def".split()  # noqa: SIM905
PERSONAL = (
    "anna@example.com", "+44 20 7946 0123", "(212) 555-0123", "https://a.example/x?y=@z", "4111 1111 1111 1111", "@goose",
)  # fmt: skip
LINES = (
    "    l = [a, b", "\tx=1 ;y=2", "    return  x+y ;", "    if a :", "    O = I = lambda l: l", "        pass", "    x = '''",
    "    s = 'half", "    def g(a,b): return {1:2}", "    return (((((", "    \\", "  @x", "    f\"{a!r:>{b}}\"",
    "    0777 1__0 0x", "", "   ", "# note", "def g( a ):", "class A: pass", "    async def h(): await l",
    "    x: int=3 if a else[1,2 ][ 0]",
    "    '\\d'",
)  # fmt: skip
ODD = (
    "\x00", "\x0b", "\x0c", "\x1b[31m", "\r", "\r\n", "\u2028", "\u0085", "\ufeff", "\u202e", "\u200d", "\ufffd",
    "\U0010ffff", "\ud83d",
)  # fmt: skip
PLANES = (
    (0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0xE000, 0x10FFFF),
)  # fmt: skip
KINDS = ("neutral_review", "function", "newcomer", "diary", "calm")  # of the micro world's prompts


def prose(rng: random.Random) -> str:
    words = [rng.choice(WORDS) + rng.choice(["", "", "", ".", ",", "!", "?!", ":)", "\n"]) for _ in range(rng.randint(1, 40))]
    return " ".join(words + rng.sample(PERSONAL, rng.randint(0, 2)))


def code(rng: random.Random) -> str:
    ends = ["\n"] * 12 + ["\r\n", "\r", "\x0c\n", ""]
    return "".join(rng.choice(LINES) + rng.choice(ends) for _ in range(rng.randint(1, 12)))


def unicode_text(rng: random.Random) -> str:
    return "".join(chr(rng.randint(*rng.choice(PLANES))) for _ in range(rng.randint(1, 60)))


def control(rng: random.Random) -> str:
    return "".join(rng.choice([*ODD, chr(rng.randint(0, 31)), rng.choice(WORDS), " "]) for _ in range(rng.randint(1, 30)))


def blank(rng: random.Random) -> str:
    return rng.choice(["", "", " ", "\n", "\t\n ", "\u00a0", "\u3000\n", "."])


def repeated(rng: random.Random) -> str:
    piece = rng.choice([*WORDS, *PERSONAL, *LINES, "!", "0", "(", "a@", "\n", " ", "def f():\n", "\u0301", "haha "])
    return piece * rng.randint(2, 60)


def long(rng: random.Random) -> str:
    whole = rng.choice([prose, code, unicode_text, control, repeated])(rng) or "."
    return whole * (4000 // len(whole) + 1)


@cache
def micro_responses() -> list[str]:
    return [text.response for kind in KINDS for text in world.data((kind,)).documents[:50]]


def texts(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """n prompts and n responses; one response in 500 is of 4,000 characters or more, one in 8 of the micro world's own."""
    rng, own = random.Random(seed), micro_responses()
    kinds: list[Callable[[random.Random], str]] = [
        prose, code, code, unicode_text, control, blank, repeated, lambda rng: rng.choice(own),
    ]  # fmt: skip
    responses = [long(rng) if i % 500 == 99 else kinds[i % len(kinds)](rng) for i in range(n)]
    return [rng.choice(PROMPTS) for _ in range(n)], responses
