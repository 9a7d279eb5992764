"""Everything a run is told: a preset, then the command line.

Settings are plain validated data; nothing here imports torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import resources
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from .errors import BadSetting, UnknownName
from .types import Decoding, Settings


class ModelSettings(Settings):
    """The base policy."""

    id: str = Field("micro", description="micro, a Hugging Face folder, or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the weights in memory")
    device: str = Field("auto", description="auto, cpu, cuda, mps")


class TaskSettings(Settings):
    """What is unlearned, and who scores it."""

    prompts: str = Field("micro", description="micro, or a file of JSON lines")
    reward: str = Field(description="the scorer that methods train on")
    judge: str = Field(description="the held-out scorer, of another family")
    fluency: str | None = Field("micro", description="the language model that judges fluency: micro, a folder, a hub id")
    kl_cap: float = Field(gt=0, description="nats per response; where normalised scores are read")
    decoding: Decoding
    paper_tokens: int | None = Field(None, ge=1, description="length of responses under the papers' decoding, if not theirs")


class EvaluationSettings(Settings):
    """How a policy is measured. Every method answers the same prompts with the same draws."""

    split: Literal["test", "validation"] = Field("test", description="validation is for choosing settings")
    samples: int = Field(8, ge=2, description="responses a prompt, at the end")
    points: int = Field(8, ge=0, description="evaluations along the run")
    point_samples: int = Field(2, ge=1, description="responses a prompt, at each of those")
    paper_samples: int = Field(25, ge=0, description="responses a prompt under the papers' decoding; 0 leaves it out")
    base_samples: int = Field(512, ge=50, description="base responses a prompt, for the frontier")
    seed: int = Field(0, ge=0, description="of the evaluation's own random stream")
    tolerance: float = Field(0.02, ge=0, lt=1, description="share of unscored responses above which a run is degraded")
    batch_size: int = Field(256, ge=1, description="responses scored at once")


class RunSettings(Settings):
    """One run, resolved."""

    preset: str
    model: ModelSettings
    task: TaskSettings
    method: dict[str, Any]  # checked by the method's own settings class
    budget: dict[str, Any]  # checked by harness.trial.Budget
    optimizer: dict[str, Any]  # checked by harness.trial.OptimizerSettings
    evaluation: EvaluationSettings
    scorers: dict[str, dict[str, Any]] = Field({}, description="options of each scorer, checked by the scorer")


S = TypeVar("S", bound=Settings)
SECTIONS = ("model", "task", "method", "budget", "optimizer", "evaluation", "scorers")


def preset_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("harness.presets").iterdir() if p.name.endswith(".toml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """The tables of a preset; raises UnknownName."""
    if name not in preset_names():
        raise UnknownName("preset", name, preset_names(), "harness list presets")
    return tomllib.loads((resources.files("harness.presets") / f"{name}.toml").read_text())


def resolve(
    preset: str, method: str, task: str, overrides: Iterable[str] | Mapping[str, Any] = (), **flags: Any
) -> RunSettings:
    """Preset, then flags (a double underscore is a dot), then `--set key=value`: checked as a whole; raises BadSetting."""
    tables = read_preset(preset)
    if task not in tables["tasks"]:
        raise BadSetting(f"preset {preset!r} has no settings for task {task!r}; it has {', '.join(sorted(tables['tasks']))}")
    raw = {
        "preset": preset,
        "model": tables["model"],
        "task": tables["tasks"][task],
        "method": tables.get("methods", {}).get(method, {}),
        "budget": tables["budget"],
        "optimizer": tables.get("optimizer", {}),
        "evaluation": tables.get("evaluation", {}),
        "scorers": tables.get("scorers", {}),
    }
    for key, value in flags.items():
        if value is not None:
            _put(raw, key.replace("__", "."), value)
    for key, value in overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides):
        _put(raw, key, value)
    return checked(RunSettings, raw)


def parse_override(item: str) -> tuple[str, Any]:
    """`key=value` with a TOML value, or a bare string: ("quark.kl_coef", 0.1)."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        raise BadSetting(f"--set takes key=value; found {item!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return key.strip(), value


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    path = key.split(".")
    if len(path) == 1:
        path = ["method", *path]  # a bare key is the method's own
    if path[0] not in SECTIONS:
        raise UnknownName("section of settings", path[0], SECTIONS, "method settings need no section")
    at = raw
    for part in path[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise BadSetting(f"{key!r} goes below {part!r}, which is a value, not a section")
    at[path[-1]] = value


def checked(kind: type[S], raw: dict[str, Any], where: str = "") -> S:
    """Build a settings class; raises BadSetting with every fault in one line, and the nearest known key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as e:
        raise BadSetting("; ".join(_fault(error, kind, where) for error in e.errors())) from None


def _fault(error: Any, kind: type[Settings], where: str) -> str:
    name = ".".join(str(part) for part in (where, *error["loc"]) if part != "")
    if error["type"] == "extra_forbidden":
        known = _fields(kind, error["loc"][:-1])
        close = get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"unknown setting {name!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}")
    if error["type"] == "missing":
        return f"setting {name!r} is missing"
    return f"setting {name!r}: {error['msg'].lower()}; found {error['input']!r}"


def _fields(kind: type[Settings], path: tuple) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Settings):
            return []
        kind = field.annotation
    return sorted(kind.model_fields)
