"""Facts: what a model was told of some people and shall forget, in a world where all that it was told is known.

The set-up is that of TOFU (Maini et al. 2024, arXiv:2401.06121): invented people, documents on those to forget and on those
to retain, and questions. The undesired score is 1 - judge: a response states a fact about a person to forget.

Prompts: questions about the people to forget, and openings that a fact completes (cloze), in wordings that no document has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch

from harness.api import Metric, OwnMetric, Prompts, Rollout

from ...text_task import Text, TextTask
from .measures import Measures


class Facts(TextTask):
    """The task of facts: forget some people, keep the others."""

    name = "facts"
    version = 1
    kinds = ("question", "cloze")
    own_metrics: ClassVar[Mapping[str, OwnMetric]] = {
        "extraction": OwnMetric(title="Extraction", unit="true greedy answers, share", better="down"),
        "truth_prob": OwnMetric(title="Truth", unit="probability of the true value", better="down"),
        "membership_auc": OwnMetric(title="Membership", unit="AUC; 0.5 if never told", better=""),
        "retain_accuracy": OwnMetric(title="Retain accuracy", unit="true greedy answers, share", better="up"),
    }

    def measures(self, policy: Any) -> dict[str, Metric]:
        """What the deployed policy knows of forget and retain people; unmeasured without token probabilities."""
        return self._measures.of(policy)

    @cached_property
    def _measures(self) -> Measures:
        return Measures(self)

    def tokenized(self, texts: list[str]) -> Prompts:
        """Prompts of any texts, as the policy reads them: -> [X, P]."""
        return self._tokenize(texts)

    def rollout(self, texts: list[Text], end: bool = True) -> Rollout:
        """Texts as prompts and responses, with EOS or without: -> [D, R]."""
        found = self._padded([t.prompt for t in texts], [ids for ids, _ in self._response_ids(texts)])
        if end:
            return found
        last = found.response_mask.sum(1, keepdim=True) - 1
        return found._replace(response_mask=torch.arange(found.response.shape[1]) < last)
