"""Sheets of panels of one size, saved whole as PNG and SVG, and split into panels for the page.

The page shows each panel as a separate picture, so that a narrow screen stacks them; they are cut out of the saved SVG, so
each is drawn once. Marks have tooltips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from math import ceil
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.curves.probes import Probing
from harness.analysis.scalars import Trace
from harness.core.text import plain

from .attainment import draw_attained
from .curves import KL_JUDGE, LINE, PANELS, draw_curves
from .panels import Note, Panel, draw_panel
from .pareto import legend_entries
from .probes import draw_probe, title_of
from .style import GREY, INK, STYLE, save, save_small
from .ticks import Ticks
from .training import draw_trace

INCH = 72.0  # points, the unit of a saved SVG
CELL, TITLE, LEGEND_ROW = (4.7, 3.9), 0.45, 0.185  # inches
MARGIN = (0.64, 0.54, 0.18, 0.52)  # inches: left, bottom, right, top
SMALL, SMALL_MARGIN = (2.4, 2.15), (0.56, 0.45, 0.1, 0.26)
WIDE, WIDE_MARGIN = (5.15, 4.0), (0.62, 0.52, 1.3, 0.55)
FAMILY, FAMILY_MARGIN = (3.35, 2.35), (0.45, 0.32, 1.25, 0.28)
NAME_WIDTH, DOT_ROW, DOT_MARGIN = 1.55, 0.2, (0.55, 0.5)  # inches


class Sheet(NamedTuple):
    """A drawn sheet as SVG and PNG, and each of its panels as SVG for the page."""

    svg: bytes
    panels: list[str]
    png: bytes


class Dots(NamedTuple):
    """A dot plot: one row per method with its interval, and the base policy's value as a line."""

    title: str
    xlabel: str
    values: list[dict[str, Any]]  # value, low, high, text; value None if not measured
    base: float | None


def curves(data: dict[str, Any], panels: Sequence[Panel], tag: str, columns: int = 2) -> Sheet:
    """Draw panels of runs in the plane of two metrics, with a legend below."""
    entries = list(legend_entries(data, panels))
    rows, legend = ceil(len(panels) / columns), 0.3 + LEGEND_ROW * ceil(len(entries) / (2 * columns))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * CELL[0], TITLE + rows * CELL[1] + legend))
        notes = []
        for k, (panel, ax) in enumerate(zip(panels, _grid(figure, len(panels), columns, CELL, MARGIN), strict=True)):
            notes += draw_panel(ax, data, panel, f"{tag}-{k}-", name_methods=True)
        _title(figure, data["title"])
        box = figure.legend(
            [h for h, _ in entries], ["x"] * len(entries), loc="lower left", ncols=2 * columns, frameon=False,
            bbox_to_anchor=(0.005, 0.0), handlelength=2.0, columnspacing=1.2,
        )  # fmt: skip
        for text, (_, label) in zip(box.get_texts(), entries, strict=True):
            text.set_text(label)
    return _sheet(figure, notes, [panel.title for panel in panels], columns, CELL)


def dots(
    title: str, methods: list[dict[str, Any]], panels: Sequence[Dots], tag: str, columns: int = 3
) -> Sheet:  # fmt: skip
    """Draw one dot plot per metric, with one row per method; `methods` are those of `figure_data`."""
    cell = (CELL[0] * 0.85, DOT_MARGIN[0] + DOT_MARGIN[1] + DOT_ROW * (len(methods) + 0.4))
    columns = min(columns, len(panels))
    margin = (NAME_WIDTH, DOT_MARGIN[0], 0.15, DOT_MARGIN[1])
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * cell[0], TITLE + ceil(len(panels) / columns) * cell[1]))
        notes = []
        for k, (panel, ax) in enumerate(zip(panels, _grid(figure, len(panels), columns, cell, margin), strict=True)):
            notes += _dots(ax, methods, panel, f"{tag}-{k}")
        _title(figure, title)
    return _sheet(figure, notes, [panel.title for panel in panels], columns, cell)


def bands(data: dict[str, Any], methods: Sequence[dict[str, Any]], columns: int = 4) -> Sheet:
    """Draw one small attainment panel per method of `attained`, below the frontier."""
    columns = min(columns, len(methods))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * SMALL[0], TITLE + ceil(len(methods) / columns) * SMALL[1]))
        for method, ax in zip(methods, _grid(figure, len(methods), columns, SMALL, SMALL_MARGIN), strict=True):
            draw_attained(ax, data, method)
        _title(figure, data["title"])
    return _sheet(figure, [], [method["name"] for method in methods], columns, SMALL)


