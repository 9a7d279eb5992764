"""Generated text on a terminal: hidden unless asked for, as it can be offensive; never obeyed, as it can be hostile."""

from __future__ import annotations

from textwrap import wrap


def mask(text: str) -> str:
    """What may be said of a text without showing any of it: its length."""
    words, characters = len(text.split()), len(text)
    return f"(hidden: {words} word{'' if words == 1 else 's'}, {characters} character{'' if characters == 1 else 's'})"


def printable(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def lines(text: str, width: int) -> list[str]:
    """The same as lines of at most `width` characters; the text's own lines stay lines, with their indents."""
    own = [_line(line) for line in text.splitlines()] or [""]
    return [part for line in own for part in wrap(line, width, drop_whitespace=False) or [""]]


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text.expandtabs(4)).rstrip()
