"""What a record holds: typed models of its files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
FINISHED = ("done", "degraded")


class Source(Protocol):
    """Where the parts of a record lie that are read only when they are needed: in a folder, or in the tables of a study."""

    dir: Path  # names the record; no file lies there where it is in tables
    home: Path  # the folder that came with the record: its own, or that of the whole study

    def prompts(self) -> dict[str, Any] | None: ...  # prompts.json; None where there is none; raises CorruptRecord
    def scalars(self) -> list[dict[str, Any]]: ...  # a row an update; none in an older record; raises CorruptRecord
    def table(self, name: str, columns: Collection[str] | None = None) -> pyarrow.Table: ...  # of samples; FileNotFoundError
    def names(self) -> list[str]: ...  # every file of the record, by its name in it
    def hash(self, name: str) -> str: ...  # content hash of such a file; raises OSError, ValueError or CorruptRecord


class Run(NamedTuple):
    """The record of one run; summary is None where the run has not finished, source where it lies in a folder of its own."""

    dir: Path
    manifest: dict[str, Any]
    summary: dict[str, Any] | None
    trajectory: list[dict[str, Any]]
    source: Source | None = None


def place(manifest: Mapping[str, Any]) -> Path:
    """Where a record lies among others: preset/task/method/run, each the name of a folder."""
    end = f"-s{manifest['seed']}"
    parts = (manifest["preset"], manifest["task"], manifest["method"], manifest["run_id"].removesuffix(end) + end)
    names = [str(part).replace("/", "_").replace("\0", "_") for part in parts]
    return Path(*(name if name not in ("", ".", "..") else "_" for name in names))


class PromptScores(NamedTuple):
    """What a run's final policy scored on each held-out prompt, in a fixed order: [X] each."""

    split: str
    id: list[str]  # of the prompt's text
    kind: list[str]
    values: dict[str, list[float | None]]  # reward, judge, kl (nats), nll_per_token (nats, by the fluency model)
    n_scored: list[int]  # responses that reward and judge could score


class Problem(NamedTuple):
    """Something that a reader of the report must know about a record, and where it lies."""

    path: Path
    what: str


class _Record(BaseModel):
    """What a reader relies on; further keys are welcome, since an addition does not change the schema version."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Metric(_Record):
    value: float | None
    stderr: float | None = Field(ge=0)
    n: int = Field(ge=0)
    n_unscored: int = Field(0, ge=0)
    reason: str | None = None


class _Manifest(_Record):
    run_id: str
    status: Literal["running", "done", "degraded", "failed", "interrupted"]
    preset: str
    task: str
    method: str
    seed: int
    identity: dict[str, Any]
    error: dict[str, Any] | None = None
    provenance: dict[str, Any] = {}
    started_at: str | None = None
    files: dict[str, str] | None = None


class _Point(_Record):
    kl: float = Field(ge=-1e-9)  # a KL of zero may carry its rounding
    reward: float


class _CurvePoint(_Point):
    reward_stderr: float | None = Field(None, ge=0)
    solid: bool


class _BestOfN(_Point):
    n: int = Field(ge=1)


class _JudgeAt(_Record):
    kl: list[float]
    judge: list[float | None]


class _Frontier(_Record):
    base_reward: float
    kl_cap: float | None = None
    curve: list[_CurvePoint]
    upper: list[_Point] = []
    best_of_n: list[_BestOfN] = []
    judge_at: _JudgeAt | None = None


class _Summary(_Record):
    run_id: str
    base: dict[str, _Metric]
    final: dict[str, _Metric]
    frontier: _Frontier | None
    cost: dict[str, float | None]


class _Prompts(_Record):
    split: str
    id: list[str]
    kind: list[str]
    reward: list[float | None]
    judge: list[float | None]
    kl: list[float | None]
    nll_per_token: list[float | None]
    n_scored: list[int]


class _Scalars(_Record):
    update: int = Field(ge=0)
    scalars: dict[str, float | None]


class _Row(_Record):
    update: int = Field(ge=0)
    split: str
    metrics: dict[str, _Metric]


Model = TypeVar("Model", bound=_Record)