def knobs(data: dict[str, Any], tag: str, columns: int = 2) -> Sheet:
    """Draw the curves over knob values: judge and reward, against KL and against perplexity."""
    cell = _wide(len(data["curves"]))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * cell[0], TITLE + ceil(len(PANELS) / columns) * cell[1]))
        notes = []
        for k, (panel, ax) in enumerate(zip(PANELS, _grid(figure, len(PANELS), columns, cell, WIDE_MARGIN), strict=True)):
            notes += draw_curves(ax, data, panel, f"{tag}-{k}")
        _title(figure, data["title"])
    return _sheet(figure, notes, [panel.title for panel in PANELS], columns, cell)


def families(data: dict[str, Any], tag: str, columns: int = 3) -> Sheet:
    """Draw the judge against KL once for each family of methods, the curves of the others in grey."""
    found = list(dict.fromkeys(curve["family"] for curve in data["curves"]))
    columns = min(columns, len(found))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * FAMILY[0], TITLE + ceil(len(found) / columns) * FAMILY[1]))
        notes = []
        for k, (family, ax) in enumerate(zip(found, _grid(figure, len(found), columns, FAMILY, FAMILY_MARGIN), strict=True)):
            notes += draw_curves(ax, data, KL_JUDGE, f"{tag}-{k}", family)
        _title(figure, data["title"])
    return _sheet(figure, notes, found, columns, FAMILY)


def training(title: str, found: Sequence[Trace], colours: dict[str, str], columns: int = 4) -> Sheet:
    """Draw one small panel per scalar of a method, by update; `colours` are those of the methods."""
    columns = min(columns, len(found))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(max(2, columns) * SMALL[0], TITLE + ceil(len(found) / columns) * SMALL[1]))
        for trace, ax in zip(found, _grid(figure, len(found), columns, SMALL, SMALL_MARGIN), strict=True):
            draw_trace(ax, trace, colours[trace.method])
        _title(figure, title)
    return _sheet(figure, [], [f"{trace.method}: {trace.name}" for trace in found], columns, SMALL)


def probes(title: str, found: Sequence[Probing], methods: list[dict[str, Any]], tag: str, columns: int = 2) -> Sheet:
    """Draw one panel per probe, a line per method; `methods` are those of `figure_data`."""
    columns, names = min(columns, len(found)), [method["name"] for method in methods]
    colours = {method["name"]: method["colour"] for method in methods}
    cell = _wide(max(len(probing.methods) for probing in found))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(columns * cell[0], TITLE + ceil(len(found) / columns) * cell[1]))
        notes = []
        for k, (probing, ax) in enumerate(zip(found, _grid(figure, len(found), columns, cell, WIDE_MARGIN), strict=True)):
            notes += draw_probe(ax, probing, names, colours, f"{tag}-{k}")
        _title(figure, title)
    return _sheet(figure, notes, [title_of(probing) for probing in found], columns, cell)


def _wide(names: int) -> tuple[float, float]:
    """A wide cell, high enough that the names beside its panel, one below another, are as high as the panel."""
    return WIDE[0], max(WIDE[1], WIDE_MARGIN[1] + WIDE_MARGIN[3] + names * LINE / INCH)


