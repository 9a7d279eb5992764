"""Curves over knob values with their bands, beside the frontier, each named at its end; from the data of `report.curves`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .labels import shortened
from .panels import KL_LABEL, PPL_LABEL, Note, Panel, draw_frontier, fixed_ticks, judged, log_ticks, root_scale, thin
from .style import GREY, INK
from .ticks import Ticks

ROOM = 1.08  # of the KL cap, to the right edge
LEADER = {"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.55, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
SIZE, LINE = 7.5, 8.7  # points: of a label, and from one label to the next
WIDE = 1 / 3  # of the panel's height: a wider band would hide the others, and is left to the family's own plot
JUDGE, REWARD = "judge, 1 is best", "reward, 1 is best"
KL_JUDGE = Panel("kl", "judge", "Held-out judge against KL", KL_LABEL, JUDGE, "better: up and left ↖")
KL_REWARD = Panel("kl", "reward", "Reward against KL", KL_LABEL, REWARD, "better: up and left ↖")
PPL_JUDGE = Panel("ppl", "judge", "Held-out judge against perplexity", PPL_LABEL, JUDGE, "better: up, near the base's line")
PPL_REWARD = Panel("ppl", "reward", "Reward against perplexity", PPL_LABEL, REWARD, "better: up, near the base's line")
PANELS = (KL_JUDGE, KL_REWARD, PPL_JUDGE, PPL_REWARD)


def draw_curves(ax: Axes, data: dict[str, Any], panel: Panel, tag: str, family: str | None = None) -> list[Note]:
    """Draw the curves in a panel and return the tooltips of their points; with a family its curves, the others in grey."""
    limits = _limits(data, panel)
    _axes(ax, data, panel, limits, small=family is not None)
    if family is None:
        ax.set_title(panel.title, fontweight="bold", pad=17, y=1.0)
        ax.annotate(panel.better, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=GREY)
        ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    else:
        ax.set_title(family, fontweight="bold", pad=4, y=1.0, fontsize=8.5)
    notes, ends = [], []
    for i, curve in enumerate(data["curves"]):
        if family is not None and curve["family"] != family:
            x, y = _line(data, curve, panel)
            ax.plot(x, y, "-", color="#c9c9c9", linewidth=0.7, zorder=2)
            continue
        bold = family is not None
        notes += _draw(ax, data, curve, panel, f"{tag}-m{i}", bold, bold or not _wide(curve["bands"].get(panel.y), limits))
        if (end := _end(data, curve, panel, limits)) is not None:
            ends.append((i, curve, end))
    name_ends(ax, ends, tag)
    return notes


def _line(data: dict[str, Any], curve: dict[str, Any], panel: Panel) -> tuple[list[float], list[float]]:
    """The line from the base policy through the points: by KL, or in the order of the knob."""
    base = data["base_point"]
    points = [(p[panel.x], p[panel.y]) for p in curve["points"] if p[panel.x] is not None and p[panel.y] is not None]
    if panel.x == "kl":
        band = curve["bands"].get(panel.y)
        return (band["kl"], band["mean"]) if band else ([], [])
    start = [(base[panel.x], base[panel.y])] if base[panel.x] is not None and base[panel.y] is not None else []
    return [x for x, _ in start + points], [y for _, y in start + points]


def _wide(band: dict[str, Any] | None, limits: tuple) -> bool:
    """Whether a band covers more than WIDE of the panel's height, on average over its length inside."""
    (_, right), (low, high) = limits
    if not band or not band["low"]:
        return False
    inside = [x <= right for x in band["kl"]]
    ends = (np.clip(np.array(band[end], dtype=float)[inside], low, high) for end in ("high", "low"))
    heights = np.subtract(*ends)
    return bool(heights.size and heights.mean() > WIDE * (high - low))


def _draw(
    ax: Axes, data: dict[str, Any], curve: dict[str, Any], panel: Panel, gid: str, bold: bool, banded: bool = True
) -> list[Note]:
    band, colour = curve["bands"].get(panel.y), curve["colour"]
    if banded and panel.x == "kl" and band and band["low"]:
        shade: dict[str, Any] = {"alpha": 0.22 if bold else 0.07, "linewidth": 0, "zorder": 2.2, "gid": f"{gid}-b"}
        ax.fill_between(band["kl"], band["low"], band["high"], color=colour, **shade)
    x, y = _line(data, curve, panel)
    ax.plot(x, y, "-", color=colour, linewidth=1.4 if bold else 1.1, zorder=4, gid=gid)
    known = [p for p in curve["points"] if p[panel.x] is not None and p[panel.y] is not None]
    if not known:
        return []
    at = [p[panel.x] for p in known], [p[panel.y] for p in known]
    size = 22 if bold else 15
    ax.scatter(*at, s=size, marker=curve["marker"], color=colour, edgecolors="white", linewidths=0.4, zorder=5, gid=f"{gid}-a")
    return [Note(f"{gid}-a", [p["text"] for p in known])]


def _limits(data: dict[str, Any], panel: Panel) -> tuple[tuple[float, float], tuple[float, float]]:
    """The limits of the axes: KL up to the cap, and the scores of all curves and of the frontier up to there."""
    right = data["cap"] * ROOM
    near = [p for curve in data["curves"] for p in curve["points"] if p["kl"] is not None and p["kl"] <= right]
    ys = [p[panel.y] for p in near if p[panel.y] is not None]
    for curve in data["curves"]:
        x, y = _line(data, curve, panel) if panel.x == "kl" else ([], [])
        ys += [value for kl, value in zip(x, y, strict=True) if kl <= right]
    ys += [v for v in (data["base_point"][panel.y],) if v is not None]
    if panel.x == "kl":
        ys += [y for x, y in _best(data, panel) if x <= right]
    low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    room = max(high - low, 1e-3)
    y_range = low - 0.06 * room, high + 0.08 * room
    if panel.x == "kl":
        return (-0.002 * right, right), y_range
    xs = [v for v in (*(p[panel.x] for p in near), data["base_point"][panel.x]) if v is not None] or [1.0, 10.0]
    return (min(xs) / 1.04, max(xs) * 1.04), y_range


