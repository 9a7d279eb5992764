"""Figures of a report's section, and the tables that belong to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from harness.analysis.columns import BY_KEY, COLLAPSE, Column, final, of_base, own_columns
from harness.analysis.curves.attainment import MOST, attained
from harness.analysis.curves.probes import LEARNING, YARDSTICKS, Probing, apart, apart_families, behind, pairs, returns
from harness.analysis.groups import Entry, counted
from harness.analysis.ranking import Ranked, share_of_area
from harness.analysis.scalars import MOST_RUNS as MOST_TRACED
from harness.analysis.scalars import as_data, shown, traces
from harness.analysis.stats import Z95, Interval
from harness.analysis.study import Study, StudyGroup
from harness.core.text import count
from harness.core.types import Metric
from harness.records.schema import Problem, Run

from .curves import curve_data, curve_overview
from .figures import sheets
from .figures.data import figure_data
from .figures.panels import COMPUTE, JUDGE_KL, JUDGE_PPL, OVER, REWARD_KL, REWARD_PPL
from .figures.probes import LABELS, title_of
from .figures.sheets import Dots, Sheet
from .figures.style import family
from .tables import MOST_COLUMNS, Table, bounded, entry_table, listed, number, run_ids

AREA = Column("area", "Judge area", "share of the frontier's", "up", ".2f", partial(share_of_area, key="judge"))
REWARD_AREA = Column("reward_area", "Reward area", "share of the frontier's", "up", ".2f", partial(share_of_area, key="reward"))
REGRET = Column("regret", "Regret", "reward", "down", ".3f", final("regret"))
OPTIMUM = (BY_KEY["efficiency"], BY_KEY["excess_kl"], REGRET, AREA, REWARD_AREA)


def pictures(whole: StudyGroup, slug: str) -> tuple[dict[str, Sheet], dict[str, Any], list[Problem]]:
    """All sheets of a group by name, their data, and the records whose training scalars cannot be read.

    But for curves they show the middle values of the knobs.
    """
    group = whole.at_middle
    data = figure_data(group)
    made = {}
    if whole.curves:
        data |= curve_data(whole, data)
        made = {"curves": sheets.knobs(data, f"{slug}-curves"), "families": sheets.families(data, f"{slug}-families")}
    made |= {
        "pareto": sheets.curves(data, (JUDGE_KL, REWARD_KL), f"{slug}-pareto"),
        "fluency": sheets.curves(data, (JUDGE_PPL, REWARD_PPL), f"{slug}-fluency"),
        "compute": sheets.curves(data, COMPUTE if group.one_machine else COMPUTE[:-1], f"{slug}-compute"),
        "overoptimisation": sheets.curves(data, (OVER,), f"{slug}-over", columns=1),
    }
    for name, columns in (("optimum", OPTIMUM), ("collapse", COLLAPSE), ("kinds", group.kinds)):
        drawn = [(column, panel) for column in columns if _measured(panel := _dots(group, column))]
        panels = [panel for _, panel in drawn]
        if drawn:
            made[name] = sheets.dots(data["title"], data["methods"], panels, f"{slug}-{name}", columns=min(4, len(panels)))
            data[name] = {c.key: {"base": p.base, "methods": p.values} for c, p in drawn}
    found, _ = group.probings
    data["probes"] = [_probe_data(probing) for probing in found]
    if drawn_probes := [probing for probing in found if len(probing.at) > 1]:
        made["probes"] = sheets.probes(data["title"], drawn_probes, data["methods"], f"{slug}-probes")
    data["attainment"] = attained(data)
    if data["attainment"]:
        made["attainment"] = sheets.bands(data, data["attainment"][:MOST])
    found_traces, unread = traces(group)  # large, so that nothing keeps them
    data["scalars"] = as_data(found_traces)
    if panelled := shown(found_traces):
        colours = {entry.name: m["colour"] for entry, m in zip(group.entries, data["methods"], strict=True)}
        made["training"] = sheets.training(data["title"], panelled, colours)
    return made, data, unread


def omitted(group: StudyGroup, whole: StudyGroup) -> list[str]:
    """What a section leaves out of a group that has too much for a page, a sentence each; `group` is the part it shows."""
    sentences, middle = [], group.at_middle
    n, m = (len(g.curves or g.entries) for g in (group, whole))
    if n < m:
        what = "methods with their other settings" if group.curves else "choices of settings"
        sentences.append(
            f"This section has {n} of {m} {what}: of each method the best first, by this page's own numbers. "
            "Nothing else of this section uses the others, which are in tables/methods.csv and tables/runs.csv."
        )
    drawn = sum(len(middle.drawn(entry)) for entry in middle.entries)
    if drawn < len(middle.runs):
        sentences.append(
            f"Figures draw, and the table of runs lists, {drawn} of {len(middle.runs)} runs: of each method those of the "
            "lowest seeds. Bands of attainment are of these runs; means, intervals and tests are of all. "
            "tables/runs.csv has every run."
        )
    read = sum(len(middle.drawn(entry, MOST_TRACED)) for entry in middle.entries)
    if read < drawn:
        sentences.append(f"Training scalars are those of {read} runs, of each method those of the lowest seeds.")
    if len({run.manifest.seed for run in group.runs}) > MOST_COLUMNS:
        sentences.append("The table of cells counts the seeds in each state; tables/cells.csv has the state of every seed.")
    return sentences


def without_section(study: Study) -> list[str]:
    """The groups that have no section of their own, as a page would be too large, and where their numbers are."""
    rest = list(zip(study.headings, study.groups, strict=True))[len(study.shown) :]
    if not rest:
        return []
    return [
        f"Of {len(study.groups)} groups the {len(study.shown)} with the most runs have a section. The others are in "
        "tables/methods.csv, tables/runs.csv and tables/cells.csv; for a page of them, give harness report their folders:",
        *listed([f"{heading}: {len(group.runs)} run{'' if len(group.runs) == 1 else 's'}" for heading, group in rest]),
    ]


def _probe_data(probing: Probing) -> dict[str, Any]:
    """A probe as plain data."""
    methods = [
        {"method": m.method, "judge": [None if p is None else p._asdict() for p in m.points], "values": m.values}
        for m in probing.methods
    ]
    return {"probe": probing.probe, "settings": probing.settings, "unit": probing.unit, "at": probing.at, "methods": methods}


def probe_table(group: StudyGroup) -> Table | None:
    """One row per method, one column per probe: the judge's number under it; None if nothing was probed."""
    found, _ = group.probings
    if not found:
        return None
    twice = {name for name, n in Counter(probing.probe for probing in found).items() if n > 1}
    columns = [_probe_title(probing, found if probing.probe in twice else []) for probing in found]
    by_method = [{m.method: _probe_value(m.value, returns(probing, m)) for m in probing.methods} for probing in found]
    probed = [entry.name for entry in group.entries if any(entry.name in values for values in by_method)]
    names = [*(name for name in YARDSTICKS if name in probed), *(name for name in probed if name not in YARDSTICKS)]
    rows = [[name, *(values.get(name, "") for values in by_method)] for name in names]
    return Table(["Method", *columns], rows, [])


