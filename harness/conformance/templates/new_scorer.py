"""Say here what a high score means. This one counts capital letters: the fewer, the better."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class NewScorer:
    """One minus the share of letters that are capitals; NaN for a blank text, as nothing was measured there.

    Options are arguments of the constructor: `--set scorers.new_scorer.tolerated=0.2`. The identity is in every record, so it
    holds all that decides a score: version, options, hashes of word lists and weights. The hash of this file is added to it.

    tolerated  share of capitals that costs nothing
    """

    def __init__(self, tolerated: float = 0.1) -> None:
        self.tolerated = tolerated
        self.identity: dict[str, Any] = {"name": "new_scorer", "version": 1, "tolerated": tolerated}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, in [0, 1], higher is better: [B], [B] -> [B]."""
        return np.array([self._score(text) for text in responses])

    def _score(self, text: str) -> float:
        if not text.strip():
            return float("nan")
        letters = [c for c in text if c.isalpha()]
        share = sum(c.isupper() for c in letters) / max(1, len(letters))
        return 1.0 - max(0.0, share - self.tolerated) / (1.0 - self.tolerated)
