"""What probes found of the methods of a group: the judge at each point, over seeds, and the number that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from statistics import fmean
from typing import Any, NamedTuple

from harness.analysis.groups import Entry, Group, counted
from harness.analysis.stats import Difference, Interval, holm, t_interval, welch_test
from harness.core.errors import CorruptRecord
from harness.core.hashing import canonical
from harness.records.read import probes
from harness.records.schema import ProbeResult, Problem, Run

CONTROLS = "controls"  # a family that is no way of unlearning
Row = tuple[Entry, Run, ProbeResult]


class Probed(NamedTuple):
    """A method under a probe: the judge's score at each point, the number that they become, and its seeds."""

    method: str
    points: list[Interval | None]  # None where there is no reading, or it has no score
    value: Interval | None
    values: list[float]  # by seed of the method; of one policy under several seeds of the probe, by those


LEARNING = "relearn_habit"
ORDER = (LEARNING, "relearn_clean", "sample_more", "prompt_search", "quantize", "decode", "no_prefix")  # as readers ask
OF_LIBRARY = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
YARDSTICKS = ("base", "oracle")  # methods beside which the others are read: no unlearning, and never the habit


class Probing(NamedTuple):
    """A probe with its settings, the points of its readings, and every method that it was tried on."""

    probe: str
    settings: dict[str, Any]
    unit: str
    number: str
    at: list[str]
    methods: list[Probed]


def probings(group: Group) -> tuple[list[Probing], list[Problem]]:
    """The probes of a group by name and settings, each with its methods; records that cannot be read are problems."""
    problems: list[Problem] = []
    found: dict[str, list[Row]] = {}
    for entry in group.entries:
        for run in counted(entry):
            try:
                results = probes(run)
            except CorruptRecord as error:
                problems.append(Problem(run.dir, str(error).removeprefix(f"{run.dir}: ")))
                continue
            for result in results:
                same = [result.probe, result.version, result.settings]
                found.setdefault(canonical(same), []).append((entry, run, result))
    made = [_probing(rows) for _, every in sorted(found.items()) for rows in _along(every)]
    return sorted(made, key=lambda made: ORDER.index(made.probe) if made.probe in ORDER else len(ORDER)), problems


def points(result: ProbeResult) -> Iterable[str]:
    """The names of the points of a probe."""
    return (reading.label or f"{reading.at:g}" for reading in result.readings)


def _along(rows: list[Row]) -> list[list[Row]]:
    """The rows by their points; one that stops early, as a policy without a control token does, is with those that go on."""
    wholes: list[list[str]] = []
    found: list[list[Row]] = []
    for here in sorted((list(points(row[2])) for row in rows), key=len, reverse=True):
        if not any(whole[: len(here)] == here for whole in wholes):
            wholes.append(here)
            found.append([])
    for row in rows:
        here = list(points(row[2]))
        found[next(i for i, whole in enumerate(wholes) if whole[: len(here)] == here)].append(row)
    return found


def _probing(rows: list[Row]) -> Probing:
    first = max((row[2] for row in rows), key=lambda result: len(result.readings))
    by_name: dict[str, list[tuple[Run, ProbeResult]]] = {}
    for entry, run, result in rows:
        by_name.setdefault(entry.name, []).append((run, result))
    methods = [_probed(name, found, len(first.readings)) for name, found in by_name.items()]
    return Probing(first.probe, first.settings, first.unit, first.number, list(points(first)), methods)


def _probed(name: str, rows: list[tuple[Run, ProbeResult]], n: int) -> Probed:
    values = list(_by_seed(rows, lambda result: result.value))
    along = [_interval(_by_seed(rows, lambda result, i=i: _judge(result, i))) for i in range(n)]
    return Probed(name, along, _interval(values), values)


def _judge(result: ProbeResult, i: int) -> float | None:
    found = result.readings[i].metrics.get("judge") if i < len(result.readings) else None
    return None if found is None else found.value


def _by_seed(rows: list[tuple[Run, ProbeResult]], of: Any) -> Iterable[float]:
    """The mean of a number over the probe's own seeds, for each seed of the method; of one policy, by the probe's."""
    one, seeds = _of_one_policy(rows), dict[int, list[float]]()
    for run, result in rows:
        if (value := of(result)) is not None:
            seeds.setdefault(result.seed if one else run.manifest.seed, []).append(value)
    return map(fmean, seeds.values())


