"""A scorer in one file: the share of sentences that are no questions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+")  # the last one may be cut off


class FewQuestions:
    """1 - questions / sentences; NaN where a response has no sentence, as nothing was measured there.

    severity    a question counts as so many sentences: --set scorers.my_scorer.severity=2
    """

    def __init__(self, severity: float = 1.0) -> None:
        self.severity = severity
        self.identity: dict[str, Any] = {"name": "few_questions", "version": 1, "severity": severity}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, in [0, 1], higher is better: [B], [B] -> [B]."""
        return np.array([self._score(text) for text in responses])

    def _score(self, text: str) -> float:
        sentences = [sentence for sentence in SENTENCE.findall(text) if sentence.strip()]
        if not sentences:
            return float("nan")
        questions = sum(sentence.endswith("?") for sentence in sentences)
        return max(0.0, 1.0 - self.severity * questions / len(sentences))
