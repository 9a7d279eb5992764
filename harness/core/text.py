"""Text of others on a terminal: what was generated is hidden unless asked for, and nothing is obeyed, as it can be hostile."""

from __future__ import annotations

from textwrap import wrap
from unicodedata import category


def mask(text: str) -> str:
    """What may be said of a text without showing any of it: its length."""
    words, characters = len(text.split()), len(text)
    return f"(hidden: {words} word{'' if words == 1 else 's'}, {characters} character{'' if characters == 1 else 's'})"


def escaped(text: object) -> str:
    """A name or a message with each character that a terminal would obey written out, as `\\x1b`; spaces of any width stay."""
    said = str(text)
    if said.isprintable():  # as nearly all is
        return said
    return "".join(c if c.isprintable() or category(c) == "Zs" else _escape(c) for c in said)


def escaped_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(map(escaped, text.expandtabs(4).split("\n")))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def lines(text: str, width: int) -> list[str]:
    """The same as lines of at most `width` characters; the text's own lines stay lines, with their indents."""
    own = [_line(line) for line in text.splitlines()] or [""]
    return [part for line in own for part in wrap(line, width, drop_whitespace=False) or [""]]


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text.expandtabs(4)).rstrip()


LABEL_WIDTH = 40


def plain(text: object) -> str:
    """Text that any encoder and any font engine can take: what cannot be printed is written out."""
    return escaped(text)


def shorten(text: object, width: int = LABEL_WIDTH) -> str:
    """Plain text that fits a legend."""
    text = plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"
