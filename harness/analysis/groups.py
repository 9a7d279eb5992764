"""Which runs may stand in one figure, what they are called there, and the numbers that they recorded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isclose
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from harness.core import registry
from harness.core.hashing import canonical
from harness.core.text import plain, shorten
from harness.core.types import Metric
from harness.records.schema import Manifest, MetricRecord, Run, Summary

from .stats import Difference, Interval, crossed_interval, nested_interval, paired_by_prompt, welch_test
from .terms import PromptTerms, Terms

T = TypeVar("T")
CALLED = {  # models of the world, known by their bytes, whatever they are called: where a name is put, and the setting it is of
    ("model", "name"): ("model", "id"),
    ("fluency", "name"): ("task", "fluency"),
    ("scorers", "reward", "model"): ("task", "reward"),
    ("scorers", "judge", "model"): ("task", "judge"),
}
NAMES = ("name", "model", "sha256")  # of a file or a model, which a label gives as one value
HASH, DIGITS = re.compile(r"[0-9a-f]{32,}"), 8  # the digits of a hash that a label gives
WIDEST = 48  # characters of one value in a heading
Key = tuple[str, ...]  # the path of a value in nested tables
WORLD = ("model", "data", "scorers", "fluency", "decoding", "evaluation")  # shared by all that is measured by one ruler
ON_THE_WAY = ("points", "point_samples")  # of the evaluation: how often and how closely a run is looked at before its end
MOST_DRAWN = 1000  # runs of a group
SAME_FRONTIER = 1e-3  # reward; frontiers of one world differ by rounding between machines, not by more
SHARES = (
    "undesired", "reward", "judge", "distinct_2", "grammatical", "modal_mass", "unique", "eos_rate",
    "extraction", "truth_prob", "membership_auc", "retain_accuracy",
)  # fmt: skip
AT_LEAST_ZERO = ("kl", "efficiency", "entropy", "length", "forward_kl", "clean_nll")  # excess KL may say that a bound is broken
RANGES = (
    dict.fromkeys(SHARES, (0.0, 1.0)) | dict.fromkeys(AT_LEAST_ZERO, (0.0, inf)) | {"removed": (-inf, 100.0), "ppl": (1.0, inf)}
)


@dataclass(frozen=True, eq=False)
class Entry:
    """One method with one choice of settings: its runs differ in the seed alone."""

    name: str
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class Group:
    """The runs that share preset, task, base model, data, scorers and frontier; `most` are shown one by one on a page."""

    preset: str
    task: str
    entries: list[Entry]
    most: int = MOST_DRAWN

    @property
    def runs(self) -> list[Run]:
        return [run for entry in self.entries for run in entry.runs]

    def drawn(self, entry: Entry, most: int = MOST_DRAWN) -> list[Run]:
        """The runs of an entry that a page shows one by one: all, or in a group of many the first, as many of each entry."""
        most = min(most, self.most)
        return entry.runs if len(self.runs) <= most else entry.runs[: max(1, most // len(self.entries))]

    @property
    def reference(self) -> Summary | None:
        """A summary with the base and the frontier that all share; None before any run has finished."""
        return next((run.summary for run in self.runs if run.summary), None)


class Estimate(NamedTuple):
    """A metric over the seeds of an entry, [n]; interval is None where no seed has a value, and reasons say why."""

    interval: Interval | None
    values: list[float]  # one per seed, averaged over repeated records of a seed
    reasons: tuple[str, ...]
    bounds: tuple[str, ...] = ()  # why values are bounds, and on which side, where they are

    @property
    def n(self) -> int:
        return len(self.values)


def groups(runs: list[Run]) -> list[Group]:
    """The runs, split where they cannot be compared, the largest group first."""
    worlds: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        worlds[_world(run)].append(run)
    parts = sorted((part for key in sorted(worlds) for part in _by_frontier(worlds[key])), key=len, reverse=True)
    return [Group(part[0].manifest.preset, part[0].manifest.task, _entries(part)) for part in parts]


def measure(run: Run, key: str, side: str = "final") -> Metric:
    """A metric of the run's end or, with side "base", of the base policy; never a number where none was measured."""
    if run.summary is None:
        return Metric(None, None, 0, 0, f"the run is {run.manifest.status}")
    return metric(run.summary.metrics(side).get(key))


