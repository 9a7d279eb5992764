"""Build the folder of a report: one self-contained page, the same as Markdown, and tables and figures with their data.

The output depends on the records alone (no clock, absolute path or random name), so equal records give equal bytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.analysis.cells import Cell
from harness.analysis.columns import BY_KEY
from harness.analysis.curves.attainment import MOST
from harness.analysis.groups import WORLD, Entry, Group
from harness.analysis.study import Study, StudyGroup
from harness.core.errors import EmptySelection
from harness.core.files import replace, writable, writing
from harness.core.hashing import canonical
from harness.core.text import plain
from harness.records.schema import Problem, Run

from . import tables
from .browser import entries_without, samples
from .cards import method_cards, scorer_cards, task_card
from .curves import curve_verdict, curves_csv, falls_table, first_table, over_optimised, score_table
from .figures import data as figures_data
from .figures.style import GLYPHS
from .sections import (
    collapse_table,
    kinds_table,
    omitted,
    optimum_table,
    overview,
    overview_caption,
    own_table,
    pictures,
    probe_table,
    probe_words,
    time_table,
    without_section,
    yardstick_words,
)  # fmt: skip
from .tables import MOST_LISTED
from .verdict import impossible, unscored, verdict

MOST_SEEDS = 8  # of a cell that are named one by one
MOST_NAMED = 1000  # records in the command that builds the page again
MOST_RECORDS = 2000  # of a group under Provenance
SCRIPT = resources("harness.report").joinpath("templates/page.js").read_text(encoding="utf-8")


class BuildResult(NamedTuple):
    """The files written, all problems with records (given or found in the metrics), and the cells that are not done."""

    files: list[Path]
    problems: list[Problem]
    impossible: list[Problem]
    unfinished: list[str]

    @property
    def exit_code(self) -> int:
        """5 if a run lies above the frontier, 4 if a record is missing, unreadable or degraded, else 0."""
        return 5 if self.impossible else 4 if self.problems or self.unfinished else 0


def build(study: Study, out: Path) -> BuildResult:
    """Write the report of a study; raises EmptySelection without a run, Unwritable for the folder, CannotWrite for a file."""
    cannot_be = sorted(p for group in study.groups for p in impossible(group))
    problems = sorted({*study.problems, *cannot_be})
    if not study.runs:
        why = f"; {len(problems)} could not be read, first {_problem_text(problems[0])}" if problems else ""
        raise EmptySelection(f"no run to report on{why}")
    names = _places([run.dir for run in study.runs] + [p.path for p in problems])
    by_group: list[list[Cell]] = [[] for _ in study.groups]
    for cell in study.cells:
        by_group[cell.group].append(cell)
    slugs, several = _slugs(study.groups), len(study.groups) > 1
    parts = [
        _section(group, study.groups[i], slugs[i], study.headings[i], names, by_group[i]) for i, group in enumerate(study.shown)
    ]
    problems = sorted({*problems, *(p for part in parts for p in part["unread"])})
    headed = zip(study.headings, by_group, strict=True)
    unfinished = [f"{heading}: " * several + state for heading, found in headed for cell in found for state in _states(cell)]
    page: dict[str, Any] = {
        "title": _title(study.groups),
        "overview": overview(study) if several else None,
        "overview_caption": overview_caption(study),
        "sections": parts,
        "without": without_section(study),
        "problems": [{"path": names[p.path], "what": plain(p.what)} for p in problems[:MOST_LISTED]],
        "unfinished": unfinished[:MOST_LISTED],
        "n_problems": len(problems),
        "n_unfinished": len(unfinished),
        "runs_wanted": sum(len(cell.seeds) for cell in study.cells),
        "runs_lacking": sum(state != "done" for cell in study.cells for state in cell.seeds.values()),
        "command": _command([names[run.dir] for run in study.runs], [names[p.path] for p in problems]),
        "folders": len(study.runs) > MOST_NAMED,
        "script": Markup(SCRIPT),
        "script_hash": b64encode(sha256(SCRIPT.encode()).digest()).decode(),
    }
    files = {
        "index.html": _html().get_template("report.html.j2").render(page).encode("utf-8", "replace"),
        "report.md": _markdown().get_template("report.md.j2").render(page).encode("utf-8", "replace"),
        "tables/methods.csv": tables.methods_csv(study).encode("utf-8", "replace"),
        "tables/runs.csv": tables.runs_csv(study).encode("utf-8", "replace"),
        "tables/cells.csv": tables.cells_csv(study.cells).encode("utf-8", "replace"),
        **({"tables/curves.csv": curves_csv(study).encode("utf-8", "replace")} if any(g.curves for g in study.shown) else {}),
        **({"tables/problems.csv": _problems_csv(problems, names)} if len(problems) > MOST_LISTED else {}),
        **{name: content for part in parts for name, content in part["files"].items()},
    }
    return BuildResult(_write(Path(out), files), problems, cannot_be, unfinished)


def _section(
    whole: StudyGroup, every: StudyGroup, slug: str, heading: str, names: dict[Path, str], cells: list[Cell]
) -> dict[str, Any]:
    """The values that the templates show of a group, or of a part of `every` group, and the files of its figures.

    Of a group with curves all but the curves is of each method at the middle value of its knob.
    """
    group = whole.at_middle
    responses, unread = samples(group)
    sheets, data, untraced = pictures(whole, slug)
    here = {entry.name for entry in whole.entries}
    listed = whole.runs if len(whole.runs) <= MOST_RECORDS else [run for e in whole.entries for run in whole.drawn(e)]
    as_json = (json.dumps(rounded(data), separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n").encode()
    shown = {
        "optimum": optimum_table(group), "collapse": collapse_table(group), "kinds": kinds_table(group),
        "time": time_table(group), "curves": first_table(whole) if whole.curves else None,
        "scores": score_table(whole) if whole.curves else None, "falls": falls_table(whole), "probes": probe_table(group),
        "own": own_table(group),
    }  # fmt: skip
    return {
        "slug": slug,
        "heading": heading,
        "verdict": [plain(sentence) for sentence in (curve_verdict(whole) if whole.curves else verdict(group))],
        "curves": bool(whole.curves),
        "falls": plain(over_optimised(whole)),
        "probed": [plain(words) for words in probe_words(group)],
        "yardsticks": plain(yardstick_words(group)),
        "omitted": omitted(whole, every),
        "cells": tables.cell_matrix(whole, [c for c in cells if whole is every or c.name in here]),
        "unread": [*unread, *untraced, *group.probings[1]],
        "unscored": tables.listed(unscored(whole)),
        "methods": tables.method_table(group),
        "runs": tables.run_table(group),
        "tables": shown,
        "figures": {
            name: {"file": f"figures/{name}-{slug}", "panels": list(map(Markup, s.panels))} for name, s in sheets.items()
        },
        "most_attained": MOST,
        "legend": [_legend(method, entry) for method, entry in zip(data["methods"], group.entries, strict=True)],
        "families": _families(data["methods"]),
        "data": f"figures/data-{slug}.json",
        "json": _data_uri("application/json", as_json),
        "alt": _alt(group),
        "samples": Markup(_inert(responses)) if responses else None,
        "kinds": sorted({prompt["kind"] for prompt in responses["prompts"]}) if responses else [],
        "without_samples": entries_without(group, responses),
        "task": task_card(group),
        "cards": method_cards(group),
        "scorers": scorer_cards(group),
        "world": _world(whole),
        "provenance": [_provenance(run, names[run.dir]) for run in listed],
        "n_records": len(whole.runs),
        "files": {
            f"figures/data-{slug}.json": as_json,
            **{f"tables/{name}-{slug}.csv": _table_csv(table) for name, table in shown.items() if table},
            **{f"figures/{name}-{slug}.svg": sheet.svg for name, sheet in sheets.items()},
            **{f"figures/{name}-{slug}.png": sheet.png for name, sheet in sheets.items()},
        },
    }


def _legend(method: dict[str, Any], entry: Entry) -> dict[str, Any]:
    shown = {key: method[key] for key in ("name", "colour")}
    return {**shown, "glyph": GLYPHS[method["marker"]], "seeds": figures_data.seeds(entry)}


def _families(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The families of methods in the order of their first member, with the places of their members in the legend."""
    names = dict.fromkeys(method["family"] for method in methods)
    return [{"name": name, "members": [i for i, m in enumerate(methods) if m["family"] == name]} for name in names]


