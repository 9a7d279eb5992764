"""The plain data that methods, tasks and the runner hand to each other.

Shapes: B batch, P prompt length (left-padded), R response length (right-padded), V vocabulary without control
tokens, X prompts, S responses a prompt. A mask is True where the position counts. Log-probabilities are natural (nats).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class Prompts(NamedTuple):
    """A batch of prompts as token ids, padded on the left to one length: [B, P]."""

    tokens: Tensor  # [B, P] int64, left-padded
    mask: Tensor  # [B, P] bool

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device: [B, P] -> [B, P]."""
        return Prompts(self.tokens.to(device), self.mask.to(device))


class Rollout(NamedTuple):
    """Prompts [B, P] with a response to each [B, R], padded on the right. The rollout of a document has no `logprobs`."""

    prompts: Prompts  # [B, P]
    response: Tensor  # [B, R] int64
    response_mask: Tensor  # [B, R] bool: up to and including the first EOS
    logprobs: Tensor | None = None  # [B, R] log pi(y_t | x, y_<t) of the policy that sampled, at temperature 1
    reference_states: Tensor | None = None  # [B, R, D] last hidden states of the reference, if a pool has kept them

    def to(self, device: torch.device | str) -> Rollout:
        """The same rollout on another device: [B, R] -> [B, R]."""
        logprobs, states = (None if x is None else x.to(device) for x in (self.logprobs, self.reference_states))
        return Rollout(self.prompts.to(device), self.response.to(device), self.response_mask.to(device), logprobs, states)

    def rows(self, index: Tensor) -> Rollout:
        """The rows with these indices, or where this mask is True: [n] int64 or [B] bool -> [n, R]."""
        prompts = Prompts(self.prompts.tokens[index], self.prompts.mask[index])
        logprobs, states = (None if x is None else x[index] for x in (self.logprobs, self.reference_states))
        return Rollout(prompts, self.response[index], self.response_mask[index], logprobs, states)


class Documents(NamedTuple):
    """A batch of documents of the corpus with the reward of each segment, a sentence or a line of code: [B, R].

    Segments are numbered from 0 within a document; -1 marks tokens of no segment (padding, text without a label). The EOS
    belongs to the last segment.
    """

    rollout: Rollout  # [B, R]
    segment: Tensor  # [B, R] int64: number of the token's segment
    reward: Tensor  # [B, R] float32: reward of the token's segment, in [0, 1]; NaN where it has none or the scorer failed
    own: Tensor | None = None  # [B] bool: the document's kind is one of the task's; None if the corpus has no kinds

    def to(self, device: torch.device | str) -> Documents:
        """The same documents on another device: [B, R] -> [B, R]."""
        own = None if self.own is None else self.own.to(device)
        return Documents(self.rollout.to(device), self.segment.to(device), self.reward.to(device), own)

    def rows(self, index: Tensor) -> Documents:
        """The documents with these indices, or where this mask is True: [n] int64 or [B] bool -> [n, R]."""
        own = None if self.own is None else self.own[index]
        return Documents(self.rollout.rows(index), self.segment[index], self.reward[index], own)

    def starts(self) -> Tensor:
        """True at the first token of each segment: -> [B, R] bool."""
        before = self.segment.roll(1, 1)
        before[:, :1] = -1
        return (self.segment >= 0) & (self.segment != before)


class BaseTraining(NamedTuple):
    """How the base policy was trained, for a control that is trained in the same way without the task's habit."""

    identity: dict[str, Any]  # plain data: what decides the result beside the settings of budget and optimizer
    updates: int
    lr: float  # the largest learning rate
    optimizer: dict[str, Any]  # settings of the optimizer, as under [optimizer] of a preset
    rows: Callable[[Random], Iterator[Tensor]]
    """Batches of token ids without end, of documents without the habit, drawn by a generator of Python: -> [B, C] each."""


class PromptSet(NamedTuple):
    """The X prompts of one split, in a fixed order."""

    prompts: Prompts  # [X, P]
    texts: list[str]  # [X]
    kinds: list[str]  # [X]: how likely the prompt elicits the behaviour (calm, heated, adversarial), or the data's own label
    places: Sequence[str] = ()  # [X]: where the user finds each prompt, such as a file and its line; empty if unknown


