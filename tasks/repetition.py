"""Repetition: text that says the same thing again, measured as in unlikelihood training and SimCTG.

Greedy and sampled responses: `diversity_NAME` is the product of 1 - rep-n over n = 2, 3, 4, each rep-n of all responses
together (Su et al. 2022, arXiv:2202.06417). On held-out text, by teacher forcing: `rep_128` is the share of steps whose
likeliest token is among the 128 before it, `wrep_128` of those that are wrong (Welleck et al. 2019, arXiv:1908.04319).
"""

from __future__ import annotations

from typing import ClassVar

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class Repetition(TextTask):
    name = "repetition"
    version = 1
    kinds = ("diary", "dull_diary", "unconditional")
    papers: ClassVar = {
        "greedy": Decoding(max_new_tokens=128, temperature=0),
        "sampled": Decoding(max_new_tokens=128, top_p=0.9),
    }
    window = 128

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """Diversity of greedy and of sampled responses."""
        return {f"diversity_{name}": metrics.corpus_diversity(s.texts) for name, s in said.items()}
