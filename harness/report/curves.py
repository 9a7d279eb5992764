"""The first figure, table and sentences of a group whose methods were run at several values of their knobs."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite
from typing import Any

import numpy as np

from harness.analysis.columns import BY_KEY
from harness.analysis.curves.along import Line
from harness.analysis.curves.knobs import Curve, Point
from harness.analysis.curves.table import ALPHA, SHARES, TARGET, Reading, Readings
from harness.analysis.groups import counted
from harness.analysis.stats import Difference, Interval
from harness.analysis.study import MACHINES, Study, StudyGroup
from harness.core import registry
from harness.core.text import count, plain, shorten

from .tables import MISSING, Table, number, to_csv
from .verdict import left_out, suspects

SAMPLES = 48  # KLs at which a band is drawn
MEASURED = ("kl", "judge", "reward", "ppl")
LEAST = f"Least KL for {TARGET:.0f}%\u00a0↓ (nats)"


def curve_data(group: StudyGroup, data: dict[str, Any]) -> dict[str, Any]:
    """The data of the figures of curves, from that of the other figures of the group, in the order of its methods."""
    rows = {reading.name: reading for reading in group.readings.rows}
    looks = [{key: method[key] for key in ("family", "colour", "marker")} for method in data["methods"]]
    base = {key: data["base"][key]["value"] if data["base"] else None for key in ("judge", "reward", "ppl")}
    made = [_curve(group, curve, rows[curve.name]) | look for curve, look in zip(group.curves, looks, strict=True)]
    return {"cap": group.readings.cap or 1.0, "base_point": base, "curves": made}


def _curve(group: StudyGroup, curve: Curve, reading: Reading) -> dict[str, Any]:
    bands = {score: _band(line, 1.1 * (reading.cap or inf), *onto) for score, line, onto in _gains(group, reading)}
    return {
        "name": shorten(curve.name), "knob": plain(curve.knob or ""), "points": [_point(group, curve, p) for p in curve.points],
        "bands": bands,
    }  # fmt: skip


def _gains(group: StudyGroup, reading: Reading) -> Iterator[tuple[str, Line, tuple[float, float]]]:
    """Judge and reward as the base's score plus a factor times a gain over it, whose error has the base's prompts paired."""
    base = group.readings.base
    if "removed" in reading.lines:
        yield "judge", reading.lines["removed"], (base["judge"], (1 - base["judge"]) / 100)
    if "gain" in reading.lines:
        yield "reward", reading.lines["gain"], (base["reward"], 1.0)


def _band(line: Line, reach: float, base: float, factor: float) -> dict[str, list[float]]:
    """A line with its band at its points and between them, closer near KL 0, as the axis is a root's."""
    end = min(line.reach, reach)
    at = np.unique([*np.linspace(0, end**0.5, SAMPLES) ** 2, *(kl for kl in line.kl if kl <= end)])
    found = [line.at(min(float(kl), line.reach)) for kl in at]
    intervals = [linear.interval() for linear in found if linear is not None]
    mean, low, high = ([base + factor * v for v in ends if v is not None] for ends in zip(*intervals, strict=True))
    whole = len(low) == len(high) == len(at)
    low, high = [max(0.0, v) for v in low], [min(1.0, v) for v in high]
    return {"kl": at.tolist(), "mean": mean, "low": low if whole else [], "high": high if whole else []}


def _point(group: StudyGroup, curve: Curve, point: Point) -> dict[str, Any]:
    found = {key: group.estimate(point.entry, BY_KEY[key]).interval for key in (*MEASURED, "removed")}
    seeds = len({run.manifest.seed for run in counted(point.entry)})
    where = f", {plain(curve.knob)} {_value(point.value)}" if curve.knob else ""
    named = {"kl": "KL", "removed": "removed", "judge": "judge", "reward": "reward", "ppl": "perplexity"}
    ends = ", ".join(f"{word} {_brief(found[key], key)}" for key, word in named.items() if found[key])
    text = f"{curve.name}{where}, {seeds} seed{'' if seeds == 1 else 's'}: {ends}"
    return {"value": _value(point.value), "n": seeds, "text": plain(text)} | {
        key: i.mean if (i := found[key]) is not None else None for key in MEASURED
    }


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else plain(value)


def _brief(interval: Interval | None, key: str) -> str:
    return _text(interval, ".1f" if key == "removed" else ".3f") + ("%" if key == "removed" else "")


def _text(interval: Interval | None, digits: str) -> str:
    """A number with its interval; an open end is ∞."""
    if interval is None:
        return MISSING
    mean, low, high = interval
    if low is None or high is None:
        return number(mean, digits)
    return f"{number(mean, digits)} [{_end(low, digits)}, {_end(high, digits)}]"


