"""Plan of a sweep: its specification, and its cells (methods x tasks x settings x seeds) with their states.

`harness.runs.sweep.study` plans a study in the same terms. Nothing runs here; `harness.runs.sweep.launcher` runs the cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from harness.core import registry
from harness.core.errors import BadSetting, EmptySelection, UnknownName
from harness.core.settings import SECTIONS, RunSettings, checked, flat, overrides, parse_grid, parse_override, read_toml
from harness.core.types import Settings
from harness.records.write import RunStore
from harness.runs import named

SHARED = tuple(section for section in SECTIONS if section != "method")  # sections of settings shared by all methods


class Sweep(Settings):
    """The specification of a sweep, from flags, a file, or both."""

    methods: list[str] = Field([], description="names, or files: ./my_method.py")
    tasks: list[str] = Field([], description="names, or files: ./my_task.py")
    seeds: str | list[int] = Field("0", description="0-4 or 0,2,5")
    preset: str = Field("micro", description="model, data, scorers, budget")
    set: dict[str, Any] = Field({}, description="a setting of every cell that has it")
    grid: dict[str, list[Any]] = Field({}, description="values of a setting, every combination of which is a cell")


class Planned(NamedTuple):
    """One cell: the arguments of `harness run` and the path of its record."""

    method: str
    task: str
    seed: int
    preset: str
    settings: dict[str, Any]  # as for --set, without the name of the method
    point: dict[str, Any]  # the settings from the grid
    out: Path
    path: Path
    run_id: str
    probes: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        return overrides(self.settings)

    @property
    def label(self) -> str:
        """A label that is unique among the cells of its task."""
        return " ".join([Path(self.method).stem, *overrides(self.point), f"seed {self.seed}"])

    def state(self) -> str:
        """The state: done, degraded, to resume (started, not finished, or not probed) or missing; raises CorruptRecord."""
        store = RunStore(self.path)
        summary = store.summary()
        if summary is not None:
            return "to resume" if self.probes and _unprobed(self) else str(summary.status)
        return "to resume" if store.manifest() is not None else "missing"


def read_plan(path: Path, what: str, tables: Iterable[str]) -> dict[str, Any]:
    """Read a sweep or a study from a TOML file, its tables flattened to dotted keys.

    Raises MissingPrerequisite if it cannot be read, BadSetting if it is invalid.
    """
    raw = read_toml(path, what)
    for name in tables:
        if not isinstance(raw.get(name, {}), dict):
            raise BadSetting(f"{name} in {path} is a table of settings, [{name}]; found {raw[name]!r}")
    shared = {section: raw.pop(section) for section in SHARED if section in raw}  # [evaluation] is [set.evaluation]
    raw |= {name: flat(raw.get(name, {})) for name in tables}
    raw["set"] = flat(shared) | raw["set"]
    return raw


def told(
    file: Path | None, methods: str | None, tasks: str | None, seeds: str | None, preset: str | None,
    settings: Iterable[str], grid: Iterable[str],
) -> Sweep:  # fmt: skip
    """Build a sweep from a file overridden by flags; raises BadSetting if a value is invalid."""
    raw = read_plan(file, "sweep file", ("set", "grid")) if file is not None else {"set": {}, "grid": {}}
    chosen = names(methods)
    flags = {"methods": chosen, "tasks": names(tasks), "seeds": seeds, "preset": preset}
    if chosen is not None:
        raw |= narrowed(raw, chosen, ("set", "grid"))
    raw |= {key: value for key, value in flags.items() if value is not None}
    raw["set"] |= dict(parse_override(item) for item in settings)
    raw["grid"] |= dict(parse_grid(item) for item in grid)
    return checked(Sweep, raw, "sweep")


def narrowed(raw: dict[str, Any], methods: list[str], tables: Iterable[str]) -> dict[str, Any]:
    """A file's methods narrowed to some, and its tables without what is said of the others."""
    given = raw.get("methods")
    left_out = set(map(stem, given if isinstance(given, list) else [])) - set(map(stem, methods))

    def stays(key: str) -> bool:
        head, _, rest = key.removeprefix("method.").partition(".")
        return stem(head) not in left_out if rest else True

    return {"methods": methods} | {name: {k: v for k, v in raw[name].items() if stays(k)} for name in tables}


def stem(method: object) -> str:
    """A name in the one spelling of its variants: best-of-n and ./best_of_n.py are best_of_n."""
    return Path(str(method)).stem.replace("-", "_")