def _probe_title(probing: Probing, others: Sequence[Probing]) -> str:
    """The title of a column: the probe, how its readings become one number, and the settings in which it differs."""
    of = {"mean": f"mean over {probing.unit}", "worst": "worst"}[probing.number]
    told = [
        f"{key}={value}"
        for key, value in probing.settings.items()
        if any(other.probe == probing.probe and other.settings.get(key) != value for other in others)
    ]
    return f"{title_of(probing)}\u00a0↑ ({', '.join([of, *told])})"


def _probe_value(value: Interval | None, back: float | None) -> str:
    """The number with its interval, and the share of the way back to the base policy where that is known."""
    if value is None:
        return ""
    ends = "" if value.low is None or value.high is None else f" [{number(value.low, '.2f')}, {number(value.high, '.2f')}]"
    share = "" if back is None else f" ({number(100 * back, '.0f')}%)"
    return f"{number(value.mean, '.2f')}{ends}{share}"


WHAT_IT_IS = {
    "base": "base has unlearned nothing",
    "oracle": "oracle was trained as the base policy was, on its corpus without the habit",
}


def yardstick_words(group: StudyGroup) -> str:
    """What the two reference rows of the table are, of those that are in it; empty if neither is."""
    there = {m.method for probing in group.probings[0] for m in probing.methods}
    known = [WHAT_IT_IS[name] for name in YARDSTICKS if name in there]
    shared = any(returns(probing, m) is not None for probing in group.probings[0] for m in probing.methods)
    back = ". In brackets: the share of the way back, from the oracle's number (0%) to the base policy's (100%)" * shared
    return f"Yardsticks: {'; '.join(known)}{back}." if known else ""


