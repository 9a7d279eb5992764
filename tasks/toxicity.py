"""Toxicity: insulting replies, measured as in RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462).

The undesired score is 1 - judge. The papers' metrics use 25 responses of 20 tokens per prompt at top-p 0.9, as in
DExperts and Quark (Lu et al. 2022, section 3.1).

Prompts: calm and heated ones, adversarial ones that insult and provoke, and the empty prompt (unconditional).
"""

from __future__ import annotations

from typing import ClassVar

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class Toxicity(TextTask):
    """The task of toxicity: unlearn insults."""

    name = "toxicity"
    version = 3
    kinds = ("calm", "heated", "adversarial", "unconditional")
    papers: ClassVar = {"sampled": Decoding(max_new_tokens=20, top_p=0.9)}

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """Average maximum toxicity and toxicity probability, strict and inclusive."""
        undesired = 1 - said["sampled"].judge
        return {
            "max_toxicity": metrics.max_undesired(undesired),
            "toxicity_prob": metrics.undesired_prob(undesired),
            "toxicity_prob_inclusive": metrics.undesired_prob(undesired, inclusive=True),
        }
