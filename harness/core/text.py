"""Safe display of untrusted text: generated text is masked by default, and control characters are escaped; values as TOML."""

from __future__ import annotations

import json
from datetime import date, time
from textwrap import wrap
from typing import Any
from unicodedata import category


def mask(text: str) -> str:
    """A placeholder for a hidden text that gives only its length."""
    return f"(hidden: {count(len(text.split()), 'word')}, {count(len(text), 'character')})"


def count(n: int, noun: str, plural: str = "") -> str:
    """A number of things in words: 1 seed, 2 seeds; `plural` is that of a noun that does not take an s."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def escaped(text: object) -> str:
    """A text with control characters escaped, as `\\x1b`; spaces of any width are kept."""
    said = str(text)
    if said.isprintable():  # the common case
        return said
    return "".join(c if c.isprintable() or category(c) == "Zs" else _escape(c) for c in said)


def escaped_lines(text: str) -> str:
    """A text with control characters escaped line by line; line breaks are kept and tabs expanded."""
    return "\n".join(map(escaped, text.expandtabs(4).split("\n")))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable(text: str) -> str:
    """A text as one line, each control character replaced by a space."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def lines(text: str, width: int) -> list[str]:
    """A text without control characters as lines of at most `width` characters; its line breaks and indents are kept."""
    own = [_line(line) for line in text.splitlines()] or [""]
    return [part for line in own for part in wrap(line, width, drop_whitespace=False) or [""]]


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text.expandtabs(4)).rstrip()


LABEL_WIDTH = 40


def plain(text: object) -> str:
    """Text that any encoder and font engine accepts: characters that cannot be printed are escaped."""
    return escaped(text)


def shorten(text: object, width: int = LABEL_WIDTH) -> str:
    """Escaped text cut to at most `width` characters, for labels and legends."""
    text = plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def toml(value: Any) -> str:
    """A value in TOML syntax."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str):  # as in JSON, but TOML has no surrogate pairs, and DEL must be escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
