"""Say here what a high score means. This one counts capital letters: the fewer, the better."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class NewScorer:
    """The share of letters that are not capitals; NaN where a text has no letter, as nothing was measured there.

    Options are arguments of the constructor: `--set scorers.new_scorer.tolerated=0.2`. The identity is in every record, so it
    holds all that decides a score: version, options, hashes of word lists and weights. The hash of this file is added to it.
    """

    def __init__(self, tolerated: float = 0.1) -> None:
        self.tolerated = tolerated
        self.identity: dict[str, Any] = {"name": "new_scorer", "version": 1, "tolerated": tolerated}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, in [0, 1], higher is better: [B], [B] -> [B]."""
        return np.array([self._score(text) for text in responses])

    def _score(self, text: str) -> float:
        letters = [c for c in text if c.isalpha()]
        if not letters:
            return float("nan")
        share = sum(c.isupper() for c in letters) / len(letters)
        return 1.0 - max(0.0, share - self.tolerated) / (1.0 - self.tolerated)