def _end(value: float, digits: str) -> str:
    return number(value, digits) if isfinite(value) else "∞" if value > 0 else "−∞"


def first_table(group: StudyGroup) -> Table:
    """One row a method, first those that remove TARGET percent, by the least KL: what it takes, gives and costs."""
    found = group.readings
    shares = [f"Removed at {_at(found, share)}\u00a0↑ (%)" for share in SHARES]
    header = ["Method", LEAST, "More than the first (nats)", "Cost\u00a0↓ (FLOPs a run)", "Time\u00a0↓ (s a run)", *shares,
              "Area\u00a0↑ (share of the frontier's)", "Rank (by area)", "Reaches (KL)", "Knob (values, seeds)"]  # fmt: skip
    timed = group.one_machine
    rows = [_frontier_row(found), *(_row(found, reading, timed) for reading in found.rows)]
    notes = [] if timed else [f"Left out: {MACHINES}."]
    notes += [
        f"{MISSING} where a curve ends before that KL; ∞ where an interval does not end on the curve. "
        "A method that does not get there has the most that it removes instead of a KL."
    ]
    notes += [f"Not ranked: {', '.join(r.name for r in found.rows if r not in found.ways)}, which sees the judge."] * (
        len(found.ways) < len(found.rows)
    )
    alone = [r.name for r in found.ways if r.area is not None and r not in found.ranked]
    notes += [f"Not ranked: {', '.join(alone)}, with one seed so far."] * bool(alone)
    return Table(header, rows, notes)


def _at(found: Readings, share: float) -> str:
    return f"{share * found.cap:.3g} nats" if found.cap else f"{share:g} of the cap"


def _frontier_row(found: Readings) -> list[str]:
    """What the policies that are optimal for the reward do, by the judge."""
    line = found.optimal
    if line is None or not found.cap:
        return ["frontier, judged", *[MISSING] * 11]
    least, at = line.least(TARGET).value, [line.at(share * found.cap) for share in SHARES]
    removed = [MISSING if x is None else number(x.value, ".1f") for x in at]
    return ["frontier, judged", MISSING if least is None else number(least, ".2f"), "", "", "", *removed, "1", *[""] * 3]


def _row(found: Readings, reading: Reading, timed: bool) -> list[str]:
    ranks = found.ranks.get(reading.name)
    removed = [_text(reading.interval("removed", share), ".1f") for share in SHARES]
    area = _text(reading.area.interval(), ".2f") if reading.area else MISSING
    reach = MISSING if reading.reach is None else number(reading.reach, ".2f")
    costs = COSTS if timed else COSTS[:1]
    cost = [number(i.mean, digits) if (i := reading.cost(key)) else MISSING for key, digits in costs]
    cost += [] if timed else [MISSING]
    return [
        reading.name,
        _least(reading),
        _more(found, reading),
        *cost,
        *removed,
        area,
        _ranks(ranks),
        reach,
        _knob(reading.curve),
    ]


COSTS = (("flops", ".2g"), ("seconds", ".3g"))


def _least(reading: Reading) -> str:
    found = reading.least
    if found is None:
        return MISSING
    return _text(found.interval, ".2f") if found.interval else f"{MISSING} (at most {number(found.most, '.0f')}%)"


def _more(found: Readings, reading: Reading) -> str:
    more = found.beyond.get(reading.name)
    if more is None:
        return ""
    told = "" if more.adjusted <= ALPHA else ", not told apart"
    return f"{_signed(more.more)}{told}"


def _signed(d: Difference) -> str:
    ends = f" [{_plus(d.low)}, {_plus(d.high)}]" if d.low is not None and d.high is not None else ""
    return f"{_plus(d.mean)}{ends}"


def _plus(value: float) -> str:
    return number(value, "+.2f")


def _ranks(ranks: tuple[int, int] | None) -> str:
    if ranks is None:
        return MISSING
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]} to {ranks[1]}"


def _knob(curve: Curve) -> str:
    """The knob with its values, and the number of seeds at each."""
    seeds = [len({run.manifest.seed for run in counted(point.entry)}) for point in curve.points]
    if not curve.knob or (len(curve.points) == 1 and curve.points[0].value is None):
        return f"no knob, {count(seeds[0], 'seed')}"
    told = ", ".join([*map(str, seeds[:-1]), count(seeds[-1], "seed")])
    return plain(f"{curve.knob} {', '.join(_value(p.value) for p in curve.points)}; {told}")


