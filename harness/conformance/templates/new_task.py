"""Say here what habit is to be unlearned, how it is scored, and where the prompts come from.

The prompts, the judge and the decoding are those of the task `toxicity`; the reward is one of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from harness.api import Decoding, Metric, Responses, TextTask, metrics


class NewTask(TextTask):
    """A task on text. What it takes from a preset, it says itself, as no preset knows it:

    like       the task whose tables it takes: prompts, scorers, fluency model, KL cap, decoding, kinds of prompts
    settings   what is different, with the names of a preset's [tasks.NAME] (`harness show preset micro`); a path that begins
               with ./ is relative to this file, so "reward": "./my_scorer.py" is a scorer beside it, and
               "prompts": "./prompts.jsonl" are prompts beside it, a {"text": ...} a line
    """

    version = 1  # raise it when a change moves results
    like = "toxicity"
    settings: ClassVar[dict[str, Any]] = {"reward": "vader", "kl_cap": 1.0}
    papers: ClassVar[dict[str, Decoding]] = {"sampled": Decoding(max_new_tokens=20, top_p=0.9)}

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The share of responses that end in an exclamation mark: a metric of the task's own."""
        values = np.array([[shouted(text) for text in responses] for responses in said["sampled"].texts])
        return {"shouted": metrics.cluster_mean(values)}


def shouted(text: str) -> float:
    """1 where the text ends in an exclamation mark, else 0."""
    return float(text.rstrip().endswith("!"))