def _best(data: dict[str, Any], panel: Panel) -> list[tuple[float, float]]:
    frontier = data["frontier"]
    if not frontier:
        return []
    rewards = [(p["kl"], p["reward"]) for p in frontier["solid"] + frontier["upper"]]
    return rewards if panel.y == "reward" else judged(frontier)


def _axes(ax: Axes, data: dict[str, Any], panel: Panel, limits: tuple, small: bool) -> None:
    (left, right), _ = limits
    if panel.x == "kl":
        root_scale(ax, right, 0.22 if small else 0.09)
        for share in (0.25, 0.5, 1.0):
            ax.axvline(
                share * data["cap"], color="#dddddd" if share < 1 else GREY, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1
            )
    else:
        ax.set_xscale("log")
        ticks = log_ticks(left, right)
        fixed_ticks(ax, thin(ticks, lambda t: np.log(t / left) / np.log(right / left), 0.14))
        if data["base_point"]["ppl"] is not None:
            ax.axvline(data["base_point"]["ppl"], color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
    ax.yaxis.set_major_locator(MaxNLocator(4 if small else 6))
    ax.yaxis.set_major_formatter(Ticks())
    ax.set(xlim=limits[0], ylim=limits[1])
    if panel.x == "kl":
        _optimum(ax, data, panel, limits)
    at_x = 0.0 if panel.x == "kl" else data["base_point"][panel.x]
    if at_x is not None and data["base_point"][panel.y] is not None:
        ax.plot(
            [at_x],
            [data["base_point"][panel.y]],
            "*",
            color=INK,
            markersize=9,
            markeredgecolor="white",
            zorder=6,
            clip_on=False,
        )


def _optimum(ax: Axes, data: dict[str, Any], panel: Panel, limits: tuple) -> None:
    """The frontier: for the reward a bound, for the judge what its policies get."""
    best = _best(data, panel)
    if not best:
        return
    if panel.y == "reward":
        draw_frontier(ax, data["frontier"], limits)
        return
    solid = max((p["kl"] for p in data["frontier"]["solid"]), default=0.0)
    for style, part in (("-", [p for p in best if p[0] <= solid]), ("--", [p for p in best if p[0] >= solid])):
        ax.plot([x for x, _ in part], [y for _, y in part], style, color=INK, linewidth=1.6, zorder=3)


def _end(data: dict[str, Any], curve: dict[str, Any], panel: Panel, limits: tuple) -> tuple[float, float] | None:
    """Where a curve ends, or leaves the panel for the last time; None if it is never inside."""
    x, y = _line(data, curve, panel)
    (left, right), (low, high) = limits
    inside = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if left <= a <= right and low <= b <= high]
    if not inside:
        return None
    last = inside[-1]
    if last == len(x) - 1:
        return x[last], y[last]
    scale, back = (float, float) if panel.x == "kl" else (np.log, np.exp)  # the line is straight as it is drawn
    (x0, y0), (x1, y1) = ((float(scale(x[i])), y[i]) for i in (last, last + 1))
    ends = [(float(scale(left)), x0, x1), (float(scale(right)), x0, x1), (low, y0, y1), (high, y0, y1)]
    share = min((t for edge, p, q in ends if p != q and (t := (edge - p) / (q - p)) >= 0), default=1.0)
    return float(back(x0 + share * (x1 - x0))), y0 + share * (y1 - y0)


def name_ends(ax: Axes, ends: Sequence[tuple[int, dict[str, Any], tuple[float, float]]], tag: str) -> None:
    """Name each curve right of the panel, at the height of its end or as near as the others leave room, with a line to it."""
    to_points = 72 / ax.figure.dpi  # type: ignore[union-attr]
    frame = ax.get_window_extent()
    edge, bottom, top = frame.x1 * to_points, frame.y0 * to_points, frame.y1 * to_points
    ordered = sorted(ends, key=lambda end: end[2][1])
    heights = [float(ax.transData.transform(at)[1]) * to_points for _, _, at in ordered]
    room = bottom - 6 + LINE * (len(heights) - 1)  # beside the title only where the axes are too low for all names
    places = spread(heights, LINE, bottom - 6, max(top - 2, min(room, top + 16)))
    for (i, curve, at), place in zip(ordered, places, strict=True):
        x, y = ax.transData.transform(at) * to_points
        name = ax.annotate(
            shortened(curve["name"]), at, (edge + 8 - x, place - y), textcoords="offset points", fontsize=SIZE, va="center",
            color=curve["colour"], annotation_clip=False, gid=f"{tag}-m{i}",
            arrowprops=LEADER | {"color": curve["colour"]},
        )  # fmt: skip
        if name.arrow_patch is not None:
            name.arrow_patch.set_gid(f"{tag}-m{i}")


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places as near to ascending heights as a gap between neighbours and the ends of the range allow."""
    blocks: list[list[float]] = []  # mean of wanted first places, number of members
    for i, height in enumerate(heights):
        blocks.append([height - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, n), (b, m) = blocks.pop(-2), blocks.pop()
            blocks.append([(a * n + b * m) / (n + m), n + m])
    last = high - gap * (len(heights) - 1)
    firsts = [min(max(mean, low), max(last, low)) for mean, n in blocks for _ in range(int(n))]
    return [first + i * gap for i, first in enumerate(firsts)]
