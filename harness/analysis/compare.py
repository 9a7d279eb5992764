"""Comparison of two methods, sets of runs or settings: differences with errors, a verdict, a regression test for CI."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from harness.core.errors import BadSetting, UnknownName
from harness.core.text import count, plain, shorten
from harness.core.types import Metric
from harness.records.schema import Run

from . import columns
from .groups import Group, apart, groups, measure, unlike
from .select import Side
from .stats import Difference, detectable, holm, paired_by_prompt, paired_test, welch_test
from .terms import PromptTerms

DEFAULT = ("judge", "reward", "kl", "efficiency", "ppl", "distinct_2")
ALPHA = 0.05
BETTER = {column.key: column.better for column in columns.COLUMNS} | {
    "judge": "up", "unique": "up", "distinct_1": "up", "distinct_3": "up", "diversity": "up",
    "kl_per_token": "down", "regret": "down", "forward_kl": "down", "clean_nll": "down", "nll_per_token": "down",
    "rep_2": "down", "rep_3": "down", "rep_4": "down", "self_bleu": "down", "modal_mass": "down",
    "max_toxicity": "down", "toxicity_prob": "down", "toxicity_prob_inclusive": "down",
    "pii_per_kchar": "down", "violations_per_kchar": "down",
    "extraction": "down", "truth_prob": "down", "retain_accuracy": "up",
}  # fmt: skip
"""Which way is better; a metric that is not named here is only higher or lower."""
RULE = "B is worse than A by more than the margin: the whole 95 % interval of B - A lies beyond it"
AGAIN = "scores of two worlds cannot be compared: choose two selections of one, or run one side again with the other's settings"


class Condition(NamedTuple):
    """A regression condition: `judge<-0.02` is a difference B - A below -0.02."""

    text: str
    metric: str
    below: bool
    margin: float


class Compared(NamedTuple):
    """One metric on both sides; the difference is B - A."""

    metric: str
    a: float | None
    b: float | None
    difference: Difference | None  # None where a side has no value
    p: float | None  # Holm-adjusted over the metrics asked for
    seeds: tuple[int, int]
    prompts: int | None  # None where the error is over seeds alone
    test: str
    detectable: float | None  # in four of five studies of this size, at 0.05 before Holm
    verdict: str
    notes: list[str]


class Comparison(NamedTuple):
    a: Side
    b: Side
    names: tuple[str, str]
    group: Group
    rows: list[Compared]
    regressions: list[str]
    undecided: list[str]
    passed: list[str]  # the conditions that do not hold


def parse_condition(text: str) -> Condition:
    """Parse `judge<-0.02` or `kl>0.1`; raises BadSetting if malformed, or if it would call a gain a regression."""
    match = re.fullmatch(r"\s*([\w@]+)\s*([<>])\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
    if match is None:
        raise BadSetting(f"--regress-if takes METRIC<-MARGIN or METRIC>MARGIN, as judge<-0.02; found {text!r}")
    metric, sign, margin = match.group(1), match.group(2), float(match.group(3))
    below, better = sign == "<", better_way(metric)
    if better == ("down" if below else "up"):
        raise BadSetting(f"--regress-if {text!r} holds where B is better: {metric} is better {better}; turn it round")
    if margin > 0 if below else margin < 0:
        raise BadSetting(f"--regress-if {text!r} holds where nothing differs; a margin below is negative, one above positive")
    return Condition(text.strip(), metric, below, margin)


def compare(a: Side, b: Side, metrics: Sequence[str], conditions: Sequence[Condition] = ()) -> Comparison:
    """Every metric, B - A; raises BadSetting if the sides differ in their world or share a run, UnknownName."""
    group = _one_world(a, b)
    own = [column.key for column in columns.own_columns(group)]
    wanted = list(dict.fromkeys([*(metrics or (*DEFAULT, *own)), *(c.metric for c in conditions)]))
    _check_names([m for m in wanted if m not in DEFAULT], [*a.runs, *b.runs])
    terms = PromptTerms(strict=True)
    rows = _with_verdicts([_row(metric, a, b, terms) for metric in wanted])
    by_name = {row.metric: row for row in rows}
    states = [(c, _holds(c, by_name[c.metric])) for c in conditions]
    regressions = [_regression_text(c, by_name[c.metric]) for c, holds in states if holds]
    undecided = [f"{c.text}: {by_name[c.metric].verdict}" for c, holds in states if holds is None]
    passed = [_regression_text(c, by_name[c.metric]) for c, holds in states if holds is False]
    return Comparison(a, b, _side_names(a, b), group, rows, regressions, undecided, passed)


def better_way(metric: str) -> str:
    """The better direction, up or down; empty if neither is better."""
    return BETTER.get(metric.partition("@")[0], "")


def _one_world(a: Side, b: Side) -> Group:
    shared = {run.dir.resolve() for run in a.runs} & {run.dir.resolve() for run in b.runs}
    if n := len(shared):
        both = f"{a.text!r} and {b.text!r} share {n} run{'s' if n > 1 else ''}"
        raise BadSetting(f"{both}; cannot compare a run with itself")
    found = groups([*a.runs, *b.runs])
    if len(found) > 1:
        found.sort(key=lambda group: a.runs[0] not in group.runs)  # what A has comes first
        raise BadSetting(f"{a.text!r} and {b.text!r} were measured in different worlds, unlike in {unlike(found)}; {AGAIN}")
    return found[0]


def _side_names(a: Side, b: Side) -> tuple[str, str]:
    """The name of each side: the method, plus the settings that differ if both have the same method."""
    words = apart([a.runs, b.runs]) if a.runs[0].manifest.method == b.runs[0].manifest.method else ["", ""]
    names = [
        plain(s.runs[0].manifest.method) + (f" ({shorten(w, 80)})" if w else "") for s, w in zip((a, b), words, strict=True)
    ]
    return names[0], names[1]


def _check_names(metrics: Sequence[str], runs: list[Run]) -> None:
    known = {name for run in runs for name in (run.summary.final if run.summary else ())}
    known |= {c.key for c in columns.COLUMNS} | {"nll_per_token"}
    for metric in metrics:
        if metric not in known:
            raise UnknownName("metric", metric, known)


def _row(metric: str, a: Side, b: Side, terms: PromptTerms) -> Compared:
    """One metric before correction for multiple tests: no adjusted p and no verdict yet."""
    (x, no_x), (y, no_y) = (_by_seed(side, metric, terms) for side in (a, b))
    notes = [f"A: {why}" for why in no_x] + [f"B: {why}" for why in no_y]
    paired = sorted(x) == sorted(y) and len(x) > 1
    found, prompts, why = _difference(metric, (a, b), (x, y), paired, terms) if x and y else (None, None, None)
    notes += [why] if why else []
    if found is not None and found.stderr == 0 and found.mean:
        found = Difference(found.mean, None, None, None, None, None)
        notes.append("identical across seeds: no interval over seeds")
    test = (
        ("paired seeds" if paired else "Welch") + (", prompts" if prompts else "") if found and found.p is not None else "none"
    )
    can = detectable(found.stderr, found.df) if found and found.stderr and found.df else None
    one, two = (fmean(v.values()) if v else None for v in (x, y))
    return Compared(metric, one, two, found, None, (len(x), len(y)), prompts, test, can, "", notes)


def _difference(
    metric: str, sides: tuple[Side, Side], values: tuple[dict[int, float], dict[int, float]], paired: bool, terms: PromptTerms
) -> tuple[Difference, int | None, str | None]:
    """B - A, the number of prompts it is over, and a note."""
    seeds = (sorted(values[0]), sorted(values[1]))
    runs = [[_of_seed(side, seed) for seed in of] for side, of in zip(sides, seeds, strict=True)]
    found, why = terms.tables(runs, metric)
    if found is not None:
        return paired_by_prompt(found[1], found[0], seeds_paired=paired), found[0].shape[1], why
    one, two = ([v[seed] for seed in of] for v, of in zip(values, seeds, strict=True))
    return paired_test(two, one) if paired else welch_test(two, one), None, why


def _of_seed(side: Side, seed: int) -> list[Run]:
    return [run for run in side.runs if run.manifest.seed == seed]


def _by_seed(side: Side, metric: str, terms: PromptTerms) -> tuple[dict[int, float], list[str]]:
    """The value of each seed, averaged over repeated records of a seed; and the missing ones."""
    values, why = defaultdict(list), []
    for run in side.runs:
        found = _value(run, metric, terms)
        if found.value is None:
            why.append(f"seed {run.manifest.seed}: {found.reason}")
        else:
            values[run.manifest.seed].append(found.value)
            why += [f"seed {run.manifest.seed}: {found.reason}"] if found.reason else []
            lost = f"seed {run.manifest.seed}: {count(found.n_unscored, 'response')} without a score"
            why += [lost] if found.n_unscored else []
    return {seed: fmean(v) for seed, v in values.items()}, why


def _value(run: Run, metric: str, terms: PromptTerms) -> Metric:
    column = next((c for c in columns.COLUMNS if c.key == metric), None)
    if column is not None:
        return column.of(run)
    if metric != "nll_per_token":
        return measure(run, metric)
    known = terms.known(run, metric)
    return (
        Metric(float(known.mean()), None, len(known))
        if len(known)
        else Metric(None, None, 0, 0, "no score of any prompt is kept")
    )


def _with_verdicts(rows: list[Compared]) -> list[Compared]:
    """The rows with p adjusted over all tests, and their verdicts."""
    tested = [i for i, row in enumerate(rows) if row.difference is not None and row.difference.p is not None]
    adjusted = dict(zip(tested, holm([rows[i].difference.p for i in tested]), strict=True))  # type: ignore[union-attr,misc]
    return [
        row._replace(p=adjusted.get(i), verdict=row.verdict or _verdict(row, adjusted.get(i))) for i, row in enumerate(rows)
    ]


def _verdict(row: Compared, p: float | None) -> str:
    if row.difference is None:
        return "not measured"
    if p is None:
        return "no error known" if min(row.seeds) > 1 else "one seed: no error known"
    if p > ALPHA:
        return "no difference shown"
    higher, better = row.difference.mean > 0, better_way(row.metric)
    if not better:
        return "B higher" if higher else "B lower"
    return "B better" if higher == (better == "up") else "B worse"


def _holds(condition: Condition, row: Compared) -> bool | None:
    """Whether the whole interval lies beyond the margin; None without an interval."""
    d = row.difference
    if d is None or d.low is None or d.high is None:
        return None
    return d.high < condition.margin if condition.below else d.low > condition.margin


def _regression_text(condition: Condition, row: Compared) -> str:
    d = row.difference
    assert d is not None
    return f"{condition.text}: B - A is {number(d.mean)}, 95 % interval {number(d.low)} to {number(d.high)}"


def number(value: float | None) -> str:
    """A number as text; a dash if there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10_000 else f"{value:.3g}"


