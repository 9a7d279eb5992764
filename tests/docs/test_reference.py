"""The reference pages: every public name with a docstring that gives shapes, and every command as `--help` shows it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_line
import papers_page
import pytest

from harness import api
from harness.core import registry
from harness.core.errors import BadData

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TENSORS = re.compile(r"\b(Tensor|NDArray|Rollout|Prompts|Documents)\b")
CALLED_BY_TORCH = ("forward",)  # its shapes are those of Hugging Face's models


def members(name: str) -> Iterator[tuple[str, Any]]:
    """A public name, and the public functions of its class or module."""
    thing = getattr(api, name)
    yield name, thing
    if inspect.isclass(thing) or inspect.ismodule(thing):
        home = thing.__module__ if inspect.isclass(thing) else thing.__name__
        for key, value in vars(thing).items():
            value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if not key.startswith("_") and inspect.isfunction(value) and value.__module__ == home:
                yield f"{name}.{key}", value


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_has_a_docstring_with_shapes(name):
    for full, thing in members(name):
        text = thing.__doc__ or ""
        assert text and not text.startswith(f"{name}("), f"harness.api.{full} has no docstring"
        if inspect.isfunction(thing) and TENSORS.search(str(thing.__annotations__)) and thing.__name__ not in CALLED_BY_TORCH:
            assert "->" in text, f"the docstring of harness.api.{full} gives no shapes; expected: [B, R] -> [B]"


def test_every_public_name_is_on_the_page_once():
    shown = re.findall(r"^::: harness\.api\.(\w+)$", (DOCS / "reference/api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == api.__all__


def told(page: str) -> list[str]:
    """The page without what differs between versions of typer: usage, types, and the help of arguments."""
    lines = [line for line in page.split("\n") if not re.match(r"harness |\| `[^-]", line)]
    return [re.sub(r"^\| `([^`]*?)( <[^>`]*>| [A-Z]+( RANGE)?)?` \|", r"| `\1` |", line) for line in lines]


def test_the_command_line_page_says_what_help_says():
    written = (DOCS / "reference/command-line.md").read_text()
    assert told(written) == told(command_line.page()), "run: make pages"


def test_every_command_and_option_of_help_is_found():
    assert command_line.commands()[:4] == ["run", "sweep", "study", "eval"]
    text = command_line.section("run")
    assert "| `--seeds 0-4` | several seeds" in text and r"\[default: micro\]" in text and "--help" not in text
    assert "```toml\nmethods = [" in command_line.section("sweep")
    assert "| argument | meaning |" in command_line.section("compare")


def test_the_page_of_papers_is_that_of_the_docstrings():
    assert (DOCS / "papers.md").read_text() == papers_page.page(), "run: make pages"


def test_a_paper_is_known_by_its_number_and_a_bare_citation_by_its_authors():
    texts = {
        "one": "Two lines (Lu et al.\n2022, arXiv:2205.13636, section 2); Peters and Schaal 2007.",
        "two": "Its ablation (Lu et al. 2022, section 4).",
        "three": "Another of that year (Lu et al. 2022, arXiv:2299.00001).",
    }
    assert papers_page.cited(texts) == {
        ("Lu et al. 2022", "2205.13636"): ["one", "two"],
        ("Peters and Schaal 2007", ""): ["one"],
        ("Lu et al. 2022", "2299.00001"): ["three"],
    }


def test_a_card_keeps_equations_and_escapes_the_rest():
    made = papers_page.card("a_b", "Title with x_t.\n\n    p * q <- r_t\n\nrewards in [0, 1], `kl_coef`")
    assert made.startswith("### a\\_b { #a_b }\n\nTitle with x\\_t.\n")
    assert "\n    p * q <- r_t\n" in made and r"\[0, 1\], `kl_coef`" in made


def test_a_method_without_a_text_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "table", lambda kind: {"silent": ("tests.__nothing__:Silent", "")})
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None: "x = 1\n")
    with pytest.raises(BadData, match="no docstring"):
        papers_page.text_of("method", "silent")
