"""A task in one file: replies that ask no questions, on the prompts of `toxicity`.

The reward is the scorer beside this file; the judge, of another kind, is a class of this very file: the share of characters
that come after the last question mark.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.api import Metric, TextTask, metrics


class NoQuestions(TextTask):
    """`like` names the task whose tables and prompts it takes, `settings` what is different; ./ is relative to this file."""

    version = 1
    like = "toxicity"
    settings: ClassVar[dict[str, Any]] = {
        "reward": "./my_scorer.py",
        "judge": "./my_task.py",
        "kl_cap": 1.0,
    }

    def text_metrics(self, texts: list[list[str]]) -> dict[str, Metric]:
        """Question marks a response, beside what the data measures."""
        marks = np.array([[text.count("?") for text in responses] for responses in texts], dtype=float)
        return super().text_metrics(texts) | {"question_marks": metrics.cluster_mean(marks)}


class AfterTheLastQuestion:
    """The judge: the share of the response behind its last question mark; 1 where it has none."""

    identity: ClassVar[dict[str, Any]] = {"name": "after_the_last_question", "version": 1}

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """[B], [B] -> [B], in [0, 1]; an empty response asks nothing."""
        return np.array([1.0 - (text.rfind("?") + 1) / max(1, len(text)) for text in responses])
