"""The plain data that methods, tasks and the runner hand to each other.

Shapes: B batch, P prompt length (left-padded), R response length (right-padded), V vocabulary without control
tokens, X prompts, S responses a prompt. A mask is True where the position counts. Log-probabilities are natural (nats).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from .trial import Trial


class Prompts(NamedTuple):
    tokens: Tensor  # [B, P] int64, left-padded
    mask: Tensor  # [B, P] bool

    def to(self, device: torch.device | str) -> Prompts:
        return Prompts(self.tokens.to(device), self.mask.to(device))


class Rollout(NamedTuple):
    """Responses to prompts. A document's rollout has no logprobs."""

    prompts: Prompts
    response: Tensor  # [B, R] int64
    response_mask: Tensor  # [B, R] bool: up to and including the first EOS
    logprobs: Tensor | None = None  # [B, R] log pi(y_t | x, y_<t) of the policy that sampled, at temperature 1

    def to(self, device: torch.device | str) -> Rollout:
        logprobs = None if self.logprobs is None else self.logprobs.to(device)
        return Rollout(self.prompts.to(device), self.response.to(device), self.response_mask.to(device), logprobs)

    def rows(self, index: Tensor) -> Rollout:
        """Some of the responses with their prompts, by number or by mask: [n] or [B] -> [n, R]."""
        prompts = Prompts(self.prompts.tokens[index], self.prompts.mask[index])
        logprobs = None if self.logprobs is None else self.logprobs[index]
        return Rollout(prompts, self.response[index], self.response_mask[index], logprobs)


class Documents(NamedTuple):
    """Text of the corpus, prompt and response, with the reward of each segment: a sentence, or a line of code.

    A segment is numbered from 0 within its document; -1 are tokens that belong to none (padding, text without a label).
    The EOS belongs to the last segment.
    """

    rollout: Rollout
    segment: Tensor  # [B, R] int64
    reward: Tensor  # [B, R] float32: of the token's segment, in [0, 1]; NaN where it has none or the scorer failed

    def to(self, device: torch.device | str) -> Documents:
        return Documents(self.rollout.to(device), self.segment.to(device), self.reward.to(device))

    def rows(self, index: Tensor) -> Documents:
        """Some of the documents, by number or by mask: [n] or [B] -> [n, R]."""
        return Documents(self.rollout.rows(index), self.segment[index], self.reward[index])

    def starts(self) -> Tensor:
        """True at the first token of each segment: -> [B, R] bool."""
        before = self.segment.roll(1, 1)
        before[:, :1] = -1
        return (self.segment >= 0) & (self.segment != before)


class PromptSet(NamedTuple):
    """The prompts of one split, in a fixed order."""

    prompts: Prompts
    texts: list[str]
    kinds: list[str]  # how likely the prompt provokes the habit: calm, heated, adversarial; or the data's own word
    places: Sequence[str] = ()  # where the user finds each of them, such as a file and its line; empty where nobody knows


class Said(NamedTuple):
    """What a policy said under one of the papers' decodings, and what the judge thought of it."""

    prompts: list[str]  # [X]
    texts: list[list[str]]  # [X][S]
    judge: NDArray  # [X, S]

    def of(self, rows: list[int]) -> Said:
        """The same for some of the prompts."""
        return Said([self.prompts[x] for x in rows], [self.texts[x] for x in rows], self.judge[rows])


class Metric(NamedTuple):
    """A measured number; value None says that it was not measured, and reason says why."""

    value: float | None
    stderr: float | None
    n: int
    n_unscored: int = 0
    reason: str | None = None


LARGEST = 2**53


class Settings(BaseModel):
    """The base of every settings class: frozen, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after", check_fields=False)
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """No whole number beyond what a float holds exactly: 64-bit sizes and counts overflow not far above."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"input should be a number within ±{LARGEST}")
        return value


class Decoding(Settings):
    """How tokens are drawn. The defaults are the policy itself: temperature 1, nothing cut off."""

    max_new_tokens: int = Field(ge=1, description="R, tokens")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_k: int = Field(0, ge=0, description="0 keeps every token")
    top_p: float = Field(1.0, gt=0, le=1, description="1 keeps every token")


class Method(Protocol):
    """A way to change a policy. One file of `methods/`, one paper."""

    version: int
    settings: Settings

    def __init__(self, settings: Any) -> None: ...

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        """Train trial.policy; yield the scalars worth plotting once after each update."""


class Scorer(Protocol):
    """Scores texts in [0, 1], higher is better; NaN where it could not."""

    identity: dict[str, Any]  # name, version, hash of the weights or of the word list

    def score(self, prompts: list[str], responses: list[str]) -> NDArray: ...


class Task(Protocol):
    """What is to be unlearned: prompts, the reward that methods see, the judge that they never see."""

    name: str
    version: int
    decoding: Decoding

    def identity(self) -> dict[str, Any]:
        """Hashes and versions of all that decides a result: data, scorers, tokenizer."""

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts: ...

    def documents(self, n: int, rng: torch.Generator) -> Documents: ...

    def prompts(self, split: str) -> PromptSet: ...

    def reward(self, rollout: Rollout) -> Tensor: ...

    def judge(self, rollout: Rollout) -> Tensor: ...
