"""Settings of a run: read from presets, TOML files and the command line, and validated.

Settings are plain data; nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from . import registry
from .errors import BadSetting, EmptySelection, MissingPrerequisite, UnknownName, cut, one_line
from .text import toml
from .types import Decoding, LoraSettings, Names, Settings, as_names

MAX_SEED = 2**32 - 1  # the largest seed that every random generator accepts


class ModelSettings(Settings):
    """The base policy."""

    id: str = Field("micro", description="micro, facts, smollm2, a Hugging Face folder, a .gguf file, or a hub id")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id [main branch]")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="precision of forward passes, auto by the hardware; weights stay float32"
    )
    device: str = Field("auto", description="device: auto, cpu, cuda, mps")
    micro_batch: int = Field(0, ge=0, description="sequences of a training pass held at once; 0 holds the whole batch")
    checkpointing: bool = Field(False, description="gradient checkpointing: activations are recomputed layer by layer")
    shard: Literal["none", "full"] = Field("none", description="full divides weights and moments among processes (FSDP)")
    lora: LoraSettings = Field(LoraSettings(), description="low-rank adapters instead of training all weights")


class DataSettings(Settings):
    """Columns and sizes of a source of prompts; `harness.runs.sources` lists the settings that each source uses."""

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
    """Decoding of the measured responses: temperature 1 without truncation, since KL and the frontier refer to the policy."""

    @field_validator("temperature", "top_k", "top_p")
    @classmethod
    def _nothing_is_cut_off(cls, value: float, info: Any) -> float:
        expected = cls.model_fields[info.field_name].default
        if value != expected:
            raise PydanticCustomError("policy_itself", NOT_THE_POLICY, {"expected": expected})
        return value


NOT_THE_POLICY = (
    "expected {expected}: kl and the scores are measured at temperature 1 without truncation; leave it out, since every run is "
    "also measured under the papers' decoding, which has top-p (evaluation.paper_samples responses per prompt)"
)


class TaskSettings(Settings):
    """A task: its prompts, its scorers and its decoding."""

    prompts: str = Field("micro", description="micro, facts, a named data set (harness list datasets), a file, or a hub id")
    data: DataSettings = Field(DataSettings(), description="options of prompts other than micro")
    reward: str = Field(description="scorer that methods train on")
    judge: str = Field(description="held-out scorer, of another family than the reward")
    fluency: str | None = Field(
        "micro", description="language model that judges fluency: micro, smollm2, a folder, a .gguf file, a hub id"
    )
    kl_cap: float = Field(gt=0, allow_inf_nan=False, description="KL at which normalised scores are read, nats per response")
    decoding: PolicyDecoding
    chat: bool = Field(False, description="each prompt is a message of the user in the chat template of the model")
    paper_tokens: int | None = Field(None, ge=1, description="response length in tokens under the papers' decoding [theirs]")


class EvaluationSettings(Settings):
    """Evaluation of a policy; all methods are measured on the same prompts, in a seed with the same random numbers."""

    split: Literal["test", "validation"] = Field(
        "test", description="prompts that are measured; validation is for choosing settings"
    )
    samples: int = Field(16, ge=2, le=100_000, description="responses per prompt at the end")
    points: int = Field(8, ge=0, le=100_000, description="number of evaluations during training")
    select: str = Field(
        "last",
        pattern=r"^(last|best_validation|kl<=(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)$",
        description="deployed checkpoint: last, best_validation, kl<=C (nats); the latter two are chosen on validation prompts",
    )
    point_samples: int = Field(2, ge=1, le=100_000, description="responses per prompt at each evaluation during training")
    paper_samples: int = Field(25, ge=0, le=100_000, description="responses per prompt under the papers' decoding; 0 omits it")
    base_samples: int = Field(512, ge=50, le=1_000_000, description="base responses per prompt, for the frontier")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="random seed of the evaluation, beside that of the run")
    tolerance: float = Field(
        0.02, ge=0, lt=1, description="maximum share of unscored responses before a run counts as degraded"
    )
    probes: Names = Field([], description="probes of the final policy (harness list probes); never charged to the method")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="responses scored in one batch")


class RunSettings(Settings):
    """The resolved settings of one run; a scorer with options may have a name of its own, and `kind` then names its class."""

    preset: str
    model: ModelSettings
    task: TaskSettings
    method: dict[str, Any]  # checked by the settings class of the method
    budget: dict[str, Any]  # checked by harness.training.trial.Budget
    optimizer: dict[str, Any]  # checked by harness.training.trial.OptimizerSettings
    evaluation: EvaluationSettings
    scorers: dict[str, dict[str, Any]] = Field({}, description="options of each scorer, validated by the scorer")

    def scorer_options(self, name: str) -> dict[str, Any]:
        """The options of a scorer by its name, or by the stem of its file."""
        return self.scorers.get(stem_of(name), {})

    def scorer_kind(self, name: str) -> str:
        """The scorer that a name stands for."""
        return str(self.scorer_options(name).get("kind", name))


def stem_of(name: str) -> str:
    """What records call a plug-in: its name, of a file (.py, .toml) the stem, of a folder its name without the path."""
    folder = os.path.basename(os.path.abspath(name)) if os.sep in name else name
    return Path(name).stem if name.endswith((".py", ".toml")) else folder


S = TypeVar("S", bound=Settings)
SECTIONS = ("model", "task", "method", "budget", "optimizer", "evaluation", "scorers")
SWAPPED = (("task", "prompts", "data"), ("model", "id", "revision"))  # (section, key, dependent key dropped if key changes)
OF_A_TASK = ("model", "budget", "optimizer", "evaluation")  # sections that the table of a task may override


def preset_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("harness.core.presets").iterdir() if p.name.endswith(".toml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """The tables of a shipped preset; raises UnknownName."""
    if name not in preset_names():
        raise UnknownName("preset", name, preset_names(), "harness list presets")
    own = tomllib.loads((resources.files("harness.core.presets") / f"{name}.toml").read_text())
    return merged(read_preset(own.pop("extends")), own) if "extends" in own else own


def resolve(
    preset: str, method: str, task: str, overrides: Iterable[str] | Mapping[str, Any] = (), **flags: Any
) -> RunSettings:
    """The settings of a run from registered names, as in records; no file is opened (`harness.runs.named` accepts files).

    Later sources override earlier ones: the preset, its tables of the task, flags (a double underscore is a dot), `--set
    key=value`. The result is validated; raises UnknownName, BadSetting.
    """
    tables = read_preset(preset)
    if task not in tables["tasks"]:
        raise BadSetting(f"preset {preset!r} has no settings for task {task!r}; it has {', '.join(sorted(tables['tasks']))}")
    return assembled(tables, preset, method, tables["tasks"][task], overrides, flags)


def assembled(
    tables: dict[str, Any], preset: str, method: str, task: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any],
    flags: Mapping[str, Any],
) -> RunSettings:  # fmt: skip
    """The settings of a run from the tables of a preset and the table of a task; raises UnknownName, BadSetting.

    `[tasks.T.methods.M]` overrides `[methods.M]`, and `[tasks.T.budget]` overrides `[budget]`, key by key. `knob` in the table
    of a method is for studies (`harness.runs.sweep.study`), no setting of the run.
    """
    own = {key: value for key, value in task.items() if key != "methods"}
    raw = {
        "preset": preset,
        "method": {k: v for k, v in method_table(tables, task, method).items() if k != "knob"},
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


def method_table(tables: Mapping[str, Any], task: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What a preset says of a method on a task: settings, and as `knob` the values of its knob where not the method's own."""
    name = key_of(method)
    return {**tables.get("methods", {}).get(name, {}), **task.get("methods", {}).get(name, {})}


