"""The schema of a record: typed models of its files."""

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
    """The parts of a record that are read on demand, from a folder or from the tables of a study."""

    dir: Path  # names the record; it does not exist if the record is in tables
    home: Path  # the folder of the record, or of the whole study

    def prompts(self) -> dict[str, Any] | None: ...  # prompts.json; None if absent; raises CorruptRecord
    def scalars(self) -> list[dict[str, Any]]: ...  # one row per update; none in an older record; raises CorruptRecord
    def table(self, name: str, columns: Collection[str] | None = None) -> pyarrow.Table: ...  # of samples; FileNotFoundError
    def names(self) -> list[str]: ...  # relative paths of all files of the record
    def hash(self, name: str) -> str: ...  # content hash of a file; raises OSError, ValueError or CorruptRecord


class Run(NamedTuple):
    """The record of one run; summary is None if the run has not finished, source is None for a record in its own folder."""

    dir: Path
    manifest: dict[str, Any]
    summary: dict[str, Any] | None
    trajectory: list[dict[str, Any]]
    source: Source | None = None


def place(manifest: Mapping[str, Any]) -> Path:
    """The relative path of a record among others: preset/task/method/run."""
    end = f"-s{manifest['seed']}"
    parts = (manifest["preset"], manifest["task"], manifest["method"], manifest["run_id"].removesuffix(end) + end)
    names = [str(part).replace("/", "_").replace("\0", "_") for part in parts]
    return Path(*(name if name not in ("", ".", "..") else "_" for name in names))


class PromptScores(NamedTuple):
    """The scores of a run's final policy on each held-out prompt, in a fixed order: [X] each."""

    split: str
    id: list[str]  # hash of the prompt's text
    kind: list[str]
    values: dict[str, list[float | None]]  # reward, judge, kl (nats), nll_per_token (nats, by the fluency model)
    n_scored: list[int]  # responses that reward and judge could score


class Problem(NamedTuple):
    """A problem with a record, to be shown in the report, and the path of the record."""

    path: Path
    what: str


class Record(BaseModel):
    """Keys that readers rely on; additional keys are allowed and do not change the schema version."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class MetricRecord(Record):
    """A metric: mean, standard error, count; value is null, with a reason, if it could not be measured."""

    value: float | None
    stderr: float | None = Field(ge=0)
    n: int = Field(ge=0)
    n_unscored: int = Field(0, ge=0)
    reason: str | None = None


class Manifest(Record):
    """manifest.json: identity, status and provenance of a run."""

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


class Point(Record):
    """A policy in the plane of KL (nats per response) and reward."""

    kl: float = Field(ge=-1e-9)  # a KL of zero may carry its rounding
    reward: float


class CurvePoint(Point):
    """A point of the optimal frontier; solid if the effective sample size allows an estimate, else a bound."""

    reward_stderr: float | None = Field(None, ge=0)
    solid: bool


class BestOfN(Point):
    """Best-of-n of the base policy, by the exact formula."""

    n: int = Field(ge=1)


class JudgeAt(Record):
    """Judge score of the optimal policy at each KL."""

    kl: list[float]
    judge: list[float | None]


class Frontier(Record):
    """The optimal frontier of the base policy and the reward, from the base responses."""

    base_reward: float
    kl_cap: float | None = None
    curve: list[CurvePoint]
    upper: list[Point] = []
    best_of_n: list[BestOfN] = []
    judge_at: JudgeAt | None = None


class Summary(Record):
    """summary.json: the metrics before and after training, the frontier, and the cost."""

    run_id: str
    base: dict[str, MetricRecord]
    final: dict[str, MetricRecord]
    frontier: Frontier | None
    cost: dict[str, float | None]


class Prompts(Record):
    """prompts.json: scores of the final policy on each held-out prompt, one list per column, in the same order."""

    split: str
    id: list[str]
    kind: list[str]
    reward: list[float | None]
    judge: list[float | None]
    kl: list[float | None]
    nll_per_token: list[float | None]
    n_scored: list[int]


class Scalars(Record):
    """A line of scalars.jsonl: the scalars that the method yielded after an update, null if not finite."""

    update: int = Field(ge=0)
    scalars: dict[str, float | None]


class Evaluation(Record):
    """A line of trajectory.jsonl: the metrics of an evaluation along the run."""

    update: int = Field(ge=0)
    split: str
    metrics: dict[str, MetricRecord]


Model = TypeVar("Model", bound=Record)

PARTS: dict[str, type[Record]] = {
    "manifest.json": Manifest,
    "summary.json": Summary,
    "trajectory.jsonl": Evaluation,
    "scalars.jsonl": Scalars,
    "prompts.json": Prompts,
}
"""The model of each file of a record; for .jsonl, the model of each line."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a record: `properties` has each of its files by name."""
    from pydantic.json_schema import models_json_schema

    refs, whole = models_json_schema(
        [(model, "validation") for model in PARTS.values()], ref_template="#/$defs/{model}", title="A record of a run"
    )
    files = {name: refs[model, "validation"] for name, model in PARTS.items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "version": SCHEMA_VERSION}
    return {**head, **whole, "properties": files}
