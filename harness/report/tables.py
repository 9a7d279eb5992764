"""Tables of a report, one row per method or per run, as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from harness.analysis.cells import STATES, Cell, counts
from harness.analysis.columns import COLUMNS, Column, bound_sign, of_base, title
from harness.analysis.groups import Entry, Estimate, Group, counted, measure
from harness.analysis.stats import Z95
from harness.analysis.study import Study, StudyGroup
from harness.core.text import plain
from harness.core.types import Metric
from harness.records.schema import Run

MISSING = "–"
ROUNDING = 1e-12


class Table(NamedTuple):
    """A table of text: header, rows that begin with a name, and footnotes."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


MOST_RUNS = 5  # run ids per row; all are in tables/runs.csv
MOST_COLUMNS = 50  # seeds of a group that have a column of states each
MOST_LISTED = 500  # lines of a list


def method_table(group: StudyGroup) -> Table:
    """One row per method, below the base policy's: means over seeds with 95% intervals."""
    return entry_table(group, COLUMNS)


def entry_table(group: StudyGroup, columns: Sequence[Column]) -> Table:
    """One row per entry for the given columns, below the base policy's; the last column lists the runs of the row."""
    notes: list[str] = []
    rows = [_base_row(group, columns, notes)] if group.reference else []
    for entry in group.entries:
        cells = [interval(group.estimate(entry, c), c, notes) for c in columns]
        rows.append([entry.name, str(len({r.manifest.seed for r in counted(entry)})), *cells, run_ids(entry)])
    return Table(["Method", "Seeds", *map(title, columns), "Runs"], rows, notes)


def run_ids(entry: Entry) -> str:
    """The ids of the runs that enter an entry's means, MOST_RUNS at most."""
    ids = [plain(run.manifest.run_id) for run in counted(entry)]
    more = f" and {len(ids) - MOST_RUNS} more" if len(ids) > MOST_RUNS else ""
    return ", ".join(ids[:MOST_RUNS]) + more


def listed(lines: list[str]) -> list[str]:
    """The lines of a list, of many the first, and how many more there are."""
    return lines if len(lines) <= MOST_LISTED else [*lines[:MOST_LISTED], f"and {len(lines) - MOST_LISTED} more"]


def run_table(group: Group) -> Table:
    """One row per run: value ± half of its 95% interval over prompts; of many runs those that are drawn."""
    notes: list[str] = []
    rows = []
    for entry in group.entries:
        for run in group.drawn(entry):
            m = run.manifest
            cells = [_single(c.of(run), c, notes) for c in COLUMNS]
            rows.append([entry.name, str(m.seed), m.status, plain(m.run_id), *cells])
    return Table(["Method", "Seed", "State", "Run", *map(title, COLUMNS)], rows, notes)


def cell_matrix(group: Group, cells: list[Cell]) -> Table:
    """States by method and seed; a cell that was not run is shown as missing. Of many seeds, how many are in each state."""
    seeds = sorted({run.manifest.seed for run in group.runs})
    if len(seeds) > MOST_COLUMNS:
        return _state_counts(cells)
    rows = []
    for cell in cells:
        ids = _by_seed(cell)
        rows.append([cell.name, *(_state(cell, seed, len(ids[seed])) for seed in seeds)])
    return Table(["Method", *(f"seed {seed}" for seed in seeds)], rows, [])


def cells_csv(cells: list[Cell]) -> str:
    """The state of every cell as CSV, one row per seed, with the reason if it is not done."""
    rows: list[list[object]] = [["preset", "task", "group", "method", "seed", "state", "runs", "why"]]
    for c in cells:
        ids = _by_seed(c)
        for seed, state in c.seeds.items():
            rows.append([c.preset, c.task, c.group + 1, c.name, seed, state, " ".join(ids[seed]), c.reasons.get(seed, "")])
    return to_csv(rows)


def methods_csv(study: Study) -> str:
    """The methods of all groups as CSV with unrounded numbers; the last column gives the reasons for empty cells and bounds."""
    keys = [f"{c.key}{end}" for c in COLUMNS for end in ("", "_low", "_high", "_n")]
    rows: list[list[object]] = [["preset", "task", "group", "method", "seeds", *keys, "missing"]]
    for i, group in enumerate(study.groups, 1):
        for entry in group.entries:
            all_of = [group.estimate(entry, c) for c in COLUMNS]
            numbers = [v for e in all_of for v in (*(e.interval or (None, None, None)), e.n)]
            missing = "; ".join(
                f"{c.key}: {why}" for c, e in zip(COLUMNS, all_of, strict=True) for why in (*e.reasons, *e.bounds)
            )
            rows.append([group.preset, group.task, i, entry.name, len(counted(entry)), *numbers, missing])
    return to_csv(rows)


def runs_csv(study: Study) -> str:
    """All runs as CSV with all recorded metrics and their standard errors over prompts, metrics of COLUMNS first."""
    known = [f"{c.key}{end}" for c in COLUMNS for end in ("", "_stderr")]
    more = sorted({k for run in study.runs if run.summary for k in run.summary.final} - {c.key for c in COLUMNS})
    head = ["preset", "task", "group", "method", "seed", "status", "run_id"]
    rows: list[list[object]] = [[*head, *known, *(f"{key}{end}" for key in more for end in ("", "_stderr")), "missing"]]
    for i, group in enumerate(study.groups, 1):
        rows += [_run_row(group, i, entry, run, more) for entry in group.entries for run in entry.runs]
    return to_csv(rows)


