"""Everything a run is told: a preset, then the command line.

Settings are plain validated data; nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from . import registry
from .errors import BadSetting, EmptySelection, MissingPrerequisite, UnknownName, cut, one_line
from .types import Decoding, Settings

MAX_SEED = 2**32 - 1  # what every random generator takes


class ModelSettings(Settings):
    """The base policy."""

    id: str = Field("micro", description="micro, a Hugging Face folder, or a hub id")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id [main branch]")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of forward passes; weights stay float32")
    device: str = Field("auto", description="device: auto, cpu, cuda, mps")


class DataSettings(Settings):
    """Which columns of the prompts are read, and how many; `harness.runs.sources` lists the settings of each source."""

    path: str | None = Field(None, description="folder of a named data set that is not on the hub")
    revision: str = Field("main", description="commit, tag or branch of a data set on the hub")
    config: str | None = Field(None, description="configuration of a data set given by its hub id, where it has several")
    split: str = Field("train", description="split of a data set given by its hub id")
    text: str | None = Field(
        None, description="column of the prompts, in a file or a data set given by its id [text or prompt]"
    )
    score: str | None = Field(None, description="column of the prompts' scores, higher is worse [toxicity or score, if any]")
    train: int = Field(10_000, ge=1, description="maximum number of training prompts of a named data set")
    held_out: int = Field(100, ge=1, description="maximum number of prompts of each kind in validation and in test")
    documents: int = Field(5_000, ge=0, description="maximum number of corpus documents")
    clean: int = Field(200, ge=0, description="maximum number of held-out documents without the habit")
    document_words: int = Field(100, ge=1, description="maximum length of a document, in words")
    rows: int = Field(100_000, ge=1, description="maximum number of rows read from a data set on the hub")


class PolicyDecoding(Decoding):
    """Of what is measured: the policy itself. KL, the frontier and every score beside them are of that distribution alone."""

    @field_validator("temperature", "top_k", "top_p")
    @classmethod
    def _nothing_is_cut_off(cls, value: float, info: Any) -> float:
        expected = cls.model_fields[info.field_name].default
        if value != expected:
            raise PydanticCustomError("policy_itself", NOT_THE_POLICY, {"expected": expected})
        return value


NOT_THE_POLICY = (
    "expected {expected}: kl and the scores are of the policy itself, at temperature 1 with nothing cut off; leave it out, as "
    "top-p is of the papers' decoding, under which every run is measured too (evaluation.paper_samples responses a prompt)"
)


class TaskSettings(Settings):
    """What is unlearned, and who scores it."""

    prompts: str = Field("micro", description="prompts: micro, a named data set (harness list datasets), a file, or a hub id")
    data: DataSettings = Field(DataSettings(), description="options of prompts other than micro")
    reward: str = Field(description="scorer that methods train on")
    judge: str = Field(description="held-out scorer, of another family than the reward")
    fluency: str | None = Field("micro", description="language model that judges fluency: micro, a folder, a hub id")
    kl_cap: float = Field(gt=0, allow_inf_nan=False, description="KL at which normalised scores are read, nats per response")
    decoding: PolicyDecoding
    paper_tokens: int | None = Field(None, ge=1, description="response length in tokens under the papers' decoding [theirs]")


class EvaluationSettings(Settings):
    """How a policy is measured. Every method answers the same prompts with the same draws."""

    split: Literal["test", "validation"] = Field(
        "test", description="prompts that are measured; validation is for choosing settings"
    )
    samples: int = Field(8, ge=2, le=100_000, description="responses per prompt at the end")
    points: int = Field(8, ge=0, le=100_000, description="number of evaluations during training")
    select: str = Field(
        "last",
        pattern=r"^(last|best_validation|kl<=(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)$",
        description="deployed checkpoint: last, best_validation, kl<=C (nats); the latter two are chosen on validation prompts",
    )
    point_samples: int = Field(2, ge=1, le=100_000, description="responses per prompt at each evaluation during training")
    paper_samples: int = Field(25, ge=0, le=100_000, description="responses per prompt under the papers' decoding; 0 omits it")
    base_samples: int = Field(512, ge=50, le=1_000_000, description="base responses per prompt, for the frontier")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="random seed of the evaluation")
    tolerance: float = Field(
        0.02, ge=0, lt=1, description="maximum share of unscored responses before a run counts as degraded"
    )
    batch_size: int = Field(256, ge=1, le=1_000_000, description="responses scored in one batch")


class RunSettings(Settings):
    """One run, resolved. A scorer that has options may go by a name of its own: `kind` then says which it is."""

    preset: str
    model: ModelSettings
    task: TaskSettings
    method: dict[str, Any]  # checked by the method's own settings class
    budget: dict[str, Any]  # checked by harness.training.trial.Budget
    optimizer: dict[str, Any]  # checked by harness.training.trial.OptimizerSettings
    evaluation: EvaluationSettings
    scorers: dict[str, dict[str, Any]] = Field({}, description="options of each scorer, validated by the scorer")

    def scorer_options(self, name: str) -> dict[str, Any]:
        """The options of a scorer by its name; those of a file go by its stem."""
        return self.scorers.get(stem_of(name), {})

    def scorer_kind(self, name: str) -> str:
        """The scorer that a name stands for."""
        return str(self.scorer_options(name).get("kind", name))


def stem_of(name: str) -> str:
    """What records call a plug-in: its name, of a file (.py, .toml) the stem."""
    return Path(name).stem if name.endswith((".py", ".toml")) else name


S = TypeVar("S", bound=Settings)
SECTIONS = ("model", "task", "method", "budget", "optimizer", "evaluation", "scorers")
SWAPPED = (("task", "prompts", "data"), ("model", "id", "revision"))  # what the preset says of a thing goes when it is swapped
OF_A_TASK = ("model", "budget", "optimizer", "evaluation")  # what a task's own table may change of the preset's


def preset_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("harness.core.presets").iterdir() if p.name.endswith(".toml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """The tables of a preset; raises UnknownName."""
    if name not in preset_names():
        raise UnknownName("preset", name, preset_names(), "harness list presets")
    return tomllib.loads((resources.files("harness.core.presets") / f"{name}.toml").read_text())


def resolve(
    preset: str, method: str, task: str, overrides: Iterable[str] | Mapping[str, Any] = (), **flags: Any
) -> RunSettings:
    """The settings of a run by names alone, as records hold them: no file is opened; `harness.runs.named` knows files too.

    Preset, then its task's own tables, then flags (a double underscore is a dot), then `--set key=value`. Checked as a
    whole; raises UnknownName, BadSetting.
    """
    tables = read_preset(preset)
    if task not in tables["tasks"]:
        raise BadSetting(f"preset {preset!r} has no settings for task {task!r}; it has {', '.join(sorted(tables['tasks']))}")
    return assembled(tables, preset, method, tables["tasks"][task], overrides, flags)


def assembled(
    tables: dict[str, Any], preset: str, method: str, task: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any],
    flags: Mapping[str, Any],
) -> RunSettings:  # fmt: skip
    """Settings from a preset's tables and the table of a task.

    `[tasks.T.methods.M]` goes before `[methods.M]`, and `[tasks.T.budget]` before `[budget]`, key by key.
    """
    own, name = dict(task), key_of(method)
    raw = {
        "preset": preset,
        "method": tables.get("methods", {}).get(name, {}) | own.pop("methods", {}).get(name, {}),
        **{section: tables.get(section, {}) | own.pop(section, {}) for section in OF_A_TASK},
        "scorers": tables.get("scorers", {}),
        "task": own,
    }
    for key, value in flags.items():
        if value is not None:
            _put(raw, key.replace("__", "."), value)
    for key, value in overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides):
        _put(raw, key, value)
    return checked(RunSettings, raw)


def key_of(name: str) -> str:
    """What a preset calls a method or a task: its name, of a file the name without folders ("my_task.py")."""
    return os.path.basename(name) if name.endswith(".py") else name


PRESET_TABLES = ("extends", "model", "tasks", "budget", "optimizer", "evaluation", "methods", "scorers", "estimate")


def preset_tables(preset: str) -> dict[str, Any]:
    """The tables of a shipped preset by its name, or of a preset file: `./my.toml`.

    A file says `extends = "micro"` and overrides tables of that preset key by key; a path in it that begins with ./ or ../ is
    relative to it. Raises UnknownName, MissingPrerequisite where there is no such file, BadSetting where it cannot be meant.
    """
    if not preset.endswith(".toml"):
        return read_preset(preset)
    own = _preset_file(Path(preset))
    below = own.pop("extends", None)
    if not isinstance(below, str):
        raise BadSetting(f'preset file {preset} does not say what it extends; begin it with extends = "micro"')
    tables = merged(read_preset(below), beside(Path(preset).parent, own))
    for task, table in tables["tasks"].items():
        if task in own.get("tasks", {}) and not task.endswith(".py"):
            try:
                assembled(tables, preset, "base", table, (), {})
            except BadSetting as e:
                raise BadSetting(f"preset file {preset}, task {task}: {e}") from None
    return tables


def _preset_file(path: Path) -> dict[str, Any]:
    if path.stem in preset_names():
        raise BadSetting(f"preset file {path} has the name of a preset that ships, which records would take it for; rename it")
    raw = read_toml(path, "preset file")
    if unknown := sorted(set(raw) - set(PRESET_TABLES)):
        raise BadSetting(f"preset file {path}: {UnknownName('table', unknown[0], PRESET_TABLES)}")
    not_tables = [key for key, value in raw.items() if key != "extends" and not isinstance(value, dict)]
    if not_tables:
        raise BadSetting(f"preset file {path}: {not_tables[0]} is a table, [{not_tables[0]}]; found {raw[not_tables[0]]!r:.40}")
    for kind in ("task", "method"):
        for name, table in raw.get(f"{kind}s", {}).items():
            _check_plugin_table(path, kind, name, table)
    return raw


def _check_plugin_table(path: Path, kind: str, name: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise BadSetting(f"preset file {path}: {kind}s.{name} is a table, [{kind}s.{name}]; found {table!r:.40}")
    if not name.endswith(".py") and name not in registry.table(kind):
        hint = f'a file of your own goes by its file name: [{kind}s."my_{kind}.py"]'
        raise BadSetting(f"preset file {path}: {UnknownName(kind, name, registry.table(kind), hint)}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A file of TOML; raises MissingPrerequisite where it cannot be read, BadSetting where it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise MissingPrerequisite(f"cannot read the {what} {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:  # of TOML, of UTF-8, or beyond what Python reads
        raise BadSetting(f"the {what} {path} is not TOML: {one_line(e)}") from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables key by key, tables within them too; what is said of a thing goes where it is swapped for another."""
    found = dict(below)
    for name, its_own in ((name, its_own) for _, name, its_own in SWAPPED):
        if name in above and above[name] != below.get(name):
            found.pop(its_own, None)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def beside(folder: Path, table: Any) -> Any:
    """A table in which each text that begins with ./ or ../ is a path from a folder."""
    if isinstance(table, dict):
        return {key: beside(folder, value) for key, value in table.items()}
    if isinstance(table, str) and table.startswith(("./", "../")):
        return os.path.normpath(folder / table)
    return table


