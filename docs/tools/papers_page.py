"""Write the page of papers: `python docs/tools/papers_page.py docs/papers.md`.

The page has the module docstrings of methods and tasks, which name their papers, what they implement, and their departures.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from readme_tables import write

from harness.core import registry
from harness.core.errors import BadData
from harness.core.process import script
from harness.report.tables import escape_markdown

ROOT = Path(__file__).parents[2]
HEAD = """# Papers

The papers that the methods and tasks come from, what of each is implemented, and where the implementation departs from it. The
texts are the docstrings of the files in `methods/` and `tasks/`. `python docs/tools/papers_page.py docs/papers.md` writes this
page. Measured results are in [Results by method](results/methods.md).

"""
NAME = r"[A-Z][\w'-]+"
CITATION = re.compile(rf"({NAME}(?: and {NAME}| et al\.)?),? \(?((?:19|20)\d\d)(?:,\s+arXiv:(\d{{4}}\.\d{{4,5}}))?")
PLAIN = re.compile(r"([\\*_<>\[\]])")


def text_of(kind: str, name: str) -> str:
    """The docstring of the file of a method or a task; raises BadData if it has none."""
    module = registry.table(kind)[name][0].partition(":")[0]
    path = ROOT / (module.removeprefix("harness.").replace(".", "/") + ".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise BadData(f"{path} has no docstring; expected the source, the equations and the departures there")
    return text


def cited(texts: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """The papers cited, {("Authors YEAR", arXiv number or ""): [names of the texts that cite it]}.

    A citation without a number gets the number of another citation with the same authors and year.
    """
    found = [(f"{a} {y}", n, name) for name, t in texts.items() for a, y, n in CITATION.findall(" ".join(t.split()))]
    numbers: dict[str, list[str]] = {}
    for paper, number, _ in found:
        numbers.setdefault(paper, []).append(number)
    papers: dict[tuple[str, str], list[str]] = {}
    for paper, number, name in found:
        known = number or next(filter(None, numbers[paper]), "")
        names = papers.setdefault((paper, known), [])
        names += [] if name in names else [name]
    return papers


def papers_table(methods: dict[str, str], tasks: dict[str, str]) -> str:
    """The table of papers as Markdown, newest first: link, and the methods and tasks that cite each."""
    rows = ["| paper | link | methods | tasks |", "|---|---|---|---|"]
    papers = cited(methods | tasks)
    for paper, number in sorted(papers, key=lambda key: (-int(key[0][-4:]), key)):
        names = papers[paper, number]
        link = f"[arXiv:{number}](https://arxiv.org/abs/{number})" if number else ""
        cells = [_links(name for name in names if name in kind) for kind in (methods, tasks)]
        rows.append(f"| {paper} | {link} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows) + "\n"


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{escape_markdown(name)}](#{name})" for name in names)


def card(name: str, text: str) -> str:
    """The section of one docstring as Markdown: indented lines are code, the others text."""
    title, _, rest = text.partition("\n\n")
    lines = [f"### {escape_markdown(name)} {{ #{name} }}", "", _escaped(title), ""]
    return "\n".join([*lines, *(line if line.startswith("    ") else _escaped(line) for line in rest.split("\n")), ""])


def _escaped(text: str) -> str:
    parts = re.split("(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else PLAIN.sub(r"\\\1", part) for part in parts)


def texts(kind: str) -> dict[str, str]:
    """The docstrings of the built-in methods or tasks by name; several in one file appear under the first name."""
    found: dict[str, str] = {}
    for name, (target, _) in sorted(registry.table(kind).items()):
        if target.startswith("harness.") and (text := text_of(kind, name)) not in found.values():
            found[name] = text
    return found


def page() -> str:
    """The whole page as Markdown."""
    methods, tasks = texts("method"), texts("task")
    cards = [[card(*pair) for pair in kind.items()] for kind in (methods, tasks)]
    return "\n".join([HEAD + papers_table(methods, tasks), "## Methods\n", *cards[0], "## Tasks\n", *cards[1]])


if __name__ == "__main__":
    script(lambda words: write(Path(words[0]), page()))
