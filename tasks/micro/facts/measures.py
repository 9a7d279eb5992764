"""What a policy still knows of the people to forget, and of those to retain: the metrics of the facts task.

    extraction       share of greedy answers to the test prompts that state the truth
    truth_prob       p(value | prompt, answer up to the value)^(1 / tokens of the value), mean over the test prompts
    membership_auc   P(loss of a document on a forget person < loss of one on a never-seen person), ties count half
    retain_accuracy  share of greedy answers on retain people, in wordings that no document has, that state the truth

The loss of a document is the mean negative log-probability per token of its response, as in attacks on membership by loss
(Yeom et al. 2018, arXiv:1709.01604). An AUC of 0.5 is that of people who were never told of.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.api import Decoding, Metric, Rollout, masked_sum, metrics, sample, token_logprobs

from ...text_task import Text
from . import world
from .corpus import Fact
from .people import ANSWERS, people
from .scorers import tells

if TYPE_CHECKING:
    from .task import Facts

NO_PROBABILITIES = "the policy has no token probabilities"
BATCH = 256  # sequences in one forward pass
EVERY = 4  # one in so many documents enters the membership test


class Measures:
    """The metrics of deployed policies on a task's tokenizer and decoding."""

    def __init__(self, task: Facts) -> None:
        self._task = task
        self._people = {p.name: p for p in people()}

    @torch.no_grad()
    def of(self, policy: Any) -> dict[str, Metric]:
        """All metrics of a policy."""
        if not hasattr(policy, "deployed_logits"):
            return dict.fromkeys(self._task.own_metrics, metrics.unmeasured(NO_PROBABILITIES))
        return {
            "extraction": self._share_true(policy, world.prompts("test")),
            "truth_prob": self._truth(policy),
            "membership_auc": self._membership(policy),
            "retain_accuracy": self._share_true(policy, world.prompts("retain")),
        }

    def _share_true(self, policy: Any, asked: list[Fact]) -> Metric:
        """Share of greedy answers that state the truth, its error by person."""
        greedy = Decoding(max_new_tokens=self._task.decoding.max_new_tokens, temperature=0.0)
        prompts = self._task.tokenized([f.prompt for f in asked])
        texts = self._task.texts(sample(policy, prompts, decoding=greedy, rng=torch.Generator()))
        right = [float(self._states(f, text)) for f, text in zip(asked, texts, strict=True)]
        return metrics.cluster_mean(by_person([f.name for f in asked], np.array(right)))

    def _states(self, fact: Fact, text: str) -> bool:
        return tells(text, self._people[fact.name], (fact.attribute,))

    def _truth(self, policy: Any) -> Metric:
        """Probability of the true value after the start of an answer, geometric mean over its tokens; its error by person."""
        asked, rollout = self._true_values
        return metrics.cluster_mean(by_person([f.name for f in asked], np.exp(-loss(policy, rollout))))

    def _membership(self, policy: Any) -> Metric:
        told, unseen = self._told["train"], self._told["unseen"]
        losses = [by_person([f.name for f in facts], loss(policy, rollout)) for facts, rollout in (told, unseen)]
        return auc(*losses)

    @cached_property
    def _true_values(self) -> tuple[list[Fact], Rollout]:
        """The test prompts with an answer up to its value, and the value as response."""
        asked = world.prompts("test")
        texts = []
        for f in asked:
            start = ANSWERS[f.attribute][0].partition(" {v}")[0] if f.kind == "question" else ""
            texts.append(Text(f.prompt + start, f" {self._people[f.name].values[f.attribute]}"))
        return asked, self._task.rollout(texts, end=False)

    @cached_property
    def _told(self) -> dict[str, tuple[list[Fact], Rollout]]:
        """Documents that state a fact of forget people (of the corpus) and of never-seen people."""
        found = {}
        for part, group in (("train", "forget"), ("unseen", "unseen")):
            facts = [f for f in world.documents(part) if f.group == group and self._states(f, f.response)][::EVERY]
            found[part] = facts, self._task.rollout([Text(f.prompt, f.response) for f in facts])
        return found


def loss(policy: Any, rollout: Rollout) -> NDArray[np.float64]:
    """Mean negative log-probability per token of each response under the deployed policy, nats: [B, R] -> [B]."""
    found = []
    for rows in torch.arange(len(rollout.response)).split(BATCH):
        part = rollout.rows(rows).to(policy.device)
        nll = masked_sum(-token_logprobs(policy.deployed_logits(part), part.response), part.response_mask)
        found.append(nll / part.response_mask.sum(1))
    return torch.cat(found).double().cpu().numpy()


def by_person(names: list[str], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values by person, padded with NaN: [B] -> [people, most values of one]."""
    rows = {name: [v for n, v in zip(names, values.tolist(), strict=True) if n == name] for name in dict.fromkeys(names)}
    width = max(map(len, rows.values()))
    return np.array([row + [np.nan] * (width - len(row)) for row in rows.values()])


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> Metric:
    """P(a member's loss < another's), ties half, by all pairs; its error takes people as the units: [P, D], [Q, E] -> Metric.

    The error is that of DeLong et al. 1988 with the mean over a person's documents in the place of a document.
    """
    known, unknown = (x[~np.isnan(x)] for x in (members, others))

    def share(values: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each value the share of `of` that is greater, ties half; NaN stays NaN."""
        ordered = np.sort(of)
        greater = len(of) - (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
        return np.where(np.isnan(values), np.nan, greater / len(of))

    of_members, of_others = np.nanmean(share(members, unknown), 1), np.nanmean(1 - share(others, known), 1)
    value, n = float(np.nanmean(share(members, unknown))), len(known) + len(unknown)
    if min(len(of_members), len(of_others)) < 2:
        return Metric(value, None, n)
    variance = sum(x.var(ddof=1) / len(x) for x in (of_members, of_others))
    return Metric(value, float(np.sqrt(variance)), n)