def key_of(name: str) -> str:
    """The key of a method or a task in a preset: its name, or the file name without folders ("my_task.py")."""
    return os.path.basename(name) if name.endswith(".py") else name


PRESET_TABLES = ("extends", "model", "tasks", "budget", "optimizer", "evaluation", "methods", "scorers", "estimate")


def preset_tables(preset: str, method: str = "", task: str = "") -> dict[str, Any]:
    """The tables of a shipped preset by its name, or of a preset file: `./my.toml`.

    A file sets `extends = "micro"` and overrides the tables of that preset key by key; paths in it that begin with ./ or ../
    are relative to it. The table of a plug-in file, such as the method or task in use, is under its file name in the result.
    Raises UnknownName, MissingPrerequisite if there is no such file, BadSetting if it is invalid.
    """
    if not preset.endswith(".toml"):
        return read_preset(preset)
    own = _preset_file(Path(preset), {"method": key_of(method), "task": key_of(task)})
    below = own.pop("extends", None)
    if not isinstance(below, str):
        raise BadSetting(f'preset file {preset} has no key extends; begin it with extends = "micro"')
    tables = merged(read_preset(below), beside(Path(preset).parent, own))
    for task, table in tables["tasks"].items():
        if task in own.get("tasks", {}) and not task.endswith(".py"):
            try:
                assembled(tables, preset, "base", table, (), {})
            except BadSetting as e:
                raise BadSetting(f"preset file {preset}, task {task}: {e}") from None
    return tables


