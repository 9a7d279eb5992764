"""What the guides show runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.main import app
from harness.conformance.rules import check_method
from harness.conformance.scorer_rules import check_scorer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(r"`((?:harness|methods|tasks|tests|docs|examples|benchmarks|constraints)/[\w./-]*\w)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def code(page: str, language: str) -> list[str]:
    """The blocks of code of a page in a language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a page that calls the harness, without its comment; lines that go on are joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").split("\n")
            found += [line.partition(" # ")[0].strip() for line in lines if line.startswith("harness ")]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_the_command_line_takes(command):
    """Its name and its options are those of `--help`; what it would run is tried elsewhere."""
    words = shlex.split(command.replace("...", "").replace("[", "").replace("]", ""))
    text = CliRunner().invoke(app, [words[1], "--help"]).output
    assert "Usage: " in text
    for word in words[2:]:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), f"harness {words[1]} has no option {word}"


@pytest.mark.slow
def test_the_method_of_the_guide_holds_the_rules(tmp_path):
    (tmp_path / "mine.py").write_text(code("docs/guides/a-method.md", "python")[0])
    checks = check_method(str(tmp_path / "mine.py"))
    assert not [check for check in checks if check.held is False]


def test_the_scorer_of_the_guide_holds_the_rules(tmp_path):
    (tmp_path / "my_scorer.py").write_text(code("docs/guides/a-task-or-scorer.md", "python")[0])
    checks = check_scorer(str(tmp_path / "my_scorer.py"))
    assert not [check for check in checks if check.held is False]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    for target in LINK.findall(page.read_text()):
        path = target.partition("#")[0]
        if path and "://" not in target:
            assert (page.parent / path).exists(), f"{page} links to {target}"


def test_paths_in_text_exist():
    """Of the repository's own folders, in backticks; a test may have moved to another folder below tests/."""
    for page in PAGES:
        for path in PATH.findall(page.read_text()):
            moved = path.startswith("tests/") and any((ROOT / "tests").rglob(Path(path).name))
            assert moved or (ROOT / path).exists(), f"{page} names {path}"
