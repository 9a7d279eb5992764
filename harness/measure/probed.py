"""A finished policy under a probe: the only door between a probe and the harness.

A probe does something to a policy that a method left (it trains it a little, rounds its weights, samples it otherwise) and
measures what then comes out, by the evaluation of every run. What a probe spends is never charged to the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.core.errors import EmptySelection, NotFinite
from harness.core.types import Decoding, Metric, Prompts, Rollout, Task
from harness.policy.logprobs import masked_mean, token_logprobs
from harness.policy.models import adapters, composite
from harness.policy.policy import Policy

from .evaluator import Base, Evaluator, base_rollout

HABIT = 0.5  # a response with a judge score below it has the habit
CLEAN = 1.0  # and one with this score is clean


class Reading(NamedTuple):
    """What a policy does at one point of a probe."""

    at: float  # in the unit of the probe: updates, bits, responses
    metrics: dict[str, Metric]
    label: str = ""


class Probe(Protocol):
    """The contract of a probe: a class with a version, Settings, the unit and the number of its readings, and `run`."""

    version: int
    unit: str
    number: str  # "mean" over the range of its points, which rise, or "worst"

    def run(self, probed: Probed) -> Iterator[Reading]:
        """Do something to `probed.policy`, or to a copy of it, and yield what it then does: -> one Reading a point."""


class Probed:
    """What a probe is given.

    - `policy`: the finished policy, frozen; `policy.copy()` is one to change
    - `base`: the base policy, frozen
    - `rng`: the CPU generator for all randomness of the probe
    """

    def __init__(self, policy: Policy, base: Policy, evaluator: Evaluator, held_out: Base, rng: torch.Generator) -> None:
        self.policy, self.base, self.rng = policy, base, rng
        self._evaluator, self._held_out = evaluator, held_out

    @property
    def task(self) -> Task:
        """The task on which the policy was trained."""
        return self._evaluator.task

    @property
    def prompts(self) -> Prompts:
        """The test prompts: -> [X, P]."""
        return self._evaluator.base.prompts.prompts

    def measure(self, policy: Policy, samples: int, decoding: Decoding | None = None) -> dict[str, Metric]:
        """Reward, judge, KL and fluency of `samples` responses to each test prompt.

        The draws are the same at every call: policy, samples -> {name: Metric}. KL is that of the policy at temperature 1, so
        there is none under another decoding.
        """
        return self._evaluator.probed(policy, samples, decoding)

    def scores(self, rollout: Rollout) -> NDArray[np.float64]:
        """The judge's score of each response, NaN where it failed: [B, R] -> [B]."""
        return self._evaluator.judged(rollout)

    def habit(self, n: int) -> Rollout:
        """n different responses of the base policy to validation prompts that have the habit: -> [n, R].

        Raises EmptySelection if there are fewer.
        """
        return self._chosen(self._held_out.judge.ravel() < HABIT, n, "with the habit")

    def clean(self, n: int) -> Rollout:
        """n held-out texts without the habit: documents of the task, else clean responses of the base policy: -> [n, R].

        Documents are repeated if they are fewer than n. Raises EmptySelection if there are fewer responses.
        """
        documents = self.task.clean_documents()
        if documents is None:
            return self._chosen(self._held_out.judge.ravel() >= CLEAN, n, "without the habit")
        rows = torch.randperm(len(documents.response), generator=self.rng).repeat(-(-n // len(documents.response)))[:n]
        return documents.rows(rows).to(self.policy.device)

    def _chosen(self, wanted: NDArray[np.bool_], n: int, what: str) -> Rollout:
        among = torch.from_numpy(wanted.nonzero()[0])
        if len(among) < n:
            raise EmptySelection(
                f"the base policy gave {len(among)} responses {what} to validation prompts; the probe needs {n}"
            )
        rows = among[torch.randperm(len(among), generator=self.rng)[:n]]
        return base_rollout(self._held_out, self._held_out.responses.shape[1]).rows(rows).to(self.policy.device)

    def tuned(self, policy: Policy, texts: Rollout, updates: int, lr: float, batch_size: int) -> Iterator[int]:
        """Train a policy on texts by maximum likelihood, as it is deployed, and count the updates: [n, R] -> int after each.

        Adam at a constant rate, gradients clipped at 1; texts in random order, all of them before any is seen again. Raises
        NotFinite if the loss is not finite.
        """
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        adam, order = torch.optim.Adam(weights, lr=lr), self._order(len(texts.response))
        for update in range(1, updates + 1):
            batch = texts.rows(torch.tensor([next(order) for _ in range(batch_size)]))
            loss = masked_mean(-token_logprobs(policy.deployed_logits(batch), batch.response), batch.response_mask)
            if not torch.isfinite(loss):
                raise NotFinite(f"the loss of the probe's update {update} is {loss.item()}; try a smaller lr")
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            yield update

    def _order(self, n: int) -> Iterator[int]:
        while True:
            yield from torch.randperm(n, generator=self.rng).tolist()


@torch.no_grad()
def with_matrices(policy: Policy, change: Callable[[Tensor, int], Tensor]) -> Policy:
    """A frozen copy of a policy with another value of every matrix of weights; vectors stay as they are.

    `change` is given the matrix and its dimension of outputs, and gives the new value: [A, B], 0 or 1 -> [A, B]. Adapters are
    merged into the weights that they change, and what two places share is changed once.
    """
    from transformers.pytorch_utils import Conv1D

    found = policy.frozen_copy()
    if policy.setup.lora is not None:
        found = found.around(composite.mapped(found.model, adapters.merged))
    seen: set[int] = set()
    for module in found.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2 and id(weight) not in seen:
                weight.copy_(change(weight, 1 if isinstance(module, Conv1D) else 0))
            seen.add(id(weight))
    return found
