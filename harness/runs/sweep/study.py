"""Plan of a study: every method at the values of its knob on every task, with more seeds at the middle value.

The cells are those of `harness run --set KNOB=VALUE`, so finished cells of a sweep count. Their order makes an interrupted
study useful: seed by seed, and within a seed first the middle values of all methods, then the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from harness.core import registry
from harness.core.errors import BadSetting, EmptySelection, UnknownName
from harness.core.settings import checked, parse_seeds
from harness.core.types import Knob, Settings
from harness.runs import named

from .plan import Choice, Planned, cells_of, names, narrowed, read_plan, scope, stem


class StudySpec(Settings):
    """The specification of a study, from a file narrowed by flags."""

    methods: list[str] = Field(description="names, or files: ./my_method.py")
    tasks: list[str] = Field(description="names, or files: ./my_task.py")
    preset: str = Field("micro", description="model, data, scorers, budget")
    seeds: str | list[int] = Field("0-4", description="seeds at the middle value of each knob, 0-4 or 0,2,5")
    other_seeds: str | list[int] = Field("0-1", description="seeds at the other values of each knob")
    set: dict[str, Any] = Field({}, description="a setting of every cell that has it")
    knobs: dict[str, list[int | float]] = Field({}, description="values of a method's knob in place of its own, weak to strong")


class Point(NamedTuple):
    """A method on a task at one value of its knob; `middle` also for a method without a knob."""

    choice: Choice
    middle: bool


def read_study(path: Path, methods: str | None = None, tasks: str | None = None) -> StudySpec:
    """Read a study from a TOML file, narrowed to some of its methods and tasks.

    Raises MissingPrerequisite if the file cannot be read, BadSetting if it is invalid, UnknownName for a name not in it.
    """
    raw = read_plan(path, "study file", ("set", "knobs"))
    if (chosen := names(methods)) is not None:
        left_out = {stem(name) for name in _listed("method", raw)} - {stem(name) for name in chosen}
        raw["knobs"] = {name: values for name, values in raw["knobs"].items() if stem(name) not in left_out}
        raw |= narrowed(raw, _of_file("method", chosen, raw, path), ["set"])
    if (chosen := names(tasks)) is not None:
        raw["tasks"] = _of_file("task", chosen, raw, path)
    return checked(StudySpec, raw, "study")


def _of_file(kind: str, chosen: list[str], raw: dict[str, Any], path: Path) -> list[str]:
    """The names of the file that a flag gives; raises UnknownName for another, EmptySelection if there is none."""
    known = {stem(name): str(name) for name in _listed(kind, raw)}
    if not chosen:
        raise EmptySelection(f"--{kind}s names no {kind} of the study {path}")
    for name in chosen:
        if stem(name) not in known:
            raise UnknownName(kind, name, known.values(), f"of the study {path}")
    return [known[stem(name)] for name in chosen]


def _listed(kind: str, raw: dict[str, Any]) -> list[Any]:
    found = raw.get(f"{kind}s")
    return found if isinstance(found, list) else []


def plan_study(spec: StudySpec, out: Path, offline: bool = False) -> list[Planned]:
    """List all cells of a study in the order in which they run; all settings are checked before the first model is loaded.

    Raises the errors of `harness run` for any of the cells: BadSetting, UnknownName, MissingPrerequisite.
    """
    seeds, others = _seeds(spec.seeds), _seeds(spec.other_seeds)
    return cells_of(list(ordered(list(points(spec)), seeds, others)), spec.preset, out, offline)


def _seeds(given: str | list[int]) -> list[int]:
    return parse_seeds(given if isinstance(given, str) else ",".join(map(str, given)))


def ordered(points: Sequence[Point], seeds: Sequence[int], others: Sequence[int]) -> Iterator[tuple[Choice, int]]:
    """Seed by seed, first the middle values with a seed of `seeds`, then the other values with one of `others`."""
    for seed in dict.fromkeys([*seeds, *others]):
        for middle in (True, False):
            if seed in (seeds if middle else others):
                yield from ((point.choice, seed) for point in points if point.middle is middle)


def points(spec: StudySpec) -> Iterator[Point]:
    """Yield every method on every task at each value of its knob, one point for a method without a knob.

    Raises UnknownName for an unknown name or setting, BadSetting for values that no knob can have or a knob that is set.
    """
    methods = {registry.given("method", name): None for name in spec.methods}
    tasks = {registry.given("task", name): None for name in spec.tasks}
    if not methods or not tasks:
        raise EmptySelection(f"a study needs methods and tasks; found {len(methods)} methods, {len(tasks)} tasks")
    known = {stem(method): method for method in methods}
    if unknown := [name for name in spec.knobs if stem(name) not in known]:
        raise UnknownName("method", unknown[0], [Path(method).stem for method in methods], "of the study, in its [knobs]")
    own = {known[stem(name)]: values for name, values in spec.knobs.items()}
    where = {key: scope(key, list(methods)) for key in spec.set}
    for task, method in product(tasks, methods):
        fixed = {where[key][method]: value for key, value in spec.set.items() if method in where[key]}
        found = knob(method, spec.preset, task, own.get(method))
        if found is None:
            yield Point(Choice(method, task, fixed, {}), middle=True)
        elif found.setting in fixed:
            raise BadSetting(f"the study sets {found.setting}, the knob of {method}; give its values in [knobs] instead")
        else:
            yield from _along(found, Choice(method, task, fixed, {}))


def _along(knob: Knob, at: Choice) -> Iterator[Point]:
    for i, value in enumerate(knob.values):
        point = {knob.setting: value}
        yield Point(at._replace(settings=at.settings | point, point=point), middle=i == len(knob.values) // 2)


def knob(method: str, preset: str, task: str, given: Sequence[float] | None = None) -> Knob | None:
    """The knob of a method, None if it has none; its values are those given, else the preset's for the task, else its own.

    Raises BadSetting unless the values are an odd number of at least three in order: the middle one has the most seeds.
    """
    kind = registry.load("method", method)
    found, told = getattr(kind, "knob", None), named.knob_values(preset, method, task)
    if found is None:
        if given is not None or told is not None:
            raise BadSetting(f"method {method} has no knob; leave out its values")
        return None
    if not isinstance(found, Knob) or found.setting not in kind.Settings.model_fields:
        raise BadSetting(f"the knob of method {method}, {found!r:.60}, names no setting; harness check method {method}")
    values = next(values for values in (given, told, found.values) if values is not None)
    if not _in_order(values):
        expected = "expected an odd number of values, at least three, from weak to strong"
        raise BadSetting(f"the knob {found.setting} of method {method}: {expected}; found {values!r:.80}")
    return Knob(found.setting, tuple(values))


def _in_order(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) < 3 or len(values) % 2 == 0:
        return False
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return False
    return list(values) in (sorted(set(values)), sorted(set(values), reverse=True))
