"""What methods that learn from scored text share: whole documents, the line between good and bad, the two stages.

A document is learned as a whole, prompt and response. Labels belong to the segments of the response; the prompt has
none and is plain text. A segment that the scorer could not score is left out of every loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from harness.core.errors import RunFailed
from harness.core.types import Documents, Prompts, Rollout, Settings
from harness.policy.logprobs import masked_mean, token_logprobs

from .trial import Trial

CALIBRATION = 1000  # documents from which a threshold is read
ATTEMPTS = 100  # draws in a row without a wanted document, after which there is none


class CorpusSettings(Settings):
    """The settings of every method that learns from the corpus (Korbak et al. 2023, arXiv:2302.08582, section 2).

    From scratch, `mle_share` 0 is pretraining with feedback; above 0 it is finetuning with feedback after that share of the
    tokens. From the base policy, its own pretraining comes on top.
    """

    lr: float = Field(5e-4, gt=0, description="Adam's learning rate")
    start: Literal["base", "scratch"] = Field("base", description="initial weights: the base policy's, or fresh ones")
    mle_share: float = Field(0.0, ge=0, le=1, description="share of the budget spent first on plain maximum likelihood")
    batch_size: int = Field(64, ge=1, description="documents per update")

    @property
    def on_documents(self) -> bool:
        """Whether updates read documents, for estimates of memory."""
        return getattr(self, "source", "corpus") == "corpus"


def begin(trial: Trial, start: str) -> None:
    """Where training starts from: the base policy as it is, or weights drawn anew; before control tokens are made."""
    if start == "scratch":
        trial.policy.reset(trial.rng)


def draw(trial: Trial, n: int, wanted: Callable[[Documents], Tensor] | None = None) -> Documents:
    """n whole documents, of those with a wanted token where `wanted` marks them (documents -> [B, R] bool): -> [n, R].

    Those without were read and labelled, and are charged as that. Raises RunFailed where there seem to be none.
    """
    if wanted is None:
        return whole(trial.documents(n))
    parts: list[Documents] = []
    while sum(len(part.reward) for part in parts) < n:
        found = _next(trial, n, wanted)
        parts.append(found)
    return whole(_joined(parts).rows(torch.arange(n, device=trial.policy.device)))


def _next(trial: Trial, n: int, wanted: Callable[[Documents], Tensor]) -> Documents:
    for _ in range(ATTEMPTS):
        documents = trial.documents(n)
        if (kept := wanted(documents).any(1)).any():
            return documents.rows(kept)
    raise RunFailed(f"none of {ATTEMPTS * n} documents drawn can be used; look at their rewards, or change the quantile")


def _joined(parts: list[Documents]) -> Documents:
    """Documents of any widths below each other."""
    p = max(part.rollout.prompts.mask.shape[1] for part in parts)
    r = max(part.segment.shape[1] for part in parts)

    def left(of: Callable[[Documents], Tensor], fill: float) -> Tensor:
        return torch.cat([torch.nn.functional.pad(of(d), (p - of(d).shape[1], 0), value=fill) for d in parts])

    def right(of: Callable[[Documents], Tensor], fill: float) -> Tensor:
        return torch.cat([torch.nn.functional.pad(of(d), (0, r - of(d).shape[1]), value=fill) for d in parts])

    prompts = Prompts(left(lambda d: d.rollout.prompts.tokens, 0), left(lambda d: d.rollout.prompts.mask, False))
    rollout = Rollout(prompts, right(lambda d: d.rollout.response, 0), right(lambda d: d.rollout.response_mask, False))
    return Documents(rollout, right(lambda d: d.segment, -1), right(lambda d: d.reward, torch.nan))


def whole(documents: Documents) -> Documents:
    """The same documents with all but the first token in the response, where it is learned: [B, R] -> [B, P - 1 + R].

    A BOS is such a first token; without one the first word of a document has nothing before it to be predicted from.
    """
    prompts, response, mask = documents.rollout[:3]
    rows = torch.arange(len(documents.reward), device=documents.reward.device)
    tokens, real = torch.cat([prompts.tokens, response], 1), torch.cat([prompts.mask, mask], 1)
    first = prompts.mask.shape[1] - prompts.mask.sum(1)
    width = int(real.sum(1).max())
    at = first[:, None] + torch.arange(width, device=first.device)
    inside, at = at < tokens.shape[1], at.clamp(max=tokens.shape[1] - 1)
    prompt = torch.zeros_like(prompts.tokens)
    segment = torch.cat([prompt - 1, documents.segment], 1).gather(1, at)
    reward = torch.cat([prompt + torch.nan, documents.reward], 1).gather(1, at)
    opening = Prompts(tokens[rows, first][:, None], real[rows, first][:, None])
    rest = Rollout(opening, tokens.gather(1, at)[:, 1:], (real.gather(1, at) & inside)[:, 1:])
    return Documents(rest, segment.where(inside, -1)[:, 1:], reward.where(inside, torch.nan)[:, 1:])


def scored(documents: Documents) -> Tensor:
    """True at the tokens whose segment has a reward: -> [B, R] bool."""
    return documents.rollout.response_mask & ~documents.reward.isnan()


def plain(documents: Documents) -> Tensor:
    """True at the tokens that belong to no segment, such as a prompt's: -> [B, R] bool."""
    return documents.rollout.response_mask & (documents.segment < 0)


def segment_rewards(documents: Documents) -> Tensor:
    """The reward of each segment once, NaN where it has none: -> [number of segments]."""
    return documents.reward[documents.starts()]


def document_rewards(documents: Documents) -> Tensor:
    """The mean reward of each document's scored segments, NaN where it has none: -> [B]."""
    counts = documents.starts() & scored(documents)
    return documents.reward.masked_fill(~counts, 0).sum(1) / counts.sum(1)


def threshold(rewards: Tensor, quantile: float) -> float:
    """The reward that divides good (at or above it) from bad: -> a reward that occurs, at that quantile or just below.

    Raises RunFailed where no reward was scored, or none lies below the threshold: there would be no bad text.
    """
    rewards = rewards[~rewards.isnan()]
    if not len(rewards):
        raise RunFailed(f"none of {CALIBRATION} documents of the corpus could be scored; look at the scorer")
    line = float(rewards.quantile(quantile, interpolation="lower"))
    if not (rewards < line).any():
        raise RunFailed(f"no reward of the corpus is below {line:g}, its quantile {quantile:g}; raise the quantile")
    return line


def nll(trial: Trial, documents: Documents) -> Tensor:
    """Plain maximum likelihood: mean over the tokens that are plain or scored, nats: -> []."""
    logits = trial.policy.logits(documents.rollout)
    return masked_mean(-token_logprobs(logits, documents.rollout.response), plain(documents) | scored(documents))