def text(c: Comparison) -> str:
    """The comparison as a table with its notes."""
    header = ("metric", "A", "B", "B - A", "95 % interval", "p (Holm)", "seeds", "prompts", "detectable", "verdict")
    cells = [header, *map(_cells, c.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
    return "\n".join([*_head(c), "", *lines, "", *_notes(c)])


def _aligned(row: Sequence[str], widths: list[int]) -> list[str]:
    last = len(row) - 1
    return [cell.ljust(w) if i in (0, last) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]


def _head(c: Comparison) -> list[str]:
    where = f"{plain(c.group.task)}, preset {plain(c.group.preset)}"
    sides = zip("AB", (c.a, c.b), c.names, strict=True)
    return [where, *(f"{s}  {name}, seed {', '.join(map(str, side.seeds))}: {plain(side.text)}" for s, side, name in sides)]


def _cells(row: Compared) -> tuple[str, ...]:
    d = row.difference or Difference(float("nan"), None, None, None, None, None)
    interval = "-" if d.low is None else f"[{number(d.low)}, {number(d.high)}]"
    p = "-" if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    seeds = str(row.seeds[0]) if row.seeds[0] == row.seeds[1] else f"{row.seeds[0]}, {row.seeds[1]}"
    mean = number(None if row.difference is None else d.mean)
    prompts = "-" if row.prompts is None else str(row.prompts)
    return row.metric, number(row.a), number(row.b), mean, interval, p, seeds, prompts, number(row.detectable), row.verdict


def _notes(c: Comparison) -> list[str]:
    tests = defaultdict(list)
    for row in c.rows:
        tests[row.test].append(row.metric)
    footnotes = [f"{_TESTS[test]}: {', '.join(names)}" for test, names in tests.items() if test in _TESTS]
    footnotes += _LEGEND if footnotes else []
    footnotes += [f"no regression by {text}" for text in c.passed]
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in c.rows:
        for note in row.notes:
            reasons[note].append(row.metric)
    footnotes += [f"{', '.join(names)}: {plain(note)}" for note, names in reasons.items()]
    return footnotes + [
        f"left out of {s}: {plain(why)}" for s, side in zip("AB", (c.a, c.b), strict=True) for why in side.left_out
    ]


_LEGEND = [
    "95 % interval: of each metric alone, without a correction; it may leave out 0 where the verdict is `no difference shown`",
    "p (Holm): two-sided, Holm-corrected over these metrics; a verdict needs p <= 0.05",
    "detectable: the true difference that a comparison with this error finds four times in five, at 0.05 before the correction",
]
_TESTS = {
    "paired seeds": "seeds paired by number, Student's t over seeds, so of these prompts alone",
    "paired seeds, prompts": "seeds paired by number, prompts paired, error over seeds and prompts",
    "Welch": "the sides have different seeds, Welch's t over seeds, so of these prompts alone",
    "Welch, prompts": "the sides have different seeds, prompts paired, error over seeds and prompts",
}


def record(c: Comparison) -> dict[str, Any]:
    """The comparison as plain data; null where nothing was measured."""
    sides = {
        key: {
            "selection": side.text, "name": name, "seeds": side.seeds, "left_out": side.left_out,
            "runs": [run.manifest.run_id for run in side.runs],
        }
        for key, side, name in zip("ab", (c.a, c.b), c.names, strict=True)
    }  # fmt: skip
    rows = [
        {
            "metric": r.metric, "a": r.a, "b": r.b, **_difference_record(r.difference), "p_holm": r.p,
            "n_seeds_a": r.seeds[0], "n_seeds_b": r.seeds[1], "n_prompts": r.prompts, "test": r.test,
            "detectable": r.detectable, "verdict": r.verdict, "notes": r.notes,
        }
        for r in c.rows
    ]  # fmt: skip
    where = {"preset": c.group.preset, "task": c.group.task}
    return {
        **where,
        **sides,
        "metrics": rows,
        "rule": RULE,
        "regressions": c.regressions,
        "undecided": c.undecided,
        "passed": c.passed,
    }


def _difference_record(d: Difference | None) -> dict[str, float | None]:
    values = d or [None] * len(Difference._fields)
    return dict(zip(("difference", *Difference._fields[1:]), values, strict=True))