def names(text: str | None) -> list[str] | None:
    """The names of a flag, A,B; None if it is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


class Choice(NamedTuple):
    """One combination of method, task and settings, for all seeds."""

    method: str
    task: str
    settings: dict[str, Any]
    point: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        return (self.method, self.task, *overrides(self.settings))


def choices(sweep: Sweep) -> Iterator[Choice]:
    """Yield all combinations; raises UnknownName if no method has a setting, EmptySelection if there is none."""
    methods = {registry.given("method", name): None for name in sweep.methods}
    tasks = {registry.given("task", name): None for name in sweep.tasks}
    if not methods or not tasks:
        raise EmptySelection(f"a sweep needs methods and tasks; found {len(methods)} methods, {len(tasks)} tasks")
    where = {key: scope(key, list(methods)) for key in (*sweep.set, *sweep.grid)}
    for key, values in sweep.grid.items():
        if not values:
            raise EmptySelection(f"the grid has no value for {key!r}")
    for task, method in product(tasks, methods):
        fixed = {where[k][method]: v for k, v in sweep.set.items() if method in where[k]}
        axes = {where[k][method]: values for k, values in sweep.grid.items() if method in where[k]}
        for point in product(*axes.values()):
            chosen = dict(zip(axes, point, strict=True))
            yield Choice(method, task, fixed | chosen, chosen)


def scope(key: str, methods: list[str]) -> dict[str, str]:
    """The methods that a setting (quark.kl_coef, evaluation.points) applies to, and its key there; raises UnknownName."""
    head, _, rest = key.removeprefix("method.").partition(".")
    if rest and head in SHARED:
        return {method: key for method in methods}
    if not rest:
        found = {method: head for method in methods if head in _fields(method)}
        if not found:
            raise UnknownName(
                "setting", head, {f for method in methods for f in _fields(method)}, "of the methods of this sweep"
            )
        return found
    named = {Path(method).stem: method for method in methods}
    spelled = next((n for n in (head, head.replace("-", "_"), head.replace("_", "-")) if n in named), None)
    if spelled is None:
        raise UnknownName("method or section of this sweep", head, [*named, *SHARED], f"in the setting {key!r}")
    if rest.partition(".")[0] not in _fields(named[spelled]):
        raise UnknownName(f"setting of {spelled}", rest, _fields(named[spelled]))
    return {named[spelled]: rest}


def _fields(method: str) -> list[str]:
    return list(registry.load("method", method).Settings.model_fields)


def plan(sweep: Sweep, seeds: list[int], out: Path, offline: bool = False) -> list[Planned]:
    """List all cells with the paths of their records; all settings are checked before the first model is loaded.

    Raises the errors of `harness run` for any of the cells: BadSetting, UnknownName, MissingPrerequisite.
    """
    wanted = [(choice, seed) for choice in choices(sweep) for seed in seeds]
    return cells_of(wanted, sweep.preset, out, offline)


def cells_of(wanted: Sequence[tuple[Choice, int]], preset: str, out: Path, offline: bool) -> list[Planned]:
    """The cells of combinations with their seeds, in this order; of two with the same record the first."""
    from harness.runs import assemble

    resolved: dict[tuple[str, ...], RunSettings] = {}
    for choice, _ in wanted:
        if choice.key not in resolved:
            resolved[choice.key] = named.settings(preset, choice.method, choice.task, overrides(choice.settings))
            assemble.check(resolved[choice.key], choice.method)
    loaded: dict[str, Any] = {}
    made: dict[tuple[str, ...], Any] = {}
    found: dict[Path, Planned] = {}
    for choice, seed in wanted:
        if (first := made.get(choice.key)) is None:
            settings = resolved[choice.key]
            needs = choice.task + settings.model_dump_json(include={"model", "task", "scorers"})
            if needs not in loaded:
                loaded[needs] = assemble.parts(settings, choice.task, offline, out)
            first = made[choice.key] = assemble.cell(settings, loaded[needs], choice.method, choice.task, seed, out)
        cell = replace(first, seed=seed, identity=first.identity | {"seed": seed})
        of_record = (out, cell.path, cell.run_id, cell.probes)
        planned = Planned(choice.method, choice.task, seed, preset, choice.settings, choice.point, *of_record)
        found.setdefault(cell.path, planned)  # two points of a grid may have the same settings
    return list(found.values())


def _unprobed(cell: Planned) -> bool:
    from harness.runs.finished.probe import unprobed  # it imports torch, as the cells do that have probes

    return unprobed(cell.path, cell.probes)


class Result(NamedTuple):
    """The outcome of a cell: done, degraded, failed, interrupted or not run."""

    cell: Planned
    state: str
    why: str = ""
    seconds: float | None = None  # None if it was finished before or by another process


def state_of(cell: Planned) -> str:
    """The state of a cell, or "corrupt"; the error is then reported by the run itself."""
    from harness.core.errors import CorruptRecord

    try:
        return cell.state()
    except CorruptRecord:
        return "corrupt"
