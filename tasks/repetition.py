"""Repetition: repeated phrases in text, measured as in unlikelihood training and SimCTG.

`diversity_NAME`, for greedy and for sampled responses, is the product of 1 - rep-n over n = 2, 3, 4, with rep-n pooled over all
responses (Su et al. 2022, arXiv:2202.06417). On held-out text with teacher forcing, `rep_128` is the share of steps whose most
likely token is among the previous 128, and `wrep_128` only those where it is wrong (Welleck et al. 2019, arXiv:1908.04319).
"""

from __future__ import annotations

from typing import ClassVar

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class Repetition(TextTask):
    """The task of repetition: unlearn repeated phrases."""

    name = "repetition"
    version = 2
    kinds = ("diary", "dull_diary", "unconditional")
    papers: ClassVar = {
        "greedy": Decoding(max_new_tokens=128, temperature=0),
        "sampled": Decoding(max_new_tokens=128, top_p=0.9),
    }
    window = 128

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The diversity of greedy and of sampled responses."""
        return {f"diversity_{name}": metrics.corpus_diversity(s.texts) for name, s in said.items()}
