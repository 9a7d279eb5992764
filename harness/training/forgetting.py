"""Text to forget and text to retain, from the documents of a corpus: what unlearning is given in its own papers.

    state.line = forgetting.from_documents(trial, state.pool)                     once, before the first update
    forget, _ = state.pool.draw(n, trial.rng, quantile=0)                         responses after their prompts
    retain, _ = state.pool.draw(n, trial.rng, quantile=1)

A method that forgets its own samples by default names the source in a setting: `forget: forgetting.Source`.
"""

from __future__ import annotations

from typing import Literal

from harness.core.errors import RunFailed

from .corpus import document_rewards
from .pool import Pool
from .trial import Trial

Source = Literal["samples", "documents"]
HELP = "text to forget and to retain: samples of the policy, or documents of the corpus"
DOCUMENTS = 4096  # that are read, with replacement, before the first update
LINE = 0.0  # documents whose reward is at or below it are to be forgotten


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
