"""The schema of a record: typed models of its files, which the writer builds and every reader gets.

A model keeps a record exactly: `plain()` gives back the values that it was built from, without the keys that were absent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Protocol,
    TypeVar,
    get_origin,
    get_type_hints,
)  # fmt: skip

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, WrapValidator, model_validator
from typing_extensions import TypedDict  # for pydantic before Python 3.12

from harness.core.errors import BadData, CorruptRecord
from harness.core.types import Metric, OwnMetric

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
FINISHED = ("done", "degraded")


def _number(value: Any, check: Any) -> Any:
    """Check a number and keep an int as it is, since 3 and 3.0 differ in the hash of a record."""
    checked = check(value)
    return value if type(value) is int else checked


Number = Annotated[float, WrapValidator(_number)]
Spread = Annotated[float, Field(ge=0), WrapValidator(_number)]
Nats = Annotated[float, Field(ge=-1e-9), WrapValidator(_number)]  # a KL of zero may carry its rounding
Text = InstanceOf[str]  # any text, of lone surrogates too


class Record(BaseModel):
    """Keys that readers rely on; additional keys are allowed and do not change the schema version."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    def plain(self) -> dict[str, Any]:
        """The record as plain data for JSON: keys that were absent stay absent."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class MetricRecord(Record):
    """A metric: mean, standard error, count; value is null, with a reason, if it could not be measured."""

    value: Number | None
    stderr: Spread | None
    n: int = Field(ge=0)
    n_unscored: int = Field(0, ge=0)
    reason: str | None = None

    @classmethod
    def of(cls, metric: Metric) -> MetricRecord:
        """Record a metric: null with a reason where it has no finite value; raises ValidationError if it is impossible."""
        value, stderr, n, n_unscored, reason = metric
        if value is not None and not math.isfinite(value):
            value, reason = None, f"not finite: {value}"
        stderr = stderr if value is not None and stderr is not None and math.isfinite(stderr) else None
        said = {"reason": reason} if reason else {}
        return cls(value=value, stderr=stderr, n=n, n_unscored=n_unscored, **said)


def metric_records(metrics: Mapping[str, Metric]) -> dict[str, MetricRecord]:
    """Record metrics by name; raises BadData for an impossible one, such as a negative count of a task's own metric."""
    found = {}
    for name, metric in metrics.items():
        try:
            found[name] = MetricRecord.of(metric)
        except ValidationError as error:
            raise BadData(f"metric {name!r} of the task is not a metric: {_first(error)}; found {tuple(metric)}") from None
    return found


class Fault(Record):
    """The error that ended a run."""

    type: Text = ""
    message: Text = ""


class Git(Record):
    """The commit of the running code, and whether its working tree had changes."""

    commit: Text
    dirty: bool


class Provenance(Record):
    """Where and with what a run was made; no part of its identity."""

    packages: dict[str, Text] = {}
    python: Text | None = None
    platform: Text | None = None
    device: Text | None = None
    threads: int | None = None
    processes: int = Field(1, ge=1)
    """That made the run together (torchrun); the numbers are those of one process, up to the order of sums."""
    argv: list[Text] = []
    git: Git | None = None
    prompts: dict[str, Any] = {}
    precision: Text | None = None
    """How `model.dtype=auto` chose."""


class Kept(Record):
    """What an archive keeps of a record beyond its numbers: samples per table."""

    samples: int = Field(0, ge=0)


class Manifest(Record):
    """manifest.json: identity, status and provenance of a run."""

    schema_version: int
    run_id: str
    status: Literal["running", "done", "degraded", "failed", "interrupted"]
    preset: str
    task: str
    method: str
    knob: str | None = None
    """The setting that is the method's knob, a key of its settings in the identity; None for a method without one."""
    seed: int
    identity: dict[str, Any]
    error: Fault | None = None
    started_at: Text | None = None
    ended_at: Text | None = None
    provenance: Provenance = Provenance()
    settings: dict[Text, Any] | None = None
    files: dict[str, str] | None = None
    archive: Kept | None = None


class CurvePoint(Record):
    """A point of the optimal frontier; solid if the effective sample size allows an estimate, else a bound."""

    lam: Number | None = Field(None, alias="lambda")
    kl: Nats
    reward: Number
    reward_stderr: Spread | None = None
    kl_stderr: Spread | None = None
    solid: bool


class Point(Record):
    """A policy in the plane of KL (nats per response) and reward."""

    kl: Nats
    reward: Number


class BestOfN(Record):
    """Best-of-n of the base policy, by the exact formula."""

    n: int = Field(ge=1)
    kl: Nats
    reward: Number
    reward_stderr: Spread | None = None


class JudgeAt(Record):
    """Judge score of the optimal policy at each KL."""

    kl: list[Number]
    judge: list[Number | None]

    @model_validator(mode="after")
    def _paired(self) -> JudgeAt:
        if len(self.kl) != len(self.judge):
            raise ValueError(f"judge_at has {len(self.judge)} judge scores for {len(self.kl)} KLs")
        return self


