"""Toxicity: replies that insult, measured as in RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462).

The undesired score is 1 - judge. The papers' metrics are read over 25 responses of 20 tokens at top-p 0.9, as in
DExperts and Quark (Lu et al. 2022, section 3.1).
"""

from __future__ import annotations

from numpy.typing import NDArray

from harness.metrics import max_undesired, undesired_prob
from harness.types import Decoding, Metric

from .text_task import TextTask


class Toxicity(TextTask):
    name = "toxicity"
    version = 1
    paper_decoding = Decoding(max_new_tokens=20, top_p=0.9)
    kinds = ("calm", "heated", "adversarial")  # the micro world's prompts of this task

    def paper_metrics(self, judge: NDArray) -> dict[str, Metric]:
        """Average maximum toxicity and toxicity probability, strict and inclusive: [X, 25] -> metrics."""
        undesired = 1 - judge
        return {
            "max_toxicity": max_undesired(undesired),
            "toxicity_prob": undesired_prob(undesired),
            "toxicity_prob_inclusive": undesired_prob(undesired, inclusive=True),
        }