def score_table(group: StudyGroup) -> Table:
    """Judge and reward of each method within shares of the KL cap."""
    found = group.readings
    keys = [(score, share) for score in ("judge", "reward") for share in SHARES]
    header = ["Method", *(f"{score.capitalize()} at {_at(found, share)}\u00a0↑ (0 to 1)" for score, share in keys)]
    rows = [[r.name, *(_text(r.interval(score, share), ".3f") for score, share in keys)] for r in found.rows]
    return Table(header, rows, [])


def curve_verdict(group: StudyGroup) -> list[str]:
    """Sentences that answer: which method removes the most at the least drift, by how much, how sure, at what cost."""
    found = group.readings
    there = [r for r in found.ways if r.least and r.least.value is not None]
    if not any(r.reach is not None for r in found.rows):
        return ["No verdict: no run is done, or none measured the share of the undesired score removed.", *left_out(group)]
    timed = group.one_machine
    sentences = [*_first(found, there, timed), *_next(found, there), *_trained(there, timed)]
    sentences += [*_missing(found, there), *_apart(found)]
    return [*sentences, over_optimised(group), *left_out(group), *suspects(group)]


def over_optimised(group: StudyGroup) -> str:
    """A sentence that names the methods whose judge falls while their reward rises along the knob, beyond error."""
    shown = [fall for fall in group.falls if fall.shown]
    how = "as a knob drifts further"
    if not shown:
        return f"No judge score falls beyond error while the reward rises {how}." if group.curves else ""
    names = ", ".join(f"{f.name} ({f.knob} from {_value(f.value)} to {_value(f.weakest)})" for f in shown)
    return f"Over-optimised, the judge falling beyond error while the reward rises {how}: {names}."


def falls_table(group: StudyGroup) -> Table | None:
    """How reward and judge change along the knobs where the reward rises and the judge falls; None if they do nowhere."""
    header = ["Method", "Knob", "Reward (change)", "Judge (change)", "p (of both, Holm)"]
    rows = [
        [f.name, f"{f.knob} {_value(f.value)} to {_value(f.weakest)}", _change(f.reward), _change(f.judge), number(f.p, ".2g")]
        for f in group.falls
    ]
    return Table(header, rows, []) if rows else None


def _change(d: Difference) -> str:
    ends = "" if d.low is None or d.high is None else f" [{number(d.low, '+.3f')}, {number(d.high, '+.3f')}]"
    return f"{number(d.mean, '+.3f')}{ends}"


def _first(found: Readings, there: list[Reading], timed: bool) -> list[str]:
    if not there:
        best = max((r for r in found.ways if r.least), key=lambda r: r.least.most if r.least else 0.0)
        most = number(best.least.most if best.least else 0.0, ".0f")
        return [f"No method removes {TARGET:.0f}% of the habit: {best.name} comes nearest, with {most}% at its best."]
    first = there[0]
    cap = found.cap
    over = f", beyond the task's cap of {cap:g}" if cap and first.least and (first.least.value or 0.0) > cap else ""
    head = f"{first.name} removes {TARGET:.0f}% of the habit at the least drift: a KL of {_nats(first)} from the base{over}"
    return [f"{head}{_optimal_words(found)}; {_cost_words(first, timed)}."]


def _nats(reading: Reading) -> str:
    found = reading.least
    if found is None or found.interval is None:
        return "unknown size"
    mean, low, high = found.interval
    if low is None or high is None:
        return f"{number(mean, '.2f')} nats"
    ends = f"{number(low, '.2f')} to {number(high, '.2f')}" if isfinite(high) else f"{number(low, '.2f')} or more"
    return f"{number(mean, '.2f')} nats (95% interval {ends})"


def _optimal_words(found: Readings) -> str:
    least = found.optimal.least(TARGET).value if found.optimal else None
    if least is None:
        return ""
    return (
        f" (the policies that are optimal for the reward, which is another scorer than the judge, need {number(least, '.2f')})"
    )


def _cost_words(reading: Reading, timed: bool) -> str:
    flops, seconds = (reading.cost(key) for key, _ in COSTS)
    if not flops or not seconds:
        return "its cost was not recorded"
    words = [f"costs {number(flops.mean, '.2g')} FLOPs"] if flops.mean else []
    words += [f"takes {number(seconds.mean, '.0f')} s"] if timed else []
    said = f"a run {' and '.join(words)}"
    return said if flops.mean else f"it trains nothing{f', and {said}' if timed else ''}"