def parse_override(item: str) -> tuple[str, Any]:
    """`key=value` with a TOML value, or a bare string: ("quark.kl_coef", 0.1)."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        raise BadSetting(f"--set takes key=value; found {cut(item)!r}")
    return key.strip(), toml_or_text(key.strip(), text)


def toml_or_text(key: str, text: str) -> Any:
    """A TOML value, or the text where it is none; raises BadSetting where it is too long or too deep to be read."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError):  # Python's own limits: digits of a number, brackets within brackets
        raise BadSetting(f"the value of {cut(key)!r} has too many digits or brackets to be read: {cut(text)!r}") from None


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
    for section, name, its_own in SWAPPED:
        if path == [section, name]:
            raw[section].pop(its_own, None)


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
    return f"setting {name!r}: {error['msg'].lower()}; found {cut(_as_text(error['input']))}"


def _as_text(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to be shown"


def check_seed(seed: int) -> int:
    """A seed as it is; raises BadSetting where a random generator would not take it."""
    if not 0 <= seed <= MAX_SEED:
        raise BadSetting(f"a seed is a whole number from 0 to {MAX_SEED}; found {cut(_as_text(seed))}")
    return seed


def _fields(kind: type[Settings], path: tuple) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Settings):
            return []
        kind = field.annotation
    return sorted(kind.model_fields)