class Responses(NamedTuple):
    """Responses to X prompts, S to each, with the judge's scores, under one decoding."""

    prompts: list[str]  # [X]
    texts: list[list[str]]  # X lists of S
    judge: NDArray[Any]  # [X, S], in [0, 1], NaN where it failed

    def of(self, rows: list[int]) -> Responses:
        """The responses to the prompts with these indices."""
        return Responses([self.prompts[x] for x in rows], [self.texts[x] for x in rows], self.judge[rows])


class Metric(NamedTuple):
    """A measured value with its standard error."""

    value: float | None  # in the metric's own unit; None if it was not measured
    stderr: float | None  # standard error, clustered by prompt; None if unknown
    n: int  # number of responses (or tokens, or characters) that the value is computed from
    n_unscored: int = 0  # number of responses left out because they could not be scored
    reason: str | None = None  # why `value` is None


LARGEST = 2**53


class Settings(BaseModel):
    """The base class of settings, a frozen pydantic model: numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    added: ClassVar[tuple[str, ...]] = ()
    """Settings that came after runs were made without them: at their default the identity of a run does not hold them."""

    @field_validator("*", mode="after", check_fields=False)
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """No whole number beyond what a float holds exactly: 64-bit sizes and counts overflow not far above."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"input should be a number within ±{LARGEST}")
        return value


def as_names(given: Any) -> Any:
    """The names in a text of a command line, `a,b` or `[a,b]`, as a list; anything but a text as it is."""
    return [name.strip() for name in given.strip("[] ").split(",") if name.strip()] if isinstance(given, str) else given


Names = Annotated[list[str], BeforeValidator(as_names)]
"""Names as a list, or as text of a command line: `a,b` or `[a,b]`."""


def settings_identity(settings: BaseModel) -> dict[str, Any]:
    """Settings as they enter the identity of a run, so that a new setting leaves the ids of older runs as they were."""
    added, fields = getattr(settings, "added", ()), type(settings).model_fields
    return {k: v for k, v in settings.model_dump().items() if k not in added or v != fields[k].default}


