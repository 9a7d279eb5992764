"""Responses of a group's policies to the same prompts as plain data, for the sample browser of the page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from math import isfinite
from typing import Any

from harness.analysis.groups import Group, counted
from harness.core.errors import CorruptRecord
from harness.core.text import plain
from harness.records.read import source_of
from harness.records.schema import Problem, Run

PROMPTS = 24  # per group; spread over the kinds, selected by the hash of the prompt and not by the responses
LONGEST = 1200  # characters of one response; a longer one is cut and marked so
COLUMNS = ("kind", "prompt", "response", "reward", "judge", "kl")
Table = dict[str, list[Any]]


def samples(group: Group) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The prompts, and each method's first response to each in its lowest seed; None if no record has samples."""
    problems: list[Problem] = []
    found = [(name, run, table) for name, run, table in _tables(group, problems)]
    if not found:
        return None, problems
    prompts = _choose(found[0][2])
    rows = [_row(name, run, table, prompts) for name, run, table in found]
    return {"prompts": [{"kind": text(k), "text": text(p)} for k, p in prompts], "rows": rows}, problems


def _tables(group: Group, problems: list[Problem]) -> Iterator[tuple[str, Run, Table]]:
    """Yield the samples of the base policy, then those of each method that has any."""
    every = [run for entry in group.entries for run in counted(entry)]
    yield from _first("base (untrained)", every, "base", problems)
    for entry in group.entries:
        yield from _first(entry.name, counted(entry), "final", problems)


def _first(name: str, runs: list[Run], of: str, problems: list[Problem]) -> Iterator[tuple[str, Run, Table]]:
    for run in runs:
        table = _read(f"samples/{of}.parquet", run, problems)
        if table is not None:
            yield name, run, table
            return


def _read(name: str, run: Run, problems: list[Problem]) -> Table | None:
    """Read the columns that the page shows; None if the file is absent or, with a problem added, unreadable."""
    try:
        found = source_of(run).table(name, COLUMNS).to_pydict()
    except FileNotFoundError:
        return None
    except CorruptRecord as error:
        problems.append(Problem(run.dir, str(error).removeprefix(f"{run.dir}: ")))
        return None
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        problems.append(Problem(run.dir, f"{name} cannot be read: it has no {', '.join(missing)}"))
    return None if missing else found


def _choose(table: Table) -> list[tuple[str, str]]:
    """Select (kind, prompt) pairs from each kind in turn, ordered by the hash of the text."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, prompt in dict.fromkeys(zip(map(str, table["kind"]), map(str, table["prompt"]), strict=True)):
        kinds.setdefault(kind, []).append((kind, prompt))
    ordered = [sorted(kinds[kind], key=lambda pair: _hash(pair[1])) for kind in sorted(kinds)]
    return [pair for pair in chain(*zip_longest(*ordered)) if pair is not None][:PROMPTS]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _row(name: str, run: Run, table: Table, prompts: list[tuple[str, str]]) -> dict[str, Any]:
    first: dict[str, int] = {}
    for i, prompt in enumerate(table["prompt"]):
        first.setdefault(str(prompt), i)
    answers = [_answer(table, first.get(prompt)) for _, prompt in prompts]
    return {"name": plain(name), "run": plain(run.manifest.run_id), "seed": run.manifest.seed, "answers": answers}


def _answer(table: Table, i: int | None) -> dict[str, Any] | None:
    if i is None:
        return None
    scores = {key: _score(table[key][i]) for key in ("reward", "judge", "kl")}
    return {"text": text(table["response"][i]), **scores}


def _score(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, int | float) and isfinite(value) else None


def text(value: object) -> str:
    """Make generated text safe to show: keep line breaks, replace other unprintable characters, cut at LONGEST."""
    whole = str(value)
    cut = whole if len(whole) <= LONGEST else whole[:LONGEST] + f"… (cut: {len(whole)} characters)"
    return "".join(c if c in "\n\t\N{NO-BREAK SPACE}" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


def entries_without(group: Group, data: dict[str, Any] | None) -> list[str]:
    """The methods whose records have no samples."""
    shown = {row["name"] for row in data["rows"]} if data else set()
    return [entry.name for entry in group.entries if plain(entry.name) not in shown]
