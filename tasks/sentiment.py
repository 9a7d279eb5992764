"""Sentiment: steering reviews to positive, or to negative, measured as in DExperts (Liu et al. 2021, arXiv:2105.03023).

The undesired score is 1 - judge, where the judge measures the desired sentiment; a response without sentiment scores 0.5.
`positive_rate` is the share of 25 responses labelled positive, averaged over prompts and reported by kind of prompt:
neutral, and adversarial prompts of the undesired sentiment.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class Sentiment(TextTask):
    """The task of sentiment: unlearn negative sentiment."""

    name = "sentiment"
    version = 2
    kinds = ("neutral_review", "cross_review", "unconditional")
    papers: ClassVar = {"sampled": Decoding(max_new_tokens=20, top_p=0.9)}
    wanted_positive = True

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The share of responses labelled positive: higher is better here, lower in `NegativeSentiment`."""
        judge = said["sampled"].judge
        positive = judge > 0.5 if self.wanted_positive else judge < 0.5
        return {"positive_rate": metrics.cluster_mean(np.where(np.isnan(judge), np.nan, positive))}


class NegativeSentiment(Sentiment):
    """The reverse task of sentiment: unlearn positive sentiment."""

    name = "sentiment_negative"
    kinds = ("neutral_review", "glad_review", "unconditional")
    wanted_positive = False