def rounded(value: Any) -> Any:
    """Round the numbers in plain data to six digits: a figure shows three, and more would enlarge the page."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def _inert(value: Any) -> str:
    """JSON that cannot close the HTML element that contains it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _table_csv(table: tables.Table) -> bytes:
    header = [title.replace("\u00a0", " ") for title in table.header]
    rows = [header, *table.rows, *([note] for note in table.notes)]
    return tables.to_csv(list(row) for row in rows).encode("utf-8", "replace")


def _title(groups: Iterable[Group]) -> str:
    tasks = sorted({plain(group.task) for group in groups})
    return "Unlearning " + ", ".join(tasks)


def _slugs(groups: Iterable[Group]) -> list[str]:
    """One file name per group, numbered if groups share preset and task."""
    plain_names = [re.sub(r"[^a-z0-9]+", "-", f"{g.preset}-{g.task}".lower()).strip("-")[:60] or "runs" for g in groups]
    seen: Counter[str] = Counter()
    same, slugs = Counter(plain_names), []
    for name in plain_names:
        seen[name] += 1
        slugs.append(f"{name}-{seen[name]}" if same[name] > 1 else name)
    return slugs


def _states(cell: Cell) -> list[str]:
    """The reasons why seeds of a cell are not done, each with all its seeds."""
    found: dict[tuple[str, str], list[int]] = {}
    for seed, reason in cell.reasons.items():
        found.setdefault((cell.seeds[seed], reason), []).append(seed)
    return [plain(f"{cell.name}, {_seeds(seeds)} {state}: {reason}") for (state, reason), seeds in found.items()]