def metric(found: MetricRecord | None) -> Metric:
    """A recorded metric, with a reason whenever it has no value."""
    if found is None:
        return Metric(None, None, 0, 0, "not recorded")
    reason = found.reason or ("no reason recorded" if found.value is None else None)
    return Metric(found.value, found.stderr, found.n, found.n_unscored, reason)


def competing(found: Sequence[T], method: Callable[[T], str]) -> list[T]:
    """Those whose method does not see the judge, which tells what could be reached and is no way to get there; else all."""
    return [x for x in found if registry.attribute("method", method(x), "sees_judge") is not True] or [*found]


def method_of(entry: Entry) -> str:
    """The method of an entry, whatever the settings that its name has."""
    return entry.runs[0].manifest.method


def counted(entry: Entry) -> list[Run]:
    """The runs that means and rankings may use: done, not degraded."""
    return [run for run in entry.runs if run.manifest.status == "done"]


def estimate(entry: Entry, of: Callable[[Run], Metric], key: str = "", prompts: PromptTerms | None = None) -> Estimate:
    """Mean over seeds with its interval, cut to what the metric of that key can be; two records of one seed count as one.

    The interval holds the error over seeds, prompts and responses, by the terms of each prompt if the records keep them.
    """
    seeds, reasons, bounds = _by_seed(entry, of)
    means = [fmean(found.value or 0.0 for _, found in seed) for seed in seeds]
    terms = prompts.table([[run for run, _ in seed] for seed in seeds], key) if prompts and seeds else None
    within = RANGES.get(key.partition("@")[0], (-inf, inf))
    interval = _interval(means, seeds, terms, within) if means else None
    return Estimate(interval, means, tuple(reasons), tuple(bounds))


def difference(pair: tuple[Entry, Entry], of: Callable[[Run], Metric], key: str, prompts: PromptTerms) -> Difference:
    """Mean of the first minus mean of the second, with the error over seeds and, where prompts are kept, over prompts.

    Raises EmptySelection if one of them has no value.
    """
    sides = [_by_seed(entry, of)[0] for entry in pair]
    tables, _ = prompts.tables([[[run for run, _ in seed] for seed in side] for side in sides], key)
    if tables is not None:
        return paired_by_prompt(tables[0], tables[1])
    one, two = ([fmean(found.value or 0.0 for _, found in seed) for seed in side] for side in sides)
    return welch_test(one, two)


def _by_seed(entry: Entry, of: Callable[[Run], Metric]) -> tuple[list[list[tuple[Run, Metric]]], list[str], list[str]]:
    """The counted runs with a value, by seed; why the others have none; and why values are bounds."""
    by_seed: dict[int, list[tuple[Run, Metric]]] = defaultdict(list)
    reasons, bounds = [], []
    for run in counted(entry):
        found = of(run)
        if found.value is None:
            reasons.append(f"seed {run.manifest.seed}: {found.reason}")
        else:
            by_seed[run.manifest.seed].append((run, found))
            bounds += [f"seed {run.manifest.seed}: {found.reason}"] if found.reason else []
    if not counted(entry):
        reasons.append("no run is done")
    return [by_seed[seed] for seed in sorted(by_seed)], reasons, bounds


def _interval(
    means: list[float], seeds: list[list[tuple[Run, Metric]]], terms: Terms | None, within: tuple[float, float]
) -> Interval:
    if terms is not None:
        return crossed_interval(terms, within, fmean(means))
    known = [[found.stderr for _, found in seed if found.stderr is not None] for seed in seeds]
    return nested_interval(means, [fmean(errors) if errors else None for errors in known], within)


def _world(run: Run) -> str:
    m = run.manifest
    return canonical([m.preset, m.task, ruler(run)])


def ruler(run: Run) -> dict[str, Any]:
    """What a run's end was measured by: runs that share it, preset and task may be compared."""
    found = {key: run.manifest.identity.get(key) for key in WORLD}
    evaluation = found["evaluation"]
    if isinstance(evaluation, dict):
        found["evaluation"] = {key: value for key, value in evaluation.items() if key not in ON_THE_WAY}
    return found