def _preset_file(path: Path, used: Mapping[str, str]) -> dict[str, Any]:
    if path.stem in preset_names():
        raise BadSetting(f"preset file {path} has the name of a shipped preset, which records use; rename the file")
    raw = read_toml(path, "preset file")
    if unknown := sorted(set(raw) - set(PRESET_TABLES)):
        raise BadSetting(f"preset file {path}: {UnknownName('table', unknown[0], PRESET_TABLES)}")
    not_tables = [key for key, value in raw.items() if key != "extends" and not isinstance(value, dict)]
    if not_tables:
        raise BadSetting(f"preset file {path}: expected a table [{not_tables[0]}]; found {raw[not_tables[0]]!r:.40}")
    for kind in ("task", "method"):
        raw |= _by_file_name(path, kind, used, raw, f"{kind}s")
    for name, table in raw.get("tasks", {}).items():
        raw["tasks"][name] = table | _by_file_name(path, "method", used, table, f"tasks.{name}.methods")
    return raw | ({"scorers": _by_stem(path, raw["scorers"])} if "scorers" in raw else {})


def _by_stem(path: Path, scorers: Mapping[str, Any]) -> dict[str, Any]:
    """The options of scorers by name, of a file by its stem; raises BadSetting if a preset file has both."""
    both = sorted(name for name in scorers if stem_of(name) != name and stem_of(name) in scorers)
    if both:
        raise BadSetting(
            f'preset file {path}: [scorers."{both[0]}"] and [scorers.{stem_of(both[0])}] are one scorer; leave one'
        )
    return {stem_of(name): options for name, options in scorers.items()}