class Frontier(Record):
    """The optimal frontier of the base policy and the reward, from the base responses."""

    base_reward: Number
    n_prompts: int | None = None
    n_samples: int | None = None
    n_unscored: int | None = None
    curve: list[CurvePoint]
    upper: list[Point] = []
    best_of_n: list[BestOfN] = []
    judge_at: JudgeAt | None = None
    kl_cap: Number | None = None
    above: bool | None = None  # whether a point of the run lies above it; None in an older record


class Selection(Record):
    """The point of the run that its rule deployed; its scores on validation prompts unless the rule is `last`."""

    rule: str = "last"
    update: int | None = None
    progress: Number | None = None
    points: int | None = None
    validation: dict[str, MetricRecord] = {}


class Summary(Record):
    """summary.json: the metrics before and after training, the frontier, and the cost."""

    schema_version: int
    run_id: str
    run_dir: Text | None = None
    status: str | None = None
    preset: str | None = None
    task: str | None = None
    method: str | None = None
    seed: int | None = None
    settings: dict[Text, Any] | None = None
    base: dict[str, MetricRecord]
    final: dict[str, MetricRecord]
    frontier: Frontier | None
    cost: dict[str, Number | None]
    selection: Selection = Selection()
    profile: dict[str, float] | None = None
    """Seconds by activity (loading, sampling, scoring, training, evaluation, writing, other), of a run with --profile."""
    own_metrics: dict[Text, OwnMetric] = {}  # those of the metrics above that only this task has

    def metrics(self, side: str) -> dict[str, MetricRecord]:
        """The metrics before (`base`) or after training (`final`)."""
        return {"base": self.base, "final": self.final}[side]


class Prompts(Record):
    """prompts.json: scores of the final policy on each held-out prompt, one list per column, in the same order."""

    schema_version: int
    split: str
    id: list[str]  # hash of the prompt's text
    kind: list[str]
    reward: list[Number | None]
    judge: list[Number | None]
    kl: list[Number | None]  # nats
    nll_per_token: list[Number | None]  # nats, by the fluency model
    n_scored: list[int]  # responses that reward and judge could score
    base_reward: list[Number | None] | None = None  # of all base responses; None in an older record, as the following
    base_judge: list[Number | None] | None = None
    least_kl: list[Number | None] | None = None  # nats; terms of K*(R), the least KL for the policy's reward
    highest_reward: list[Number | None] | None = None  # terms of R*(KL), the highest reward for its KL
    nll_tokens: list[Number | None] | None = None  # tokens that the fluency model read
    optimal_judge: list[Number | None] | None = None  # terms of the judge's score of the optimal policy of the same reward

    @property
    def values(self) -> dict[str, list[float | None]]:
        """The scores of each prompt by name: [X] each."""
        found = {"reward": self.reward, "judge": self.judge, "kl": self.kl, "nll_per_token": self.nll_per_token}
        more = ("base_reward", "base_judge", "least_kl", "highest_reward", "optimal_judge", "nll_tokens")
        return found | {name: column for name in more if (column := getattr(self, name)) is not None}


class Scalars(Record):
    """A line of scalars.jsonl: the scalars that the method yielded after an update, null if not finite."""

    update: int = Field(ge=0)
    scalars: dict[str, Number | None]


class ProbeReading(Record):
    """What the policy did at one point of a probe."""

    at: Number  # in the unit of the probe
    label: Text = ""
    metrics: dict[str, MetricRecord]


class ProbeResult(Record):
    """A line of probes.jsonl: what was done to the finished policy, and what it then did; never charged to the method."""

    probe: str
    version: int
    settings: dict[Text, Any]
    seed: int
    unit: Text  # of the points of its readings
    number: Literal["mean", "worst"]  # of the judge over the readings
    value: Number | None  # this number; null if a reading has none
    readings: list[ProbeReading]
    seconds: Number | None = None


class Evaluation(Record):
    """A line of trajectory.jsonl: the metrics of an evaluation along the run, and the cost up to it."""

    cost: dict[str, Number | None] | None = None
    metrics: dict[str, MetricRecord]
    seconds: Number | None = None
    split: str
    update: int = Field(ge=0)


class Sample(TypedDict):
    """A row of samples/base.parquet or samples/final.parquet: one response; a score is null if there is none."""

    prompt_id: int
    kind: str
    prompt: str
    response: str
    reward: float | None
    judge: float | None
    kl: NotRequired[float | None]  # nats
    log_ratio: NotRequired[float | None]  # nats
    entropy: NotRequired[float | None]  # nats
    ended: NotRequired[bool]
    nll: NotRequired[float | None]  # nats, by the fluency model
    nll_tokens: NotRequired[float | None]
    tokens: NotRequired[list[int]]


