"""Write the reference of the command line: `python docs/tools/command_line.py docs/reference/command-line.md`.

The page has the texts of `--help`, parsed into tables.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from readme_tables import write
from typer.testing import CliRunner

from harness.cli.main import app
from harness.core.process import script

HEAD = """# Command line

One section per command, in the order of `harness --help`. `python docs/tools/command_line.py docs/reference/command-line.md`
writes this page from what `--help` prints.

The result goes to standard output, progress to standard error. With `--json` the result is one JSON object on the last line.
`harness --install-completion` installs completion of commands and options for your shell.

| exit code | meaning |
|---:|---|
| 0 | success |
| 1 | a run failed |
| 2 | usage or settings error, or an empty selection |
| 3 | a model, a data set or a scorer is missing or unusable |
| 4 | the result is partial or degraded |
| 5 | a check or a verification found a mismatch |
| 130 | interrupted; the same command resumes |

"""
WIDE = 1000  # columns, so that no line is wrapped
HEADINGS = ("Arguments", "Options", "Commands")
OWN = ("-h, --help",)  # left out, since every command has it


def help_of(*command: str) -> str:
    """The output of `harness COMMAND --help`, each entry on one line."""
    return CliRunner().invoke(app, [*command, "--help"], terminal_width=WIDE, prog_name="harness").output


def commands() -> list[str]:
    """The names of the commands, in the order of `harness --help`."""
    return [name for name, _ in entries(help_of())["Commands"]]


def entries(text: str) -> dict[str, list[tuple[str, str]]]:
    """The entries below each heading of a help text: {heading: [(name, description)]}."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, block in re.findall(r"^(\w+):\n((?:  .*\n?)+)", text, re.MULTILINE):
        if heading in HEADINGS:
            rows = [re.split(r" {2,}", re.sub(r" +\\?\[", " [", line.strip()), maxsplit=1) for line in block.splitlines()]
            found[heading] = [(row[0], row[-1] if len(row) > 1 else "") for row in rows]
    return found


def usage(text: str) -> str:
    """The usage line of a help text, without "Usage: "."""
    return text[text.index("Usage: ") :].partition("\n")[0].removeprefix("Usage: ")


def description(text: str) -> list[str]:
    """The paragraphs between the usage and the first heading, without their indent."""
    body = text[text.index("Usage: ") :].partition("\n")[2]
    body = re.split(rf"^(?:{'|'.join(HEADINGS)}):$", body, maxsplit=1, flags=re.MULTILINE)[0]
    return [re.sub("^  ", "", block.strip("\n"), flags=re.MULTILINE) for block in body.split("\n\n") if block.strip()]


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "\n".join(section(name) for name in commands())


def section(name: str) -> str:
    """The section of one command: description, usage, arguments and options."""
    text = help_of(name)
    found = entries(text)
    parts = [f"## harness {name}", *map(_paragraph, description(text)), f"```text\n{usage(text)}\n```"]
    for heading, what in (("Arguments", "argument"), ("Options", "option")):
        rows = [row for row in found.get(heading, []) if row[0] not in OWN]
        parts += [_table(what, rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    """A paragraph as text, or as a block of code if it has several lines."""
    return f"```toml\n{text}\n```" if "\n" in text else _plain(text)


def _table(what: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_names(names)} | {_cell(_plain(words))} |" for names, words in rows]
    return "\n".join([f"| {what} | meaning |", "|---|---|", *lines])


def _names(text: str) -> str:
    """Names as code in a table cell; bars are written as entities, which every Markdown renderer shows."""
    return f"`{text}`" if "|" not in text else f"<code>{escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _plain(text: str) -> str:
    """Text with Markdown characters escaped, except between backticks."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    script(lambda words: write(Path(words[0]), page()))
