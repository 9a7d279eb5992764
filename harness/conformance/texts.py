"""Test texts of every kind that a policy may generate: ordinary, empty, very long, malformed, and adversarial to parsers."""

from __future__ import annotations

from typing import Any, NoReturn

OWN = (
    ("How was the film?", " It was great, and I would see it again!"),
    ("How was the film?", " It was awful. The worst of the year."),
    ("> Hello\n", "You silly goose, that is not what I said."),
    ("> Hello\n", "Thank you, that is very kind of you."),
    ("My name is Anna.", " Write to me at anna@example.com or call +44 20 7946 0123."),
    ("Dear diary,", " the cat sat on the mat and the cat sat on the mat and the cat sat on the mat."),
    ("def add(a, b):\n", "    return a + b\n"),
    ("def add(a, b):\n", "    l=[a,b] ;return  sum( l )\n"),
)
ODD = (
    "", " ", "\n", "\t\n ", "\u00a0\u3000", ".", "!" * 60, "word " * 800, "\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\r\n\r",
    "\u2028\u0085\x0b\x0c", "\ufeffmark", "\u202eright to left", "\u200d\u200d", "\ufffd", "\U0010ffff", "\ud83d",
    "e\u0301" * 40,    "日本語の文です。", "مرحبا بالعالم", "🙂🙃" * 10, "<|endoftext|>", "<pad></s>[SEP][CLS]",
    "'; DROP TABLE scores; --",
    "<script>alert(1)</script>", "{{ 7 * 7 }} ${x} %s %n", "((((((((((" * 20, "[" * 200, '"""', "'half", "\\", "a@" * 50,
    "https://a.example/x?y=@z", "0" * 300, "NaN", "-1", "1e999", "None", "../../etc/passwd", "\N{COMBINING ACUTE ACCENT}",
)  # fmt: skip
PROMPTS = ("", "> Hello\n", "def f(a, b):\n", "the cat", "\ud83d")


PLAIN = 24
"""Number of ordinary texts, which come first in `texts`."""


def plain_texts() -> list[tuple[str, str]]:
    """Pairs (prompt, response) of ordinary text: OWN, and evenly spaced documents of the micro world."""
    from harness.tasks.micro import world

    documents, n = world.data(("calm",)).documents, PLAIN - len(OWN)
    return [*OWN, *((d.prompt, d.response) for d in documents[:: len(documents) // n][:n])]


def texts() -> tuple[list[str], list[str]]:
    """Prompts and responses, first ordinary, then unusual ones; always the same."""
    pairs = [*plain_texts(), *((PROMPTS[i % len(PROMPTS)], text) for i, text in enumerate(ODD))]
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


class Unreadable(str):
    """A string whose methods raise ValueError, to simulate a text that cannot be scored; C code may still read it."""

    __slots__ = ()

    def _fail(self, *args: Any, **options: Any) -> NoReturn:
        raise ValueError("this text cannot be read")

    __iter__ = __getitem__ = __contains__ = encode = split = splitlines = lower = upper = strip = count = _fail
    casefold = find = index = replace = startswith = endswith = partition = translate = join = __add__ = __mod__ = _fail
    isalpha = isdigit = isspace = isupper = islower = title = format = rsplit = lstrip = rstrip = __format__ = _fail