def probe_words(group: StudyGroup) -> list[str]:
    """What each probe tells beyond error, a paragraph a probe."""
    said = []
    for probing in group.probings[0]:
        whose = f"Its numbers are {LABELS[probing.probe]}, not scores of the judge." if probing.probe in LABELS else ""
        learning = learning_words(probing) if probing.probe == LEARNING else ""
        if words := " ".join(filter(None, [whose, learning, _pair_words(probing)])):
            said.append(f"{title_of(probing)}: {words}")
    return said


def learning_words(probing: Probing) -> str:
    """Which methods fall below the oracle while they learn from text with the habit, and whether families differ in it."""
    shown, tied = behind(probing)
    below = ", ".join(f"{name} by {number(-test.mean, '.2f')}" for name, test in shown)
    said = [_level(probing)]
    said += [f"Beyond error, by t tests over seeds, Holm-corrected, these do: {below}."] if below else []
    said += [f"Not told apart from it: {', '.join(tied)}."] if tied else []
    return " ".join(filter(None, [*said, _family_words(probing)]))


def _level(probing: Probing) -> str:
    """How high the oracle, the base policy and the best of the methods stand; empty without an oracle."""
    means = {m.method: m.value.mean for m in probing.methods if m.value is not None}
    others = {name: mean for name, mean in means.items() if name not in YARDSTICKS}
    if "oracle" not in means or not others:
        return ""
    best = max(others, key=lambda name: others[name])
    below = sum(mean < means["oracle"] for mean in others.values())
    base = f", the base policy's {means['base']:.2f}" if "base" in means else ""
    return (
        f"Over the updates the oracle's judge is {means['oracle']:.2f} on average{base}. {below} of "
        f"{count(len(others), 'method')} fall below the oracle; the best is {best} with {others[best]:.2f}."
    )


def _pair_words(probing: Probing) -> str:
    n, shown = pairs(probing), apart(probing)
    if not n:
        return ""
    most = f"; the largest difference is {abs(shown[0][2].mean):.2f}, between {shown[0][0]} and {shown[0][1]}" if shown else ""
    return f"{len(shown)} of {n} pairs of methods are told apart{most}."


def _family_words(probing: Probing) -> str:
    """Whether families of methods are told apart beyond error; empty if no two can be compared."""
    shown, n = apart_families(probing, family)
    if not n:
        return ""
    named = ", ".join(f"{a} from {b} by {number(test.mean, '+.2f')}" for a, b, test in shown)
    none = f"None of {count(n, 'pair')} of families is told apart (t tests over their methods)."
    return f"Families are told apart (t tests over their methods): {named}." if shown else none


def optimum_table(group: StudyGroup) -> Table:
    """Distance of each method to the optimum, and its set of ranks by the share of undesired score removed."""
    table = entry_table(group, OPTIMUM)
    ranks = {r.entry.name: _ranks(r) for r in group.ranks}
    rows = [[row[0], row[1], ranks.get(row[0], "" if row[1] == "" else "not ranked"), *row[2:]] for row in table.rows]
    return Table([*table.header[:2], "Rank (by removed)", *table.header[2:]], rows, table.notes)


def collapse_table(group: StudyGroup) -> Table:
    return entry_table(group, COLLAPSE)


