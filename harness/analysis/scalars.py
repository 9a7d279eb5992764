"""What methods yielded as they trained: the scalars of each update, by method and name."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from harness.core.errors import CorruptRecord
from harness.core.text import shorten
from harness.records.read import scalars
from harness.records.schema import Problem

from .groups import Group

A_METHOD = 4  # scalars of a method that are shown, in the order of their names
MOST = 32  # panels of a group; the data has all
MOST_RUNS = 300  # of a group whose scalars are read, if it has more
POINTS = 120  # of a line; more than a panel of this size shows


class Trace(NamedTuple):
    """One scalar of one method: a line a run, as points (update, value)."""

    method: str
    name: str
    lines: list[list[tuple[int, float]]]


def traces(group: Group) -> tuple[list[Trace], list[Problem]]:
    """Every scalar that the methods of a group yielded, by method and name; records that cannot be read are problems.

    Of a group of more than MOST_RUNS runs only the first of each method are read.
    """
    problems: list[Problem] = []
    found: dict[tuple[str, str], list[list[tuple[int, float]]]] = {}
    for entry in group.entries:
        for run in group.drawn(entry, MOST_RUNS):
            try:
                rows = scalars(run)
            except CorruptRecord as error:
                problems.append(Problem(run.dir, str(error).removeprefix(f"{run.dir}: ")))
                continue
            for name in sorted({name for row in rows for name in row.scalars}):
                line = [(row.update, value) for row in rows if (value := row.scalars.get(name)) is not None]
                found.setdefault((entry.name, name), []).append(_thinned(line))
    order = {entry.name: i for i, entry in enumerate(group.entries)}
    names = sorted(found, key=lambda key: (order[key[0]], key[1]))
    return [Trace(method, name, [line for line in found[method, name] if line]) for method, name in names], problems


def shown(found: list[Trace]) -> list[Trace]:
    """The traces that have a panel: a few of each method, and so many in all; none that is the same all the time."""
    seen: Counter[str] = Counter()
    kept = []
    for trace in found:
        if len({value for line in trace.lines for _, value in line}) > 1 and seen[trace.method] < A_METHOD:
            seen[trace.method] += 1
            kept.append(trace)
    return kept[:MOST]


def as_data(found: list[Trace]) -> list[dict[str, Any]]:
    """The traces as plain data."""
    lines = [[[list(point) for point in line] for line in trace.lines] for trace in found]
    return [{"method": shorten(t.method), "name": shorten(t.name, 40), "lines": of} for t, of in zip(found, lines, strict=True)]


def _thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(line) <= POINTS:
        return line
    return [line[round(i * (len(line) - 1) / (POINTS - 1))] for i in range(POINTS)]