def _run_row(group: Group, i: int, entry: Entry, run: Run, more: list[str]) -> list[object]:
    m, all_of = run.manifest, [(c.key, c.of(run)) for c in COLUMNS] + [(key, measure(run, key)) for key in more]
    numbers = [v for _, found in all_of for v in (found.value, found.stderr)]
    missing = "; ".join(f"{key}: {v.reason}" for key, v in all_of if v.reason and v.reason != "not recorded")
    return [group.preset, group.task, i, entry.name, m.seed, m.status, m.run_id, *numbers, missing]


def markdown(table: Table) -> str:
    """A table as Markdown with its footnotes, its cells escaped."""
    lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
    cells = [[text if i == 1 else escape_markdown(text) for text in row] for i, row in enumerate(lines)]
    notes = "".join(f"\n{escape_markdown(note)}  " for note in table.notes)
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n" + notes


def escape_markdown(text: object) -> str:
    """Escape text for one line of Markdown, without markup or HTML."""
    return re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", escape(plain(text), quote=False))


def number(value: float, digits: str) -> str:
    """Format a number with a true minus sign and without negative zero."""
    text = format(value, digits).replace("e+", "e")
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _base_row(group: Group, columns: Sequence[Column], notes: list[str]) -> list[str]:
    run = next(run for run in group.runs if run.summary)
    found = [(column, of_base(run, column)) for column in columns]
    return ["base (untrained)", "", *(_single(base, c, notes) if base else "" for c, base in found), ""]


def interval(found: Estimate, column: Column, notes: list[str]) -> str:
    """Format a mean with its interval; reasons for missing values are added to the notes."""
    mark = "".join(_mark(f"{column.title}: {reason}", notes) for reason in _grouped(found.reasons))
    if found.interval is None:
        return MISSING + mark
    mean, low, high = found.interval
    text = bounded(number(mean, column.digits), column.key, found.bounds)
    mark += "".join(_mark(f"{column.title}: {reason}", notes) for reason in _grouped(found.bounds))
    if low is None or high is None or column.key in ("flops", "sampled_tokens", "own_documents", "seconds"):
        return text + mark
    if high - low <= ROUNDING:  # a method without training: [x, x] would suggest certainty
        return text + _mark("identical across seeds: no interval over seeds", notes) + mark
    return f"{text} [{number(low, column.digits)}, {number(high, column.digits)}]{mark}"


def _single(found: Metric, column: Column, notes: list[str]) -> str:
    if found.value is None:
        return MISSING + _mark(f"{column.title}: {found.reason}", notes)
    text = bounded(number(found.value, column.digits), column.key, (found.reason,) if found.reason else ())
    mark = _mark(f"{column.title}: {found.reason}", notes) if found.reason else ""
    return text + mark if found.stderr is None else f"{text} ± {number(Z95 * found.stderr, column.digits)}{mark}"


def bounded(text: str, key: str, reasons: Sequence[str]) -> str:
    """A number as text, with ≤ or ≥ before it if it is a bound."""
    sign = bound_sign(key, reasons)
    return f"{sign} {text}" if sign else text


def _grouped(reasons: Sequence[str]) -> list[str]:
    """Group reasons of seeds ("seed 3: why") by reason; more than three seeds are given as a number."""
    seeds: dict[str, list[str]] = {}
    for reason in reasons:
        seed, found, why = reason.partition(": ")
        seeds.setdefault(why if found else reason, []).append(seed if found else "")
    return [_together(why, named) for why, named in seeds.items()]


def _together(why: str, named: list[str]) -> str:
    if named == [""]:
        return why
    return f"{', '.join(named)}: {why}" if len(named) <= 3 else f"{len(named)} seeds: {why}"


def _mark(reason: str, notes: list[str]) -> str:
    """The superscript of a reason, which is added to the notes if it is new."""
    text = plain(reason)
    note = next((n for n in notes if n.split(" ", 1)[1] == text), None)
    if note is None:
        note = f"{str(len(notes) + 1).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))} {text}"
        notes.append(note)
    return " " + note.split(" ", 1)[0]


def _state_counts(cells: list[Cell]) -> Table:
    """The number of seeds of each cell in each state that some cell has."""
    found = [counts(cell) for cell in cells]
    states = [state for state in STATES if any(state in of for of in found)]
    rows = [[c.name, c.state, *(str(of.get(s, 0)) for s in states)] for c, of in zip(cells, found, strict=True)]
    return Table(["Method", "State", *(f"{state} (seeds)" for state in states)], rows, [])


def _by_seed(cell: Cell) -> dict[int, list[str]]:
    """The ids of a cell's runs by seed."""
    found: dict[int, list[str]] = defaultdict(list)
    for run in cell.runs:
        found[run.manifest.seed].append(run.manifest.run_id)
    return found


def _state(cell: Cell, seed: int, records: int) -> str:
    """The state of a seed, with the number of its records if there are several."""
    state = cell.seeds.get(seed, "not asked for")
    return f"{state}, {records} records" if records > 1 else state


def to_csv(rows: Iterable[list[object]]) -> str:
    """Rows as CSV, with text protected against being read as a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_field(value) for value in row] for row in rows)
    return out.getvalue()


def _field(value: object) -> object:
    """Quote text that a spreadsheet would read as a formula."""
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value[:1] in set("=+-@") else plain(value)