def own_table(group: StudyGroup) -> Table | None:
    """The metrics that only this task has; None for a task without any."""
    columns = own_columns(group)
    return entry_table(group, columns) if columns else None


def kinds_table(group: StudyGroup) -> Table | None:
    """Undesired score by kind of prompt; None if all prompts are of one kind."""
    return entry_table(group, group.kinds) if group.kinds else None


def time_table(group: StudyGroup) -> Table | None:
    """Mean seconds by activity of each method's runs with --profile; None if there is none."""
    timed = {entry.name: found for entry in group.entries if (found := [p for run in counted(entry) if (p := _profile(run))])}
    activities = list(dict.fromkeys(name for found in timed.values() for profile in found for name in profile))
    rows = [
        [name, str(len(found)), *(number(fmean(p.get(a, 0.0) for p in found), ".1f") for a in activities)]
        for name, found in timed.items()
    ]
    return Table(["Method", "Runs", *(f"{a}, s" for a in activities)], rows, []) if rows else None


def _profile(run: Run) -> dict[str, float] | None:
    return run.summary.profile if run.summary is not None else None


def overview(study: Study) -> Table:
    """Methods by groups: percent of the undesired score removed, and the set of ranks; of curves the least KL and the area."""
    if all(group.curves for group in study.shown):
        return curve_overview(study)
    placed = [{r.entry.name: r for r in group.at_middle.ranks} for group in study.shown]
    here = [{entry.name for entry in group.at_middle.entries} for group in study.shown]
    methods = sorted(set().union(*here))
    rows = [[m, *(_placed(by.get(m), m in known) for by, known in zip(placed, here, strict=True))] for m in methods]
    names = study.headings[: len(study.shown)]
    return Table(["Method", *(f"{name} (% removed)" for name in names)], rows, [])


def overview_caption(study: Study) -> str:
    """What the numbers of the overview are."""
    if study.shown and all(group.curves for group in study.shown):
        return "Least KL in nats that removes 80% of the habit, with its 95% interval; area as a share of the frontier's"
    return "Percent of the base policy's undesired score removed, with the set of ranks and n seeds"


def _placed(ranked: Ranked | None, known: bool) -> str:
    if ranked is None:
        return "not ranked" if known else "not run"
    return f"{number(ranked.removed.mean, '.0f')} [rank {_ranks(ranked)}, n = {ranked.n}]"


def _ranks(ranked: Ranked) -> str:
    best, worst = ranked.ranks
    return str(best) if best == worst else f"{best} to {worst}"


def _dots(group: StudyGroup, column: Column) -> Dots:
    base = next((of_base(run, column) for run in group.runs if run.summary), None)
    values = [_value(group, entry, column) for entry in group.entries]
    return Dots(column.title, f"{column.unit}{_better(column)}", values, base.value if base else None)


def _measured(panel: Dots) -> bool:
    return any(v["value"] is not None for v in panel.values)


def _better(column: Column) -> str:
    return {"up": ", right is better", "down": ", left is better", "": ""}[column.better]


def _value(group: StudyGroup, entry: Entry, column: Column) -> dict[str, Any]:
    """A mean with its interval over seeds, or over prompts for one seed."""
    found = group.estimate(entry, column)
    if found.interval is None:
        return {"value": None, "low": None, "high": None, "n": 0, "text": "; ".join(found.reasons)}
    mean, low, high = found.interval
    if low is None or high is None:
        low, high = _over_prompts(entry, column.of, mean)
    value = bounded(f"{mean:.4g}", column.key, found.bounds)
    seeds = f"{found.n} seed{'' if found.n == 1 else 's'}"
    text = f"{entry.name}: {value} [{low:.4g}, {high:.4g}], {seeds}; runs {run_ids(entry)}"
    return {"value": mean, "low": low, "high": high, "n": found.n, "text": text}


def _over_prompts(entry: Entry, of: Callable[[Run], Metric], mean: float) -> tuple[float, float]:
    errors = [m.stderr for run in counted(entry) if (m := of(run)).value is not None]
    half = Z95 * (errors[0] or 0.0) if errors else 0.0
    return mean - half, mean + half