def _by_file_name(path: Path, kind: str, used: Mapping[str, str], above: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The plug-in tables under `KINDs`, a file's stem replaced by its name: [methods.mine] becomes [methods."mine.py"]."""
    within = f"{kind}s"
    if within not in above:
        return {}
    if not isinstance(above[within], dict):
        raise BadSetting(f"preset file {path}: expected a table [{where}]; found {above[within]!r:.40}")
    return {within: {_file_name(path, kind, used, above[within], name, where): t for name, t in above[within].items()}}


def _file_name(path: Path, kind: str, used: Mapping[str, str], tables: Mapping[str, Any], name: str, where: str) -> str:
    """The key of a plug-in's table: its name, or the name of its file; raises BadSetting if it is neither, or could be both."""
    if not isinstance(tables[name], dict):
        raise BadSetting(f"preset file {path}: expected a table [{where}.{name}]; found {tables[name]!r:.40}")
    file, known = f"{name}.py", registry.table(kind)
    in_use = file == used[kind]
    if name.endswith(".py") or (name in known and (not in_use or file in tables)):
        return name
    if name in known or file in tables:
        two = f"the installed {kind} and the file {file}" if name in known else f"{file}, which has a table too"
        raise BadSetting(f'preset file {path}: [{where}.{name}] could mean {two}; use [{where}."{file}"] alone for the file')
    if in_use or any(folder.joinpath(file).is_file() for folder in (path.parent, Path())):
        return file
    hint = f'for a file of your own [{where}."my_{kind}.py"], or [{where}.my_{kind}] if it is in use or beside the preset'
    raise BadSetting(f"preset file {path}: {UnknownName(kind, name, known, hint)}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file; raises MissingPrerequisite if it cannot be opened, BadSetting if it is not valid TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise MissingPrerequisite(f"cannot read the {what} {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:  # invalid TOML or UTF-8, or beyond a limit of Python
        raise BadSetting(f"the {what} {path} is not TOML: {one_line(e)}") from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables merged recursively, `above` overriding `below`; a key of SWAPPED that changes drops its dependent key."""
    found = dict(below)
    for name, its_own in ((name, its_own) for _, name, its_own in SWAPPED):
        if name in above and above[name] != below.get(name):
            found.pop(its_own, None)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def beside(folder: Path, table: Any) -> Any:
    """A copy of a table in which texts that begin with ./ or ../ are resolved as paths relative to a folder."""
    if isinstance(table, dict):
        return {key: beside(folder, value) for key, value in table.items()}
    if isinstance(table, str) and table.startswith(("./", "../")):
        return os.path.normpath(folder / table)
    return table


def parse_override(item: str) -> tuple[str, Any]:
    """Parse `key=value` with a TOML value or a bare string, to ("quark.kl_coef", 0.1); raises BadSetting."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        raise BadSetting(f"--set takes key=value; found {cut(item)!r}")
    return key.strip(), toml_or_text(key.strip(), text)


def toml_or_text(key: str, text: str) -> Any:
    """Parse a TOML value, or return the text if it is not TOML; raises BadSetting if it exceeds a limit of Python."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError):  # limits of Python: digits of a number, nested brackets
        raise BadSetting(f"the value of {cut(key)!r} has too many digits or brackets to be read: {cut(text)!r}") from None


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    path = key.split(".")
    if len(path) == 1:
        path = ["method", *path]  # a key without a section is a setting of the method
    if path[0] not in SECTIONS:
        raise UnknownName("section of settings", path[0], SECTIONS, "method settings need no section")
    at = raw
    for part in path[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise BadSetting(f"{key!r}: expected {part!r} to be a section; it is a value")
    at[path[-1]] = value
    for section, name, its_own in SWAPPED:
        if path == [section, name]:
            dropped = raw[section].pop(its_own, None)
            if its_own == "data" and isinstance(dropped, dict) and "held_out" in dropped and value != "micro":
                raw[section][its_own] = {"held_out": dropped["held_out"]}  # a size of the evaluation, whatever the source


def checked(kind: type[S], raw: dict[str, Any], where: str = "") -> S:
    """Validate a settings class; raises BadSetting with all faults on one line, and the nearest key for an unknown one."""
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
    value, given = error["input"], cut(_as_text(error["input"]))
    if error["type"].endswith(("list_type", "tuple_type", "set_type")) and isinstance(value, bool | int | float | str):
        as_list = f"{error['loc'][-1]}={cut(toml(as_names(value) if isinstance(value, str) else [value]))}"
        return f"setting {name!r}: expected a list, written '{as_list}'; found {given}"
    return f"setting {name!r}: {error['msg'].lower()}; found {given}"


def _as_text(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to show"


def check_seed(seed: int) -> int:
    """Return a seed unchanged; raises BadSetting if it is out of the range of the random generators."""
    if not 0 <= seed <= MAX_SEED:
        raise BadSetting(f"expected a seed that is an integer from 0 to {MAX_SEED}; found {cut(_as_text(seed))}")
    return seed


def _fields(kind: type[Settings], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Settings):
            return []
        kind = field.annotation
    return sorted(kind.model_fields)


MANY = 10_000  # maximum number of seeds of one command


def parse_seeds(text: str) -> list[int]:
    """Parse `0-4` or `0,2,5` to a list of distinct seeds; raises BadSetting, EmptySelection."""
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?", part)
        if ends is None:
            raise BadSetting(f"--seeds takes 0-4 or 0,2,5; found {cut(text)!r}")
        first, last = (check_seed(int(end)) for end in (ends[1], ends[2] or ends[1]))
        if len(found) + last - first >= MANY:
            raise BadSetting(f"--seeds {cut(text)!r} has more than {MANY} seeds; give fewer")
        found |= dict.fromkeys(range(first, last + 1))
    if not found:
        raise EmptySelection(f"--seeds {cut(text)!r} names no seed")
    return list(found)


def flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A nested table flattened to dotted keys: {"evaluation": {"points": 2}} is {"evaluation.points": 2}."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def parse_grid(item: str) -> tuple[str, list[Any]]:
    """Parse `key=v1,v2` with TOML values or bare words, to ("kl_coef", [0.1, 0.3]); raises BadSetting."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip() or not text.strip():
        raise BadSetting(f"--grid takes key=v1,v2; found {item!r}")
    try:
        return key.strip(), tomllib.loads(f"values = [{text}]")["values"]
    except (ValueError, RecursionError):  # not TOML, or beyond a limit of Python: each value is parsed on its own
        return key.strip(), [parse_override(f"{key}={part.strip()}")[1] for part in text.split(",")]


def overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as arguments of `--set`, `key=value` with TOML values."""
    return [f"{k}={toml(v)}" for k, v in settings.items()]
