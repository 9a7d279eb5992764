"""Negated task vector: subtract from the weights what a copy learns from bad text (Ilharco et al. 2022, arXiv:2212.04089,
sections 2 and 3).

    theta_tuned: min over theta from theta_0:  -log p(x_t | x_<t)  for tokens of bad segments    (r < t)
    tau = theta_tuned - theta_0                                                                  the task vector
    deploy  theta_0 - alpha tau                                                                  negation

Departures: the paper's bad text is comments above a score; here it is the segments of the scored corpus below a quantile of
the rewards, each conditioned on all text before it, as the anti-expert of `dexperts` learns them. Nothing else holds the
policy to the base: alpha is chosen on a control task in the paper, and is the knob here. What is deployed and measured after
an update is the negation of the vector up to there. Under LoRA tau is what the adapter has learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from harness.api import Documents, Knob, Settings, Trial, corpus, masked_mean, subtract_task, token_logprobs


class TaskVectorSettings(Settings):
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate of the copy")
    alpha: float = Field(0.5, ge=0, description="alpha, length of the negated task vector; 0 is the base policy")
    quantile: float = Field(0.5, gt=0, lt=1, description="quantile of segment rewards; the copy learns the segments below it")
    batch_size: int = Field(64, ge=1, description="documents per update")

    @property
    def held(self) -> int:
        """Networks held without training, for estimates of memory: what is deployed, beside the copy that learns."""
        return 1

    @property
    def on_documents(self) -> bool:
        """Whether updates read documents, for estimates of memory."""
        return True


class TaskVector:
    version = 1
    Settings = TaskVectorSettings
    family = "pushing bad text down"
    knob = Knob("alpha", (0.1, 0.25, 0.5, 1.0, 2.0))
    quick: ClassVar[dict[str, Any]] = {"batch_size": 4, "lr": 1e-3}
    claims: ClassVar[dict[str, dict[str, Any]]] = {
        "base_returns": {"alpha": 1e-4, "lr": 1e-2},
        "reward_rises": {"batch_size": 32, "lr": 1e-2},
    }

    def __init__(self, settings: TaskVectorSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s, policy = self.settings, trial.policy
        copy = trial.reference.copy().requires_grad_(True)
        tuned = policy.around(copy.model)  # its passes are charged
        state = trial.keep(step=0, threshold=math.nan, tuned=tuned.model)
        policy.requires_grad_(False)
        trial.train_also(tuned.model)
        if state.step == 0:
            state.threshold = corpus.threshold(corpus.segment_rewards(trial.documents(corpus.CALIBRATION)), s.quantile)
        while True:
            batch = corpus.draw(trial, s.batch_size, lambda documents: bad(documents, state.threshold))
            logits = tuned.logits(batch.rollout)
            loss = masked_mean(-token_logprobs(logits, batch.rollout.response), bad(batch, state.threshold))
            trial.update(loss)
            subtract_task(policy, tuned, trial.reference, s.alpha)
            state.step += 1
            yield {"bad_nll": loss.item()}


def bad(documents: Documents, threshold: float) -> Tensor:
    """Mask of the tokens of bad segments: -> [B, R] bool."""
    return corpus.scored(documents) & (documents.reward < threshold)
