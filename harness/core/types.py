"""The plain data that methods, tasks and the runner hand to each other.

Shapes: B batch, P prompt length (left-padded), R response length (right-padded), V vocabulary without control
tokens, X prompts, S responses a prompt. A mask is True where the position counts. Log-probabilities are natural (nats).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


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


class Responses(NamedTuple):
    """Responses to X prompts, S to each, with the judge's scores, under one decoding."""

    prompts: list[str]  # [X]
    texts: list[list[str]]  # [X][S]
    judge: NDArray  # [X, S], in [0, 1], NaN where it failed

    def of(self, rows: list[int]) -> Responses:
        """The same for some of the prompts."""
        return Responses([self.prompts[x] for x in rows], [self.texts[x] for x in rows], self.judge[rows])


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

    max_new_tokens: int = Field(ge=1, description="maximum response length R, in tokens")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0 is greedy")
    top_k: int = Field(0, ge=0, description="tokens kept by top-k; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="probability mass kept by top-p; 1 keeps all")


class Knob(NamedTuple):
    """The one setting of a method that trades reward for drift, with five values from weak to strong.

    Weak stays close to the base policy, strong moves far from it: of a coefficient of the KL the largest value comes first.
    """

    setting: str
    values: tuple[float, ...]


class Scorer(Protocol):
    """A scorer of texts: a reward, a judge. One class; its constructor takes its options by name.

    A text that it cannot score is NaN, never zero; a text on which it raises is counted as unscored.
    """

    identity: dict[str, Any]  # plain data: name, version, hashes of weights or word lists; all that decides a score

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response after its prompt, higher is better, NaN where there is none: [B], [B] -> [B] in [0, 1]."""


class FluencyModel(Protocol):
    """A language model that judges fluency."""

    identity: dict[str, Any]

    def nll(self, prompts: list[str], texts: list[list[str]]) -> tuple[NDArray, NDArray]:
        """NLL in nats and number of tokens of each response after its prompt: [X], [X][S] -> [X, S], [X, S]."""


class Item(NamedTuple):
    """What one row of a data set gives: a prompt, its kind, how the text goes on."""

    prompt: str
    kind: str | None  # None: to train on only
    group: str  # the text whose hash decides the split
    response: str = ""  # how the text goes on
    clean: bool = False  # neither prompt nor response has the habit
    split: str | None = None  # of the data set's own: train, validation, test, or held_out for either of the two
    place: str = ""  # where the user finds the row


class DataSet(Protocol):
    """A named source of prompts and documents: rows from a place, and the items of a row."""

    kinds: tuple[str, str]  # of an ordinary and of an adversarial prompt of this task

    def __init__(self, task: str, settings: Any, tokenizer: Any) -> None:
        """`settings` are those of `task.data`; raises BadSetting where the data has no prompts for the task."""

    @classmethod
    def needs(cls, settings: Any) -> list[Any]:
        """What must be there before it can be read, as `harness.api.hub` describes it."""

    def rows(self, offline: bool) -> Iterable[tuple[str | None, dict[str, Any]]]:
        """Rows with the split that they stand for, None where the hash decides; raises MissingPrerequisite, BadData."""

    def items(self, row: dict[str, Any]) -> Iterable[Item]:
        """The items of a row; raises NoItem with the word under which the row is counted."""


class DeployedPolicy(Protocol):
    """What is measured and saved when it is not a plain `Policy`, such as best-of-n; handed to `trial.deploy`."""

    def sample(self, prompts: Prompts, *, decoding: Decoding, rng: torch.Generator, n: int) -> Rollout:
        """n responses to each prompt, a prompt's responses in a row: [X, P] -> [X * n, R]."""

    def kl_to_base(self, base_reward: NDArray) -> NDArray:
        """KL(policy || base) in nats per response, from the rewards of M base responses a prompt: [X, M] -> [X]."""


class Task(Protocol):
    """A habit to unlearn: prompts, the reward that methods see, the judge that they never see.

    X prompts, S responses a prompt; B responses in all, of R tokens. Splits are train, validation and test.
    """

    name: str
    version: int
    decoding: Decoding
    """The policy itself: temperature 1, nothing cut off."""
    paper_decodings: dict[str, Decoding]
    """Decodings of the papers' metrics, by name; empty where the task has none."""
    fluency: FluencyModel | None
    hygiene: dict[str, Any]
    """How well the splits keep apart, for the record's provenance."""

    def identity(self) -> dict[str, Any]:
        """Plain data with the hashes and versions of all that decides a result: data, scorers, decoding."""

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        """n training prompts, drawn with replacement: -> [n, P]."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """n documents of the corpus with the rewards of their segments: -> [n, R]; raises EmptySelection where it has none."""

    def clean_documents(self) -> Rollout | None:
        """Held-out text without the habit: -> [D, R]; None where the data has none."""

    def prompts(self, split: str) -> PromptSet:
        """The prompts of a split, in a fixed order: -> X prompts; raises EmptySelection where it has none."""

    def texts(self, rollout: Rollout) -> list[str]:
        """The responses as text, without special tokens: [B, R] -> [B]."""

    def reward(self, rollout: Rollout) -> Tensor:
        """The reward of each response, in [0, 1], higher is better, NaN where the scorer failed: [B, R] -> [B] float32."""

    def judge(self, rollout: Rollout) -> Tensor:
        """The judge's score of each response, in [0, 1], NaN where it failed: [B, R] -> [B] float32."""

    def text_metrics(self, texts: list[list[str]]) -> dict[str, Metric]:
        """Further metrics of responses at temperature 1: [X][S] -> by name."""

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The papers' metrics, from responses under each of `paper_decodings`, by its name."""


def metric_record(metric: Metric) -> dict[str, Any]:
    """A metric as strict JSON: null with a reason where it has no finite value."""
    value, stderr, n, n_unscored, reason = metric
    if value is not None and not math.isfinite(value):
        value, reason = None, f"not finite: {value}"
    stderr = stderr if stderr is not None and math.isfinite(stderr) else None
    record = {"value": value, "stderr": stderr if value is not None else None, "n": n, "n_unscored": n_unscored}
    return record | ({"reason": reason} if reason else {})
