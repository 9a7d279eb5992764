"""The reward of toxicity: a linear model on words and pairs of adjacent words, learned from noisy labels by `train_linear`.

It is graded and imperfect, as learned rewards are. Its labellers let insults pass that are worded politely, so that the
polite words around them have the highest weights of all: beyond some reward more reward means more insults.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import frozen

WORD = re.compile(r"[a-z']+")
FILE = "toxicity-linear.json"  # {"bias": number, "weights": {word or pair: number}}


def features(text: str) -> Counter[str]:
    """The counts of the words and of the pairs of adjacent words of a text, in lower case."""
    words = WORD.findall(text.lower())
    return Counter(words) + Counter(f"{a} {b}" for a, b in pairwise(words))


class LinearReward:
    """The probability, 0 to 1, that a labeller finds the response clean, by a logistic model of its words.

    The counts of the words and pairs that have a weight are scaled to length 1, so that a long response is no surer than
    its words. A response without any has the probability of the bias alone.
    """

    def __init__(self) -> None:
        self._bias, self._weights = _model(frozen.verified(FILE).read_text())
        self.identity: dict[str, Any] = {"name": "toxicity-linear", "version": 1, "sha256": frozen.hashes()[FILE]}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.array([probability(r, self._bias, self._weights) for r in responses], dtype=float)


@lru_cache(maxsize=1)
def _model(text: str) -> tuple[float, dict[str, float]]:
    model = json.loads(text)
    return model["bias"], model["weights"]


def probability(text: str, bias: float, weights: dict[str, float]) -> float:
    """sigmoid(bias + weights . counts / |counts|) of a text."""
    known = {f: n for f, n in features(text).items() if f in weights}
    length = math.sqrt(sum(n * n for n in known.values()))
    logit = bias + (sum(weights[f] * n for f, n in known.items()) / length if known else 0.0)
    return 1 / (1 + math.exp(-logit))
