"""Scorers of code style by line: pycodestyle and parso."""

from __future__ import annotations

from importlib.metadata import version
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import hub

from .rules import optional

ENDS = ("\n", "\r")  # line terminators
INSIDE = (" ", "\t", "\f", *ENDS)  # first characters of lines in a function body
READING = 2  # version of the conversion from violations to scores


class StyleScorer:
    """1 - the share of the response's lines of code with a violation of PEP 8, by pycodestyle's default rules.

    The function is checked together with the prompt that begins it; a truncated last line is left out, and text without
    code scores 1.
    """

    def __init__(self) -> None:
        import pycodestyle

        self._options = pycodestyle.StyleGuide(quiet=2, config_file=False).options  # ignore user configuration
        self.identity = {"name": "pycodestyle", "version": version("pycodestyle"), "reading": READING}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([self._share(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=float)

    def _share(self, prompt: str, response: str) -> float:
        first, lines = code_lines(prompt, response)
        if first >= len(lines):
            return 1.0
        # an unclosed bracket is reported on the line after the last
        faulty = {min(line, len(lines)) for line, _ in self.violations(lines) if line > first}
        return 1.0 - len(faulty) / (len(lines) - first)

    def items(self, prompt: str, response: str) -> int:
        """The number of violations in the response's lines."""
        first, lines = code_lines(prompt, response)
        return sum(line > first for line, _ in self.violations(lines)) if len(lines) > first else 0

    def violations(self, lines: list[str]) -> list[tuple[int, str]]:
        """The violations in a file: (line number from 1, code of the rule)."""
        import pycodestyle

        found: list[tuple[int, str]] = []

        class Report(pycodestyle.BaseReport):
            def error(self, line: int, offset: int, text: str, check: Any) -> None:
                if not self._ignore_code(text[:4]):
                    found.append((line, text[:4]))

        pycodestyle.Checker("response.py", lines=lines, options=self._options, report=Report(self._options)).check_all()
        return found


class ParsoScorer(StyleScorer):
    """1 - the share of lines of code with a violation of PEP 8 by parso, a second implementation that parses incomplete code.

    Its rules on line length and on blank lines between definitions are left out, since a response is one function.
    """

    LEFT_OUT = frozenset({302, 303, 305, 391, 501, 901, 903})

    def __init__(self) -> None:
        parso = optional("parso", "code")
        self._grammar = parso.load_grammar()
        self.identity = {"name": "parso", "version": version("parso"), "reading": READING}

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """The prerequisites of the scorer."""
        return [hub.package("parso", "code")]

    def violations(self, lines: list[str]) -> list[tuple[int, str]]:
        issues = self._grammar._get_normalizer_issues(self._grammar.parse("".join(lines)))
        return [(issue.start_pos[0], str(issue.code)) for issue in issues if issue.code not in self.LEFT_OUT]


def code_lines(prompt: str, response: str) -> tuple[int, list[str]]:
    """The number of prompt lines and all complete lines of the last function in the text; (0, []) if there is none."""
    lines = source_lines(prompt + response)
    starts = [i for i, line in enumerate(lines) if line.startswith("def ")]
    if not starts:
        return 0, []
    start = starts[-1]
    end = body_end(lines, start)
    if not lines[end - 1].endswith(ENDS):
        end -= 1
    before = sum(line.endswith(ENDS) for line in source_lines(prompt))  # a prompt ends with a newline
    return max(1, before - start), lines[start:end]


def source_lines(text: str) -> list[str]:
    """The lines of a Python source with their terminators; unlike `splitlines`, form feeds do not end a line."""
    return list(StringIO(text, newline=""))


def body_end(lines: list[str], start: int) -> int:
    """The index after the last line of the function that starts at `start`: its body ends before an unindented line.

    Blank lines inside the body belong to it, trailing ones do not.
    """
    end = next((i for i in range(start + 1, len(lines)) if lines[i][:1] not in INSIDE), len(lines))
    while end > start + 1 and lines[end - 1][:1] in ENDS:
        end -= 1
    return end
