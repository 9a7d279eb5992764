"""Figures of a report's section, and the tables that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.analysis.attainment import MOST, attained
from harness.analysis.columns import COLLAPSE, COLUMNS, Column, final, kind_columns, of_base
from harness.analysis.groups import Entry, Group, counted, estimate
from harness.analysis.ranking import Ranked, ranking, share_of_hypervolume
from harness.analysis.scalars import Trace, as_data, shown
from harness.analysis.stats import Z95
from harness.core.types import Metric
from harness.records.schema import Run

from .figures import sheets
from .figures.data import figure_data
from .figures.panels import COMPUTE, JUDGE_KL, JUDGE_PPL, OVER, REWARD_KL, REWARD_PPL
from .figures.sheets import Dots, Sheet
from .tables import Table, entry_table, number, run_ids

HYPERVOLUME = Column("hypervolume", "Hypervolume", "share of the frontier's", "up", ".2f", share_of_hypervolume)
REGRET = Column("regret", "Regret", "reward", "down", ".3f", final("regret"))
OPTIMUM = (*(c for c in COLUMNS if c.key in ("efficiency", "excess_kl")), REGRET, HYPERVOLUME)


def pictures(group: Group, slug: str, yielded: Sequence[Trace] = ()) -> tuple[dict[str, Sheet], dict[str, Any]]:
    """All sheets of a group by name, and their data; `yielded` are the scalars of its methods."""
    data = figure_data(group)
    made = {
        "pareto": sheets.curves(data, (JUDGE_KL, REWARD_KL), f"{slug}-pareto"),
        "fluency": sheets.curves(data, (JUDGE_PPL, REWARD_PPL), f"{slug}-fluency"),
        "compute": sheets.curves(data, COMPUTE, f"{slug}-compute"),
        "overoptimisation": sheets.curves(data, (OVER,), f"{slug}-over", columns=1),
    }
    for name, columns in (("optimum", OPTIMUM), ("collapse", COLLAPSE), ("kinds", kind_columns(group))):
        drawn = [(column, panel) for column in columns if _measured(panel := _dots(group, column))]
        panels = [panel for _, panel in drawn]
        if drawn:
            made[name] = sheets.dots(data["title"], data["methods"], panels, f"{slug}-{name}", columns=min(4, len(panels)))
            data[name] = {c.key: {"base": p.base, "methods": p.values} for c, p in drawn}
    data["attainment"] = attained(data)
    if data["attainment"]:
        made["attainment"] = sheets.bands(data, data["attainment"][:MOST])
    data["scalars"] = as_data(list(yielded))
    if panelled := shown(list(yielded)):
        colours = {entry.name: m["colour"] for entry, m in zip(group.entries, data["methods"], strict=True)}
        made["training"] = sheets.training(data["title"], panelled, colours)
    return made, data


def optimum_table(group: Group) -> Table:
    """Distance of each method to the optimum, and its set of ranks by the share of undesired score removed."""
    table = entry_table(group, OPTIMUM)
    ranks = {r.entry.name: _ranks(r) for r in ranking(group)}
    rows = [[row[0], row[1], ranks.get(row[0], "" if row[1] == "" else "not ranked"), *row[2:]] for row in table.rows]
    return Table([*table.header[:2], "Rank (by removed)", *table.header[2:]], rows, table.notes)


def collapse_table(group: Group) -> Table:
    return entry_table(group, COLLAPSE)


def kinds_table(group: Group) -> Table | None:
    """Undesired score by kind of prompt; None if all prompts are of one kind."""
    columns = kind_columns(group)
    return entry_table(group, columns) if columns else None


def overview(found: list[Group], names: list[str]) -> Table:
    """Methods by groups: percent of the undesired score removed, and the set of ranks; `names` are those of the groups."""
    placed = [{r.entry.name: r for r in ranking(group)} for group in found]
    here = [{entry.name for entry in group.entries} for group in found]
    methods = sorted(set().union(*here))
    rows = [[m, *(_placed(by.get(m), m in known) for by, known in zip(placed, here, strict=True))] for m in methods]
    return Table(["Method", *(f"{name} (% removed)" for name in names)], rows, [])


def _placed(ranked: Ranked | None, known: bool) -> str:
    if ranked is None:
        return "not ranked" if known else "not run"
    return f"{number(ranked.removed.mean, '.0f')} [rank {_ranks(ranked)}, n = {ranked.n}]"


def _ranks(ranked: Ranked) -> str:
    best, worst = ranked.ranks
    return str(best) if best == worst else f"{best} to {worst}"


def _dots(group: Group, column: Column) -> Dots:
    base = next((of_base(run, column) for run in group.runs if run.summary), None)
    values = [_value(entry, column) for entry in group.entries]
    return Dots(column.title, f"{column.unit}{_better(column)}", values, base.value if base else None)


def _measured(panel: Dots) -> bool:
    return any(v["value"] is not None for v in panel.values)


def _better(column: Column) -> str:
    return {"up": ", right is better", "down": ", left is better", "": ""}[column.better]


def _value(entry: Entry, column: Column) -> dict[str, Any]:
    """A mean with its interval over seeds, or over prompts for one seed."""
    found = estimate(entry, column.of, column.key)
    if found.interval is None:
        return {"value": None, "low": None, "high": None, "n": 0, "text": "; ".join(found.reasons)}
    mean, low, high = found.interval
    if low is None or high is None:
        low, high = _over_prompts(entry, column.of, mean)
    text = (
        f"{entry.name}: {mean:.4g} [{low:.4g}, {high:.4g}], {found.n} seed{'' if found.n == 1 else 's'}; runs {run_ids(entry)}"
    )
    return {"value": mean, "low": low, "high": high, "n": found.n, "text": text}


def _over_prompts(entry: Entry, of: Callable[[Run], Metric], mean: float) -> tuple[float, float]:
    errors = [m.stderr for run in counted(entry) if (m := of(run)).value is not None]
    half = Z95 * (errors[0] or 0.0) if errors else 0.0
    return mean - half, mean + half