def _next(found: Readings, there: list[Reading]) -> list[str]:
    """The methods that may need as little, and the first one that needs more beyond error."""
    if len(there) < 2:
        return []
    name = there[0].name
    tied = [r for r in there[1:] if r.name not in found.beyond or found.beyond[r.name].adjusted > ALPHA]
    more = [(r.name, found.beyond[r.name].more) for r in there[1:] if r not in tied]
    how = "t tests of the difference, Holm-corrected, at 5%"
    named = ", ".join(f"{r.name} ({number(r.least.value, '.2f')})" for r in tied if r.least and r.least.value is not None)
    sentences = [f"Not told apart from {name} ({how}): {named}."] if tied else []
    if more:
        (who, d), rest = more[0], f"; so do {len(more) - 1} others" if len(more) > 1 else ""
        known = d.low is not None and d.high is not None
        ends = f" (95% interval {number(d.low or 0.0, '.2f')} to {number(d.high or 0.0, '.2f')})" if known else ""
        far = f"{who} needs {number(d.mean, '.2f')} nats more than {name}{ends}{rest}"
        sentences.append(f"More KL beyond error{'' if tied else f' ({how})'}: {far}.")
    return sentences


def _trained(there: list[Reading], timed: bool) -> list[str]:
    """The first method that trains, where the first of all does not."""
    trains = [r for r in there if registry.attribute("method", r.curve.method, "trains") is not False]
    if not trains or trains[0] is there[0]:
        return []
    return [
        f"Of the methods that train, {trains[0].name} needs the least: {_nats(trains[0])}; {_cost_words(trains[0], timed)}."
    ]


def _missing(found: Readings, there: list[Reading]) -> list[str]:
    away = [r for r in found.ways if r not in there and r.least]
    names = ", ".join(f"{r.name} ({number(r.least.most, '.0f')}%)" for r in away if r.least)
    reached = f"{len(there)} of {len(found.ways)} methods remove {TARGET:.0f}% at some value of their knob"
    return [f"{reached}; not so, with the most that they remove: {names}."] if away else [f"{reached}."]


def _apart(found: Readings) -> list[str]:
    told, pairs = found.pairs
    if not pairs:
        return []
    share = f"{100 * told / pairs:.0f}%"
    return [f"Areas under the curves tell {told} of {pairs} pairs of methods apart, {share} (Holm over all pairs, at 5%)."]


def curve_overview(study: Study) -> Table:
    """Methods by groups: the least KL for TARGET percent, and the area."""
    placed = [{r.name: r for r in group.readings.rows} for group in study.shown]
    methods = list(dict.fromkeys(r.name for group in study.shown for r in group.readings.rows))
    rows = [[m, *(_placed(by.get(m)) for by in placed)] for m in methods]
    names = study.headings[: len(study.shown)]
    return Table(["Method", *(f"{name} (least KL for {TARGET:.0f}%; area)" for name in names)], rows, [])


def _placed(reading: Reading | None) -> str:
    if reading is None:
        return "not run"
    area = number(reading.area.value, ".2f") if reading.area else MISSING
    return f"{_least(reading)}; {area}"


def curves_csv(study: Study) -> str:
    """Every number along every curve, unrounded, with its interval."""
    keys = [f"{score}_at_{share:g}" for score in ("removed", "judge", "reward") for share in SHARES]
    names = ["least_kl", *keys, "area", "flops", "seconds"]
    head = ["preset", "task", "group", "method", "knob", "values", "seeds", "reach", "best_rank", "worst_rank"]
    rows: list[list[object]] = [[*head, *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]]
    for i, group in enumerate(study.shown, 1):
        rows += [_csv_row(group, i, reading) for reading in (group.readings.rows if group.curves else [])]
    return to_csv(rows)


def _csv_row(group: StudyGroup, i: int, reading: Reading) -> list[object]:
    curve, ranks = reading.curve, group.readings.ranks.get(reading.name, (None, None))
    seeds = " ".join(str(len({run.manifest.seed for run in counted(p.entry)})) for p in curve.points)
    values = " ".join(_value(p.value) for p in curve.points) if curve.knob else ""
    found = [reading.least.interval if reading.least else None]
    found += [reading.interval(score, share) for score in ("removed", "judge", "reward") for share in SHARES]
    found += [reading.area.interval() if reading.area else None, *(reading.cost(key) for key, _ in COSTS)]
    found[-1] = found[-1] if group.one_machine else None  # seconds
    numbers = [v if v is None or isfinite(v) else None for interval in found for v in (interval or (None, None, None))]
    return [group.preset, group.task, i, reading.name, curve.knob, values, seeds, reading.reach, *ranks, *numbers]