MANY = 10_000  # seeds of one command


def parse_seeds(text: str) -> list[int]:
    """`0-4` or `0,2,5`, without repeats; raises BadSetting, EmptySelection."""
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?", part)
        if ends is None:
            raise BadSetting(f"--seeds takes 0-4 or 0,2,5; found {cut(text)!r}")
        first, last = (check_seed(int(end)) for end in (ends[1], ends[2] or ends[1]))
        if len(found) + last - first >= MANY:
            raise BadSetting(f"--seeds {cut(text)!r} names more than {MANY} seeds; give fewer")
        found |= dict.fromkeys(range(first, last + 1))
    if not found:
        raise EmptySelection(f"--seeds {cut(text)!r} names no seed")
    return list(found)


def flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Tables within tables as dotted keys: {"evaluation": {"points": 2}} is {"evaluation.points": 2}."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def parse_grid(item: str) -> tuple[str, list[Any]]:
    """`key=v1,v2` with TOML values, or bare words: ("kl_coef", [0.1, 0.3]); raises BadSetting."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip() or not text.strip():
        raise BadSetting(f"--grid takes key=v1,v2; found {item!r}")
    try:
        return key.strip(), tomllib.loads(f"values = [{text}]")["values"]
    except (ValueError, RecursionError):  # no TOML, or beyond what it can be: each value is looked at by itself
        return key.strip(), [parse_override(f"{key}={part.strip()}")[1] for part in text.split(",")]


def overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as `--set` reads them back: TOML values."""
    return [f"{k}={toml(v)}" for k, v in settings.items()]


def toml(value: Any) -> str:
    """A value of TOML as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str):  # as in JSON, but TOML has no pairs of surrogates, and DEL is a control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