def _grid(figure: Figure, n: int, columns: int, cell: tuple[float, float], margin: tuple[float, ...]) -> list[Axes]:
    """Create axes in cells of one size from the top left, each with its labels inside the cell."""
    wide, high = figure.get_size_inches()
    left, bottom, right, top = margin
    axes = []
    for k in range(n):
        x, y = (k % columns) * cell[0], high - TITLE - (k // columns + 1) * cell[1]
        size = ((cell[0] - left - right) / wide, (cell[1] - bottom - top) / high)
        axes.append(figure.add_axes(((x + left) / wide, (y + bottom) / high, *size)))
    return axes


def _title(figure: Figure, title: str) -> None:
    high = figure.get_size_inches()[1]
    figure.text(0.01, 1 - 0.1 / high, f"Unlearning {title}", va="top", fontsize=10, fontweight="bold")


def _dots(ax: Axes, methods: list[dict[str, Any]], panel: Dots, tag: str) -> list[Note]:
    ax.set_title(panel.title, fontweight="bold", x=-0.55, pad=9, y=1.0)
    ax.set_xlabel(panel.xlabel)
    names = [m["name"] if len(m["name"]) <= 20 else m["name"][:19] + "…" for m in methods]
    ax.set_yticks(range(len(methods)), names)
    for text, method in zip(ax.get_yticklabels(), methods, strict=True):
        text.set_color(method["colour"])
    ax.set_ylim(len(methods) - 0.5, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#eeeeee", linewidth=0.8)
    ax.set_axisbelow(True)
    if panel.base is not None:
        ax.axvline(panel.base, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
    found = [(i, v) for i, v in enumerate(panel.values) if v["value"] is not None]
    if not found:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GREY)
        ax.set_xticks([])
        return []
    return [_points(ax, methods, found, panel, tag)]


def _points(ax: Axes, methods: list[dict[str, Any]], found: list[tuple[int, dict[str, Any]]], panel: Dots, tag: str) -> Note:
    colours = [methods[i]["colour"] for i, _ in found]
    bars = [[(v["low"], i), (v["high"], i)] for i, v in found]
    ax.add_collection(LineCollection(bars, colors=colours, linewidth=1.2, zorder=2), autolim=False)
    ax.scatter([v["value"] for _, v in found], [i for i, _ in found], s=26, c=colours, zorder=3, gid=tag)
    ends = [x for _, v in found for x in (v["low"], v["high"])] + ([] if panel.base is None else [panel.base])
    low, high = min(ends), max(ends)
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)  # equal values are drawn in the middle
    middle, half = (low + high) / 2, 0.56 * span
    ax.set_xlim(middle - half, middle + half)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(Ticks())
    return Note(tag, [v["text"] for _, v in found])


def _sheet(figure: Figure, notes: list[Note], titles: list[str], columns: int, cell: tuple[float, float]) -> Sheet:
    svg = _annotated(save(figure, "svg").decode(), notes)
    return Sheet(svg.encode(), _cut(svg, titles, columns, cell), save_small(figure))


def _annotated(svg: str, notes: list[Note]) -> str:
    """Add a tooltip to each mark as the title of its element: matplotlib draws a collection as one <use> per mark."""
    for note in notes:
        head, found, tail = svg.partition(f'<g id="{note.gid}">')
        if found:
            texts = iter(note.texts)
            svg = head + found + re.sub(r"<use ([^>]*)/>", _titled(texts), tail, count=len(note.texts))
    return svg


def _titled(texts: Any) -> Callable[[re.Match[str]], str]:
    return lambda m: f"<use {m[1]}><title>{escape(plain(next(texts)))}</title></use>"


AXES = re.compile(r'^  <g id="axes_\d+">\n.*?^  </g>$', re.MULTILINE | re.DOTALL)
CLIPS = re.compile(r"^ <defs>\n(?:  <clipPath.*?)^ </defs>$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r'<g id="[\w-]*?-(m\d+)(?:-(\w))?">')


def _classed(mark: re.Match[str]) -> str:
    """The group of a method's marks, by which the page finds them; a band is told apart."""
    return f'<g class="m {mark[1]}{" band" if mark[2] == "b" else ""}">'


def _cut(svg: str, titles: list[str], columns: int, cell: tuple[float, float]) -> list[str]:
    """Split a sheet into one SVG per panel; clip paths and markers are shared, so all must be on one page."""
    clips = "".join(CLIPS.findall(svg))
    wide, high = (round(size * INCH, 3) for size in cell)
    panels = []
    for k, (axes, title) in enumerate(zip(AXES.findall(svg), titles, strict=True)):
        x, y = round((k % columns) * wide, 3), round(TITLE * INCH + (k // columns) * high, 3)
        inner = re.sub(r'<g id="[^"]*">', "<g>", MARK.sub(_classed, axes + (clips if k == 0 else "")))
        inner = re.sub(r"\n\s*", "\n", inner)
        box = f'viewBox="{x:g} {y:g} {wide:g} {high:g}"'
        panels.append(f'<svg class="plot" {box} role="img" aria-label="{escape(title)}">{inner}</svg>')
    return panels