class PaperSample(TypedDict):
    """A row of samples/base-papers.parquet or samples/final-papers.parquet: one response under a decoding of the papers."""

    decoding: str
    prompt_id: int
    response: str
    judge: float | None


class Source(Protocol):
    """The parts of a record that are read on demand, from a folder or from the tables of a study."""

    dir: Path  # names the record; it does not exist if the record is in tables
    home: Path  # the folder of the record, or of the whole study

    def prompts(self) -> Prompts | None: ...  # prompts.json; None if absent; raises CorruptRecord
    def probes(self) -> list[ProbeResult]: ...  # one line per probe; none if it was not probed; raises CorruptRecord
    def scalars(self) -> list[Scalars]: ...  # one row per update; none in an older record; raises CorruptRecord
    def table(self, name: str, columns: Collection[str] | None = None) -> pyarrow.Table: ...  # of samples; FileNotFoundError
    def names(self) -> list[str]: ...  # relative paths of all files of the record
    def hash(self, name: str) -> str: ...  # content hash of a file; raises OSError, ValueError or CorruptRecord


class Run(NamedTuple):
    """The record of one run; summary is None if the run has not finished, source is None for a record in its own folder."""

    dir: Path
    manifest: Manifest
    summary: Summary | None
    trajectory: list[Evaluation]
    source: Source | None = None


class Problem(NamedTuple):
    """A problem with a record, to be shown in the report, and the path of the record."""

    path: Path
    what: str


def place(preset: str, task: str, method: str, run_id: str, seed: int) -> Path:
    """The relative path of a record among others: preset/task/method/run."""
    end = f"-s{seed}"
    names = [part.replace("/", "_").replace("\0", "_") for part in (preset, task, method, run_id.removesuffix(end) + end)]
    return Path(*(name if name not in ("", ".", "..") else "_" for name in names))


Model = TypeVar("Model", bound=Record)

PARTS: dict[str, type[Record]] = {
    "manifest.json": Manifest,
    "summary.json": Summary,
    "trajectory.jsonl": Evaluation,
    "scalars.jsonl": Scalars,
    "probes.jsonl": ProbeResult,
    "prompts.json": Prompts,
}
"""The model of each JSON file of a record; for .jsonl, the model of each line."""
TABLES: dict[str, Any] = {
    "samples/base.parquet": Sample,
    "samples/final.parquet": Sample,
    "samples/base-papers.parquet": PaperSample,
    "samples/final-papers.parquet": PaperSample,
}
"""The columns of each table of a record: the type of a row."""


def parsed(model: type[Model], value: Any, dir: Path, name: str) -> Model:
    """Build the model of a file's plain data; raises CorruptRecord, which names the first key that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise CorruptRecord(f"{dir}: {name} is not a record: {_first(error)}") from None


def check_version(value: Any, dir: Path, name: str) -> None:
    """Raise CorruptRecord if a value is not an object of a schema version that this package reads."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is not int or version < 1:
        raise CorruptRecord(f"{dir}: {name} has no schema_version; it is not a record of this package")
    if version > SCHEMA_VERSION:
        what = f"{name} has schema_version {version}, this package reads up to {SCHEMA_VERSION}; install a newer one"
        raise CorruptRecord(f"{dir}: {what}")


def wrong_columns(kind: Any, found: pyarrow.Schema) -> str:
    """What is wrong with the columns of a table of samples whose rows are of this kind; empty if nothing is."""
    optional = {name for name, hint in get_type_hints(kind, include_extras=True).items() if get_origin(hint) is NotRequired}
    hints = get_type_hints(kind)
    if missing := sorted(set(hints) - optional - set(found.names)):
        return f"it has no {', '.join(missing)}"
    types = {name: found.field(name).type for name in hints if name in found.names}
    wrong = [name for name, type in types.items() if not _holds(hints[name], type)]
    return f"it has {types[wrong[0]]} in column {wrong[0]!r}" if wrong else ""


def _holds(hint: Any, type: pyarrow.DataType) -> bool:
    """Return True if a column of this type can hold the values of a type hint."""
    from pyarrow import types

    if types.is_null(type):
        return True
    if types.is_dictionary(type):
        type = type.value_type
    if hint is str:
        return types.is_string(type) or types.is_large_string(type)
    if get_origin(hint) is list:
        return (types.is_list(type) or types.is_large_list(type)) and types.is_integer(type.value_type)
    whole = types.is_integer(type) or types.is_boolean(type)
    return whole or (hint is not int and types.is_floating(type))


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a record: `properties` has each of its files by name; of a table, the type of a row."""
    kinds = {**PARTS, **TABLES}
    refs, whole = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in kinds.items()],
        ref_template="#/$defs/{model}",
        title="A record of a run",
    )
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "version": SCHEMA_VERSION}
    return {**head, **whole, "properties": {name: refs[name, "validation"] for name in kinds}}