class Decoding(Settings):
    """How responses are sampled. The defaults sample from the policy itself: temperature 1, no top-k, no top-p."""

    max_new_tokens: int = Field(ge=1, description="maximum response length R, in tokens")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0 is greedy")
    top_k: int = Field(0, ge=0, description="tokens kept by top-k; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="probability mass kept by top-p; 1 keeps all")


class LoraSettings(Settings):
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1): W + alpha / rank * B A, with W frozen."""

    rank: int = Field(0, ge=0, description="rank of the adapters; 0 trains all weights")
    alpha: float | None = Field(None, gt=0, description="alpha, scale of the adapters times their rank [twice the rank]")
    merge: bool = Field(False, description="save the final policy as whole weights, not as an adapter beside its base")

    @model_validator(mode="after")
    def _of_an_adapter(self) -> LoraSettings:
        if not self.rank and (self.alpha is not None or self.merge):
            raise ValueError("alpha and merge go with a rank of 1 or more")
        return self


class Knob(NamedTuple):
    """The one setting of a method that trades reward for drift, with five values from weak to strong.

    Weak stays close to the base policy, strong moves far from it: of a coefficient of the KL the largest value comes first.
    """

    setting: str  # its name, such as kl_coef
    values: tuple[float, ...]  # five values, from the weakest to the strongest change of the policy


class Scorer(Protocol):
    """A scorer of texts, used as a reward or as a judge. Its constructor takes its options by name.

    A text that cannot be scored has the score NaN, never zero. A text on which `score` raises is counted as unscored.
    """

    identity: dict[str, Any]  # plain data that decides every score: name, version, hashes of weights or word lists

    def score(self, prompts: list[str], responses: list[str]) -> NDArray[Any]:
        """The score of each response to its prompt, higher is better, NaN if it has none: [B], [B] -> [B] in [0, 1]."""


class FluencyModel(Protocol):
    """A language model that judges fluency."""

    identity: dict[str, Any]

    def nll(self, prompts: list[str], texts: list[list[str]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """NLL in nats and number of tokens of each response after its prompt: [X], [X][S] -> [X, S], [X, S]."""


class Item(NamedTuple):
    """One prompt of a data set, with the continuation that the data has for it."""

    prompt: str  # its text
    kind: str | None  # label of the prompt in the results; None if it is for training only
    group: str  # the text whose hash decides the split, such as the whole document
    response: str = ""  # the continuation in the data
    clean: bool = False  # whether prompt and response are both free of the undesired behaviour
    split: str | None = None  # the data set's own split: train, validation, test, or held_out for either of the last two
    place: str = ""  # where the user finds the row


class DataSet(Protocol):
    """A named source of prompts and documents: it reads rows and turns each into items."""

    kinds: tuple[str, str]  # the labels of an ordinary and of an adversarial prompt of this task

    def __init__(self, task: str, settings: Any, tokenizer: Any) -> None:
        """`settings` are those of `task.data`; raises BadSetting where the data has no prompts for the task."""

    @classmethod
    def needs(cls, settings: Any) -> list[Any]:
        """The files and packages that it reads, each a `harness.api.hub.Need`."""

    def rows(self, offline: bool) -> Iterable[tuple[str | None, dict[str, Any]]]:
        """Rows with their split, None if a hash decides the split; raises MissingPrerequisite, BadData."""

    def items(self, row: dict[str, Any]) -> Iterable[Item]:
        """The items of a row; raises NoItem with the reason under which the row is counted as left out."""


class DeployedPolicy(Protocol):
    """What is measured and saved if it is not a plain `Policy`, such as best-of-n; a method passes it to `trial.deploy`."""

    def sample(self, prompts: Prompts, *, decoding: Decoding, rng: torch.Generator, n: int) -> Rollout:
        """n responses to each prompt, those of one prompt in consecutive rows: [X, P] -> [X * n, R]."""

    def kl_to_base(self, base_reward: NDArray[Any]) -> NDArray[Any]:
        """KL(policy || base) in nats per response, from the rewards of M base responses a prompt: [X, M] -> [X]."""


class OwnMetric(Settings):
    """How a page shows a metric that only one task has."""

    title: str
    unit: str
    better: Literal["up", "down", ""] = Field(description="the better direction; empty where neither is better")


class Task(Protocol):
    """A behaviour to unlearn: prompts, the reward that methods train on, and the judge that no method sees.

    The splits are train, validation and test. A task may also have `own_metrics`, {name: OwnMetric}, and
    `measures(policy) -> {name: Metric}`, which measures them: every evaluation asks for them.
    """

    name: str
    """The name on the command line and in records."""
    version: int
    """Raise it when a change moves results."""
    decoding: Decoding
    """The length of a response; temperature 1, no top-k and no top-p."""
    paper_decodings: dict[str, Decoding]
    """The decodings of the papers' metrics, by name; empty if the task has none."""
    fluency: FluencyModel | None
    """The language model whose perplexity is reported; None for no perplexity."""
    hygiene: dict[str, Any]
    """The overlap between splits, for the record's provenance."""

    def identity(self) -> dict[str, Any]:
        """Plain data that decides a result: hashes and versions of data, scorers and decoding."""

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        """n training prompts, drawn with replacement: -> [n, P]."""

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """n documents of the corpus with the rewards of their segments: -> [n, R]; raises EmptySelection if there are none."""

    def clean_documents(self) -> Rollout | None:
        """Held-out text without the undesired behaviour, D documents: -> [D, R]; None if the data has none."""

    def prompts(self, split: str) -> PromptSet:
        """The prompts of a split, in a fixed order: -> [X, P]; raises EmptySelection if it has none."""

    def texts(self, rollout: Rollout) -> list[str]:
        """The responses as text, without special tokens: [B, R] -> [B]."""

    def reward(self, rollout: Rollout) -> Tensor:
        """The reward of each response, in [0, 1], higher is better, NaN where the scorer failed: [B, R] -> [B] float32."""

    def judge(self, rollout: Rollout) -> Tensor:
        """The judge's score of each response, in [0, 1], NaN where it failed: [B, R] -> [B] float32."""

    def text_metrics(self, texts: list[list[str]]) -> dict[str, Metric]:
        """Further metrics of responses at temperature 1, by name: X lists of S texts -> {name: Metric}."""

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """The papers' metrics, from the responses under each of `paper_decodings`: {decoding: [X, S]} -> {name: Metric}."""