def _of_one_policy(rows: list[tuple[Run, ProbeResult]]) -> bool:
    """Whether all seeds of a method left the same weights, as those of `base` do: one policy, and no sample of several."""
    weights = {run.manifest.seed: _weights(run) for run, _ in rows}
    first, *others = weights.values()
    return (
        bool(first)
        and all(other == first for other in others)
        and (bool(others) or rows[0][0].manifest.method == YARDSTICKS[0])
    )


def _weights(run: Run) -> dict[str, str]:
    """The hashes of a policy's files in the record, without those whose bytes differ between versions of a library."""
    files = (run.manifest.files or {}).items()
    return {name: found for name, found in files if name.startswith("policy/") and name.rpartition("/")[2] not in OF_LIBRARY}


def _interval(values: Iterable[float]) -> Interval | None:
    found = list(values)
    return t_interval(found, within=(0.0, 1.0)) if found else None


def yardstick(probing: Probing, method: str) -> Probed | None:
    """The base policy or the oracle under a probe, None if it was not probed."""
    return next((found for found in probing.methods if found.method == method), None)


def returns(probing: Probing, method: Probed) -> float | None:
    """The share of the way from the oracle's number down to the base policy's at which a method stands; None if unknown.

    0 is a policy that holds as well as one that never had the habit, 1 one that is as the base policy. There is none with
    one seed of the oracle, or where its interval holds the base policy's number.
    """
    base, oracle = (yardstick(probing, name) for name in YARDSTICKS)
    if base is None or oracle is None or base.value is None or oracle.value is None or method.value is None:
        return None
    if oracle.value.low is None or oracle.value.low <= base.value.mean:
        return None
    return (oracle.value.mean - method.value.mean) / (oracle.value.mean - base.value.mean)


def apart(probing: Probing) -> list[tuple[str, str, Difference]]:
    """The pairs of methods that a probe tells apart, Holm-corrected over all pairs at 5 %, the largest difference first."""
    return _told({method.method: method.values for method in probing.methods if len(method.values) > 1})


def apart_families(probing: Probing, family: Callable[[str], str]) -> tuple[list[tuple[str, str, Difference]], int]:
    """The pairs of families that a probe tells apart, as `apart`, and the number of pairs; each method counts once.

    The error is over the methods of a family, so one of a single method is left out; so are yardsticks and other controls.
    """
    means: dict[str, list[float]] = {}
    for method in probing.methods:
        name = family(method.method.partition(" ")[0])
        if method.value is not None and method.method not in YARDSTICKS and name != CONTROLS:
            means.setdefault(name, []).append(method.value.mean)
    able = {name: values for name, values in means.items() if len(values) > 1}
    return _told(able), comb(len(able), 2)


def behind(probing: Probing) -> tuple[list[tuple[str, Difference]], list[str]]:
    """The methods that stand below the oracle, by Welch's t tests, Holm-corrected at 5 %, and those that do not beyond error.

    Only methods with two seeds can be tested, against an oracle with two.
    """
    oracle = yardstick(probing, "oracle")
    if oracle is None or len(oracle.values) < 2:
        return [], []
    able = [m for m in probing.methods if m.method not in YARDSTICKS and len(m.values) > 1]
    tests = [welch_test(m.values, oracle.values) for m in able]
    p = holm([1.0 if test.p is None else test.p for test in tests])
    shown = [(m.method, test) for m, test, p in zip(able, tests, p, strict=True) if p <= 0.05 and test.mean < 0]
    return shown, [m.method for m in able if m.method not in {name for name, _ in shown}]


def _told(values: Mapping[str, Sequence[float]]) -> list[tuple[str, str, Difference]]:
    """The pairs that Welch's t tests tell apart, Holm-corrected over all of them at 5 %, the largest difference first."""
    pairs = list(combinations(values, 2))
    tests = [welch_test(values[a], values[b]) for a, b in pairs]
    p = holm([1.0 if test.p is None else test.p for test in tests])
    shown = [(a, b, test) for (a, b), test, p in zip(pairs, tests, p, strict=True) if p <= 0.05]
    return sorted(shown, key=lambda pair: -abs(pair[2].mean))


def pairs(probing: Probing) -> int:
    """The number of pairs of methods with two seeds or more."""
    return comb(sum(len(method.values) > 1 for method in probing.methods), 2)