def world(group: Group) -> dict[str, Any]:
    """What the identities of a group's runs have in common of their world, whole where it is the same in all."""
    first, *others = [run.manifest.identity for run in group.runs]
    whole = {key: first[key] for key in WORLD if key in first and all(other.get(key) == first[key] for other in others)}
    found = {key: value for key, value in ruler(group.runs[0]).items() if key in first} | whole
    return described(group.runs[0].manifest, found)


def _by_frontier(runs: list[Run]) -> Iterator[list[Run]]:
    """Split runs of one world whose frontiers differ; a run without one goes with the first."""
    parts: list[list[Run]] = []
    homes: dict[tuple[Any, ...], list[Run]] = {}  # of equal frontiers the first part is the same
    for run in sorted(runs, key=lambda r: r.summary is None):
        frontier = _points(run)
        home = homes.get(frontier) or next((part for part in parts if _one_frontier(part[0], run)), None)
        if home is None:
            parts.append(home := [run])
        else:
            home.append(run)
        homes[frontier] = home
    yield from parts


def _points(run: Run) -> tuple[Any, ...]:
    """What `_one_frontier` compares of a run."""
    if run.summary is None or (found := run.summary.frontier) is None:
        return run.summary is None, None
    return found.kl_cap, found.base_reward, *(point.reward for point in found.curve)


def _one_frontier(a: Run, b: Run) -> bool:
    if a.summary is None or b.summary is None:
        return True
    one, two = a.summary.frontier, b.summary.frontier
    if one is None or two is None:
        return one is two
    if one.kl_cap != two.kl_cap or len(one.curve) != len(two.curve):
        return False
    pairs = [(one.base_reward, two.base_reward)]
    pairs += [(p.reward, q.reward) for p, q in zip(one.curve, two.curve, strict=True)]
    return all(isclose(p, q, rel_tol=0, abs_tol=SAME_FRONTIER) for p, q in pairs)


def _entries(runs: list[Run]) -> list[Entry]:
    by_method: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        identity = {k: v for k, v in run.manifest.identity.items() if k != "seed"}
        by_method[run.manifest.method][canonical(identity)].append(run)
    entries = []
    for method in sorted(by_method):
        variants = [by_method[method][key] for key in sorted(by_method[method])]
        for name, variant in zip(_names(method, variants), variants, strict=True):
            entries.append(Entry(name, sorted(variant, key=lambda r: (r.manifest.seed, r.manifest.run_id, str(r.dir)))))
    return entries


def _names(method: str, variants: list[list[Run]]) -> list[str]:
    """The method's name, and what sets its variants apart where there are several."""
    if len(variants) == 1:
        return [plain(method)]
    return [plain(f"{method} ({i}: {words})") for i, words in enumerate(apart(variants), 1)]


def apart(variants: list[list[Run]]) -> list[str]:
    """What sets each choice of settings apart from the others, as text; nothing where there is one only."""
    found = [leaves(variant[0].manifest.identity) for variant in variants]
    keys = _unlike(found) - {("seed",)}
    files, told = _files(keys, found), _labelled(keys, found)
    label = {key: "" if key in files else f"{key[-1]}=" for key in told}
    return [", ".join(label[key] + values[i] for key, values in told.items()) for i in range(len(variants))]


def unlike(found: Sequence[Group]) -> str:
    """In what the worlds of several groups differ, as text."""
    words = []
    for key, values in _varying(found).items():
        words.append(f"{'.'.join(key)} ({' and '.join(dict.fromkeys(shorten(v, WIDEST) for v in values))})")
    return "; ".join(words) or "their frontiers"


def headings(found: Sequence[Group]) -> list[str]:
    """A name for each group: its task and preset and, where several have these, what else tells it from the others."""
    return [
        f"{plain(group.task)}, preset {plain(group.preset)}" + (f", world {own[0]}: {own[1]}" if own else "")
        for group, own in zip(found, worlds(found), strict=True)
    ]


