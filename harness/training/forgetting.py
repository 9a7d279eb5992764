"""Text to forget and text to retain: the policy's own samples, or documents of a corpus as unlearning has them in its papers.

state = trial.keep(step=0, line=math.nan, pool=Pool(trial.policy.device, trial.reference))
forget, retain = forgetting.sets(trial, state, settings)                      before each update
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar, Literal

from pydantic import Field

from harness.core.errors import RunFailed
from harness.core.types import Rollout, Settings

from .corpus import document_rewards
from .pool import Pool
from .trial import Trial

DOCUMENTS = 4096  # that are read, with replacement, before the first update
LINE = 0.0  # documents whose reward is at or below it are to be forgotten


class ForgetSettings(Settings):
    """The settings of every method that forgets some text and retains other text."""

    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    num_quantiles: int = Field(5, ge=2, description="K; text as bad as the worst 1/K of the first exploration is forgotten")
    explore_every: int = Field(500, ge=1, description="updates between explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration")
    batch_size: int = Field(128, ge=2, multiple_of=2, description="responses per update, half of them from the forget set")
    forget: Literal["samples", "documents"] = Field(
        "samples", description="text to forget and to retain: samples of the policy, or documents of the corpus"
    )
    added: ClassVar = ("forget",)  # later than runs that have no such setting

    @property
    def on_documents(self) -> bool:
        """Whether updates read documents, for estimates of memory."""
        return self.forget == "documents"


def sets(trial: Trial, state: SimpleNamespace, s: ForgetSettings) -> tuple[Rollout, Rollout]:
    """Responses to forget and to retain, after an exploration where one is due: -> [batch_size / 2, R] each.

    `state` has `step`, `line` and `pool`. The line is a quantile of the first rewards and stays: the worst of a pool that
    improves is good text after a while.
    """
    if s.forget == "documents" and state.step == 0:
        state.line = from_documents(trial, state.pool)
    elif s.forget == "samples" and state.step % s.explore_every == 0:
        rollout = trial.sample(trial.prompts(s.explore_prompts))
        state.pool.add(rollout, trial.reward(rollout))
        state.line = state.line if state.step else state.pool.line(1 / s.num_quantiles)
        state.pool.divide(state.line)
    forget, _ = state.pool.draw(s.batch_size // 2, trial.rng, quantile=0)
    retain, _ = state.pool.draw(s.batch_size // 2, trial.rng, quantile=1)
    return forget, retain


def from_documents(trial: Trial, pool: Pool, n: int = DOCUMENTS, line: float = LINE) -> float:
    """Add n documents to a pool: those to forget (reward at or below the line) are quantile 0, the others 1; -> the line.

    The reward of a document is the mean over its segments. Reading is charged as any other. Raises RunFailed if all
    documents lie on one side of the line, EmptySelection if the task has none.
    """
    documents = trial.documents(n)
    pool.add(documents.rollout, document_rewards(documents))
    pool.divide(line)
    share = float((pool.quantile == 0).float().mean())
    if not 0 < share < 1:
        what = "none is" if share == 0 else "all are"
        raise RunFailed(f"of {n} documents {what} to be forgotten (reward at or below {line:g}); choose forget=samples")
    return line
