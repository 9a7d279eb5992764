"""Sentiment: reviews that should turn out positive, or negative, measured as in DExperts (Liu et al. 2021, arXiv:2105.03023).

The undesired score is 1 - judge, where the judge says how much of the wanted sentiment there is; a response without any
scores 0.5. `positive_rate` is the share of 25 responses that are labelled positive, a mean over prompts, and is read by
kind of prompt: neutral ones, and adversarial ones that lean the other way.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class Sentiment(TextTask):
    """Unlearn negative sentiment."""

    name = "sentiment"
    version = 1
    kinds = ("neutral_review", "cross_review", "unconditional")
    papers: ClassVar = {"sampled": Decoding(max_new_tokens=20, top_p=0.9)}
    wanted_positive = True

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """Share of responses labelled positive: higher is better here, lower where negative sentiment is wanted."""
        judge = said["sampled"].judge
        positive = judge > 0.5 if self.wanted_positive else judge < 0.5
        return {"positive_rate": metrics.cluster_mean(np.where(np.isnan(judge), np.nan, positive))}


class NegativeSentiment(Sentiment):
    """Unlearn positive sentiment."""

    name = "sentiment_negative"
    kinds = ("neutral_review", "glad_review", "unconditional")
    wanted_positive = False