def _seeds(seeds: list[int]) -> str:
    """The subject of a sentence: `seed 3, is`; `seeds 0 to 4, are`; of others the first few."""
    first, *more = sorted(seeds)
    if not more:
        return f"seed {first}, is"
    if more[-1] - first == len(more):
        return f"seeds {first} {'and' if len(more) == 1 else 'to'} {more[-1]}, are"
    shown = ", ".join(map(str, [first, *more][:MOST_SEEDS]))
    rest = f" and {len(seeds) - MOST_SEEDS} more" if len(seeds) > MOST_SEEDS else ""
    return f"seeds {shown}{rest}, are"


def _alt(group: StudyGroup) -> str:
    """The alternative text of the figure: the final values of each method."""
    ends = []
    for entry in group.entries:
        found = [(key, group.estimate(entry, BY_KEY[key]).interval) for key in figures_data.MEASURED]
        numbers = [f"{key} {tables.number(interval.mean, '.3f')}" for key, interval in found if interval]
        if numbers:
            ends.append(f"{entry.name}: {', '.join(numbers)}")
    return plain(f"Final values of the methods, means over seeds: {'; '.join(ends) or 'none yet'}.")


def _world(group: StudyGroup) -> list[tuple[str, str]]:
    """The identity parts that the runs of the group share, which make them comparable."""
    return [(key, plain(canonical(group.world[key]))) for key in WORLD if key in group.world]


def _provenance(run: Run, place: str) -> dict[str, str]:
    m = run.manifest
    return {
        "path": place,
        "run_id": plain(m.run_id),
        "started": plain(m.started_at or "not recorded"),
        "provenance": plain(canonical(m.provenance.plain())),
    }


def _places(paths: list[Path]) -> dict[Path, str]:
    """A unique name for each folder, at least preset/task/method/run, that does not reveal paths of the machine."""
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    root = os.path.commonpath(list(absolute.values()))
    places = {}
    for path, full in absolute.items():
        keep = max(4, len(full.relative_to(root).parts))
        places[path] = plain("/".join(full.parts[1:][-keep:]))
    return places


def _command(runs: list[str], problems: list[str]) -> str:
    """The command that builds the page again: with the folders above the records where these are too many."""
    places = runs if len(runs) <= MOST_NAMED else [os.path.dirname(run) for run in runs]
    return " \\\n  ".join(["harness report", *map(shlex.quote, sorted({*places, *problems[:MOST_NAMED]})), "--out REPORT"])


def _problems_csv(problems: list[Problem], names: dict[Path, str]) -> bytes:
    rows: list[list[object]] = [["path", "problem"]]
    rows += [[names[p.path], p.what] for p in problems]
    return tables.to_csv(rows).encode("utf-8", "replace")


def _problem_text(problem: Problem) -> str:
    return f"{problem.path}: {problem.what}"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _html() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _markdown() -> Environment:
    """An environment that escapes every value unless it is marked as Markdown."""
    env = Environment(
        loader=PackageLoader("harness.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else tables.escape_markdown(value),
    )  # fmt: skip
    env.filters["table"] = lambda table: Markup(tables.markdown(table))
    env.filters["block"] = lambda text: Markup("\n".join("    " + line for line in escape(text, quote=False).split("\n")))
    return env


def _write(out: Path, files: dict[str, bytes]) -> list[Path]:
    paths = []
    writable(out)
    for name in sorted(files):
        path = out / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            replace(path, files[name])
        paths.append(path)
    return paths