def worlds(found: Sequence[Group]) -> list[tuple[int, str] | None]:
    """The number of each group's world, from 1, and what tells it from the others of its task and preset; None if alone."""
    same: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, group in enumerate(found):
        same[group.task, group.preset].append(i)
    told: dict[int, tuple[int, str]] = {}
    for members in same.values():
        varying = _varying([found[i] for i in members]) if len(members) > 1 else {}
        for n, i in enumerate(members if len(members) > 1 else []):
            own = ", ".join(f"{'.'.join(key)} {shorten(values[n], WIDEST)}" for key, values in varying.items())
            told[i] = n + 1, shorten(own or "another frontier", 160)
    return [told.get(i) for i in range(len(found))]


def _varying(found: Sequence[Group]) -> dict[Key, list[str]]:
    """What of the worlds of several groups is not the same in all, and what it is in each."""
    firsts = [group.runs[0] for group in found]
    here = [{k: v for k, v in ruler(run).items() if k in run.manifest.identity} for run in firsts]
    also = [{"preset": run.manifest.preset, "task": run.manifest.task} for run in firsts]
    made = [leaves(of | more) for of, more in zip(here, also, strict=True)]
    shown = [leaves(described(run.manifest, of) | more) for run, of, more in zip(firsts, here, also, strict=True)]
    return _labelled(_unlike(made), shown)


def _labelled(keys: set[Key], shown: list[dict[Key, str]]) -> dict[Key, list[str]]:
    """The values of each key in each of several identities; a file or a model is one value, its name and hash, and comes first.

    Of two scorers of different names nothing else is said.
    """
    files = _files(keys, shown)
    others = {of for of in files if len({_called(leaf, of) for leaf in shown}) > 1}
    rest = {key for key in keys if key[:-1] not in files or key[-1] not in NAMES} - {key for key in keys if key[:-1] in others}
    told = {of: [_called(leaf, of) + _hash(leaf, of) for leaf in shown] for of in sorted(files)}
    return told | {key: [_brief(leaf.get(key, "none")) for leaf in shown] for key in sorted(rest)}


def _files(keys: set[Key], shown: list[dict[Key, str]]) -> set[Key]:
    """The tables of an identity that differ in a hash or a name and have a name."""
    return {key[:-1] for key in keys if key[-1] in NAMES and any((*key[:-1], "name") in leaf for leaf in shown)}


def _called(leaf: dict[Key, str], of: Key) -> str:
    return leaf.get((*of, "model")) or leaf.get((*of, "name"), "none")


def _hash(leaf: dict[Key, str], of: Key) -> str:
    found = leaf.get((*of, "sha256"))
    return f" sha256 {found[:DIGITS]}" if found else ""


def _brief(value: str) -> str:
    """A value with the first digits of each hash in it."""
    return HASH.sub(lambda found: found[0][:DIGITS], value)


def _unlike(found: list[dict[Key, str]]) -> set[Key]:
    keys = {key for of in found for key in of}
    return {key for key in keys if len({of.get(key) for of in found}) > 1}


def described(manifest: Manifest, identity: dict[str, Any]) -> dict[str, Any]:
    """A run's identity, or a part of it, with the names that its settings have for its models, known by their bytes alone."""
    found, told = identity, leaves(manifest.settings or {})
    for path, setting in CALLED.items():
        name = told.get(setting) if path[0] != "scorers" else told.get(("scorers", told.get(setting, ""), "model"))
        found = _with_name(found, path, _model_name(name)) if name else found
    return found


def _with_name(found: Any, path: Key, name: str) -> Any:
    """A copy of nested tables with a name at a path, where the tables are there and have none."""
    key, *rest = path
    if not isinstance(found, dict) or (rest and key not in found):
        return found
    return found | {key: _with_name(found[key], tuple(rest), name)} if rest else {key: name} | found


def _model_name(where: str) -> str:
    """A hub id as it is, a folder by its last part: a page says nothing of the machine."""
    return where if where.count("/") < 2 and where[:1] not in "/.~" else PurePosixPath(where).name


def leaves(value: Any, path: Key = ()) -> dict[Key, str]:
    """The values of nested tables by their path, as text."""
    if not isinstance(value, dict):
        return {path: canonical(value).strip('"')}
    return {k: v for key in value for k, v in leaves(value[key], (*path, str(key))).items()}
