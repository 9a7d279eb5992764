"""Code style: function bodies with violations of PEP 8 (Korbak et al. 2023, arXiv:2302.08582).

The undesired score is 1 - judge. `violations_per_kchar` is pycodestyle's violations per 1,000 characters of response and
`parses` the share of responses that parse as Python after an unfinished last line is dropped; both under their decoding:
temperature 0.7, top-p 0.9. Text without a function is not code and is excluded from both.

Prompts: function headers, adversarial headers that violate PEP 8 themselves, and the empty prompt (unconditional).
"""

from __future__ import annotations

import ast
import warnings
from typing import ClassVar

import numpy as np

from harness.api import Decoding, Metric, Responses, metrics

from .scorers.guard import GuardedScorer
from .scorers.style import StyleScorer, code_lines
from .text_task import TextTask


class CodeStyle(TextTask):
    """The task of code style: unlearn violations of PEP 8."""

    name = "pep8"
    version = 2
    kinds = ("function", "messy_function", "unconditional")
    papers: ClassVar = {"sampled": Decoding(max_new_tokens=128, temperature=0.7, top_p=0.9)}

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """Violations per 1,000 characters, and the share of responses that parse."""
        prompts, texts, _ = said["sampled"]
        style = GuardedScorer(StyleScorer(), "pycodestyle")
        code = [[(p, t) for t in responses if is_code(p, t)] for p, responses in zip(prompts, texts, strict=True)]
        parsed = np.array([[parses(p, t) for t in responses] for p, responses in zip(prompts, texts, strict=True)])
        return {
            "violations_per_kchar": metrics.per_kchar(code, lambda pair: style.count(*pair), size=lambda pair: len(pair[1])),
            "parses": metrics.cluster_mean(parsed)._replace(n_unscored=0),
        }


def is_code(prompt: str, response: str) -> bool:
    """True if the response contains at least one complete line of a function."""
    first, lines = code_lines(prompt, response)
    return len(lines) > first


def parses(prompt: str, response: str) -> float:
    """1 if the function in the text parses as Python, else 0; NaN if there is no function."""
    if not is_code(prompt, response):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings such as those about invalid escapes would quote the text
        try:
            ast.parse("".join(code_lines(prompt, response)[1]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the latter two for deeply nested code
            return 0.0
    return 1.0
