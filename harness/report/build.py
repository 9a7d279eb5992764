"""Builds the folder of a report: one page that needs nothing else, the same as Markdown, tables and figures with their data.

Everything is a function of the records: no clock, no absolute path, no random name, so the same records give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import EmptySelection, Unwritable
from ..records import Problem, Run, canonical
from . import figures, tables
from .groups import WORLD, Group, groups, measure, plain
from .verdict import impossible, verdict


class BuildResult(NamedTuple):
    """The files written, and all problems: those handed in and those that the numbers themselves show."""

    files: list[Path]
    problems: list[Problem]


def build(runs: list[Run], problems: Iterable[Problem], out: Path) -> BuildResult:
    """Write the report of the runs; raises EmptySelection without a run, Unwritable if the folder takes no files."""
    found = groups(runs)
    told = sorted({*problems, *(p for group in found for p in impossible(group))})
    if not runs:
        raise EmptySelection(
            "no run to report on" + (f"; {len(told)} could not be read, first {_said(told[0])}" if told else "")
        )
    names = _places([run.dir for run in runs] + [p.path for p in told])
    sections = [_section(group, slug, names) for group, slug in zip(found, _slugs(found))]
    page = {
        "title": _title(found),
        "sections": sections,
        "problems": [{"path": names[p.path], "what": plain(p.what)} for p in told],
        "command": _command([names[run.dir] for run in runs] + [names[p.path] for p in told]),
    }
    files = {
        "index.html": _html().get_template("report.html.j2").render(page).encode("utf-8", "replace"),
        "report.md": _markdown().get_template("report.md.j2").render(page).encode("utf-8", "replace"),
        "tables/methods.csv": tables.methods_csv(found).encode("utf-8", "replace"),
        "tables/runs.csv": tables.runs_csv(found).encode("utf-8", "replace"),
        **{name: content for section in sections for name, content in section["files"].items()},
    }
    return BuildResult(_write(Path(out), files), told)


def _section(group: Group, slug: str, names: dict[Path, str]) -> dict[str, Any]:
    """What the templates show of one group, and the files of its figure."""
    data = figures.figure_data(group)
    wide, narrow = figures.draw(data), figures.draw(data, narrow=True)
    as_json = (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    svg, svg_narrow = figures.save(wide, "svg"), figures.save(narrow, "svg")
    name = f"figures/pareto-{slug}"
    return {
        "slug": slug,
        "heading": f"{plain(group.task)}, preset {plain(group.preset)}",
        "verdict": [plain(sentence) for sentence in verdict(group)],
        "cells": tables.cell_matrix(group),
        "states": [_state(run) for run in group.runs if run.manifest["status"] != "done"],
        "methods": tables.method_table(group),
        "runs": tables.run_table(group),
        "figure": name,
        "svg": _data_uri("image/svg+xml", svg),
        "svg_narrow": _data_uri("image/svg+xml", svg_narrow),
        "json": _data_uri("application/json", as_json),
        "alt": _alt(group),
        "world": _world(group),
        "provenance": [_provenance(run, names[run.dir]) for run in group.runs],
        "files": {
            f"{name}.svg": svg,
            f"{name}.png": figures.save(wide, "png"),
            f"{name}-narrow.svg": svg_narrow,
            f"{name}.json": as_json,
        },
    }


def _title(found: list[Group]) -> str:
    tasks = sorted({plain(group.task) for group in found})
    return "Unlearning " + ", ".join(tasks)


def _slugs(found: list[Group]) -> list[str]:
    """A file name a group, numbered where two share preset and task."""
    plain_names = [re.sub(r"[^a-z0-9]+", "-", f"{g.preset}-{g.task}".lower()).strip("-")[:60] or "runs" for g in found]
    seen: Counter[str] = Counter()
    slugs = []
    for name in plain_names:
        seen[name] += 1
        slugs.append(f"{name}-{seen[name]}" if plain_names.count(name) > 1 else name)
    return slugs


def _state(run: Run) -> str:
    """Why a cell is not done."""
    m = run.manifest
    error = m.get("error") or {}
    why = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key)) or (canonical(error) if error else "")
    unscored = sum(v.get("n_unscored", 0) for v in run.summary["final"].values()) if run.summary else 0
    why = why or (f"{unscored} scores missing" if unscored else "no reason recorded")
    return plain(f"{m['method']}, seed {m['seed']}, is {m['status']} ({why})")


def _alt(group: Group) -> str:
    """The figure in words: what is drawn, then where each finished run ended."""
    ends = []
    for run in group.runs:
        numbers = [
            f"{key} {tables.number(m.value, '.3f')}" for key in figures.MEASURED if (m := measure(run, key)).value is not None
        ]
        if numbers:
            ends.append(f"{run.manifest['method']} seed {run.manifest['seed']}: {', '.join(numbers)}")
    what = "Three plots: reward against KL below the optimal frontier, judge against KL, reward against perplexity."
    return plain(f"{what} Final points: {'; '.join(ends) or 'none yet'}.")


def _world(group: Group) -> list[tuple[str, str]]:
    """What the runs of the group share: the reason that they may be compared."""
    identity = group.runs[0].manifest["identity"]
    return [(key, plain(canonical(identity[key]))) for key in WORLD if key in identity]


def _provenance(run: Run, place: str) -> dict[str, str]:
    m = run.manifest
    return {
        "path": place,
        "run_id": plain(m["run_id"]),
        "started": plain(m.get("started_at") or "not recorded"),
        "provenance": plain(canonical(m.get("provenance") or {})),
    }


def _places(paths: list[Path]) -> dict[Path, str]:
    """A name for each folder that tells them apart and says nothing of the machine: at least preset/task/method/run."""
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    root = os.path.commonpath(list(absolute.values()))
    places = {}
    for path, full in absolute.items():
        keep = max(4, len(full.relative_to(root).parts))
        places[path] = plain("/".join(full.parts[1:][-keep:]))
    return places


def _command(places: list[str]) -> str:
    return " \\\n  ".join(["harness report", *(shlex.quote(place) for place in sorted(set(places))), "--out REPORT"])


def _said(problem: Problem) -> str:
    return f"{problem.path}: {problem.what}"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _html() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _markdown() -> Environment:
    """Every value is escaped on its way out, unless the code says that it already is Markdown."""
    env = Environment(
        loader=PackageLoader("harness.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else tables.escape_markdown(value),
    )  # fmt: skip
    env.filters["table"] = lambda table: Markup(tables.markdown(table))
    env.filters["block"] = lambda text: Markup("\n".join("    " + line for line in escape(text, quote=False).split("\n")))
    return env


def _write(out: Path, files: dict[str, bytes]) -> list[Path]:
    paths = []
    for name in sorted(files):
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        except OSError as error:
            raise Unwritable(f"{path}: cannot be written ({error.strerror}); choose another folder with --out") from None
        paths.append(path)
    return paths
