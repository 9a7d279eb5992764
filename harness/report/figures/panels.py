"""Panels of a figure: runs and methods as points and lines, with the optimal frontier.

A panel is drawn from the plain data of `figures.figure_data`; no record is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import floor, log10
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from harness.analysis.stats import Z95

from .labels import LABEL_SIZE, Box, far_box, free, meet, shortened
from .style import GREY, INK, SHADE
from .ticks import Ticks

MOST_PATHS = 6  # training lines per method; more would hide each other, and all are in the data
FAR = 3.0  # in KL caps of the task; runs that end beyond are named at the edge, as they would compress the rest
MANY = 8  # methods in one panel; with more, lines and seeds are drawn fainter than the means
KL_TICKS = (0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3, 5, 8, 12, 20, 35, 60, 100, 200)


class Panel(NamedTuple):
    """A pair of metrics with its title and axis labels."""

    x: str
    y: str
    title: str
    xlabel: str
    ylabel: str
    better: str


class Note(NamedTuple):
    """The tooltips of a method's marks, one text per mark in drawing order."""

    gid: str
    texts: list[str]


KL_LABEL = "KL(policy || base), nats per response"
REWARD, JUDGE = "reward, 1 is best", "judge = 1 − undesired"
UP_LEFT = "better: up and left ↖"
PPL_LABEL, LIKE_BASE = "perplexity under the judge model (log)", "better: up, near the base's line"
REWARD_KL = Panel("kl", "reward", "Reward against KL", KL_LABEL, REWARD, UP_LEFT)
JUDGE_KL = Panel("kl", "judge", "Held-out judge against KL", KL_LABEL, JUDGE, UP_LEFT)
REWARD_PPL = Panel("ppl", "reward", "Fluency: perplexity", PPL_LABEL, REWARD, LIKE_BASE)
JUDGE_PPL = Panel("ppl", "judge", "Held-out judge against perplexity", PPL_LABEL, JUDGE, LIKE_BASE)
OVER = Panel("reward", "judge", "Judge against reward", REWARD, JUDGE, "better: up, near the line")
COMPUTE = (
    Panel("flops", "reward", "Reward against training FLOPs", "estimated FLOPs of training", REWARD, UP_LEFT),
    Panel("sampled_tokens", "reward", "Reward against sampled tokens", "sampled tokens", REWARD, UP_LEFT),
    Panel("scorer_calls", "reward", "Reward against scorer calls", "responses or documents scored", REWARD, UP_LEFT),
    Panel("seconds", "reward", "Reward against wall-clock time", "seconds, evaluation included", REWARD, UP_LEFT),
)
PICTURE = (REWARD_KL, JUDGE_KL, REWARD_PPL)


def draw_panel(
    ax: Axes, data: dict[str, Any], panel: Panel, tag: str = "", *, name_updates: bool = False, name_methods: bool = False
) -> list[Note]:
    """Draw a panel and return the tooltips of its marks; labels beside points need axes that no layout moves afterwards."""
    ax.set_title(panel.title, fontweight="bold", pad=17, y=1.0)  # a fixed y: matplotlib is slow to find one
    ax.annotate(panel.better, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=GREY)
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    limits = _limits(data, panel)
    if limits is None:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GREY)
        ax.set(xticks=[], yticks=[])
        return []
    _scale(ax, panel, *limits)
    _reference(ax, data, panel, limits)
    many = len(data["methods"]) > MANY
    notes = []
    for i, method in enumerate(data["methods"]):
        notes += _draw_method(ax, method, panel, f"{tag}m{i}", many, name_updates)
    taken = _name_far(ax, data["methods"], panel) if panel.x == "kl" else []
    if name_methods and len(data["methods"]) > 1:
        _label(ax, data["methods"], panel, tag, taken)
    return notes


def _limits(data: dict[str, Any], panel: Panel) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The limits of the axes: they include the base, all end points within FAR, and the frontier up to these or the cap.

    The line of a run that moves further away and back leaves the panel.
    """
    points = list(_points(data, panel))
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frontier = data["frontier"]
    if panel.x == "kl":
        cap = (frontier["kl_cap"] or 0.0) if frontier else 0.0
        right = max(max([x for x in xs if not cap or x <= FAR * cap] + [0.0, cap]) * 1.08, 1e-3)
        if frontier and panel.y == "reward":
            ys += [p["reward"] for p in frontier["solid"] + frontier["upper"] if p["kl"] <= right]
        if frontier and panel.y == "judge":
            ys += [judge for kl, judge in judged(frontier) if kl <= right]
        x_range = (-0.002 * right, right)
    elif panel.x == "ppl":
        x_range = (min(xs) / 1.06, max(xs) * 1.06)
    elif panel.x == "reward":
        x_range = _padded(xs, 0.06, 0.06)
    else:
        x_range = (0.0, max(max(xs) * 1.06, 1e-9))
    return x_range, _padded(ys, 0.08, 0.09)


def _padded(values: list[float], below: float, above: float) -> tuple[float, float]:
    span = max(max(values) - min(values), 1e-3)
    return min(values) - below * span, max(values) + above * span


def _points(data: dict[str, Any], panel: Panel) -> Iterator[tuple[float, float]]:
    sources = [base_of(data, panel)]
    for method in data["methods"]:
        for run in method["runs"]:
            final = run["final"]
            if final is None or panel.x not in ("kl", "ppl"):
                sources += [(p[panel.x], p[panel.y]) for p in [*run["path"], *run["validation"]]]
            low, high = _bar(final, panel.y)
            sources += [(_value(final, panel.x), y) for y in (_value(final, panel.y), low, high)]
        sources += _mean_ends(method, panel)
    if data["frontier"] and panel == REWARD_KL:
        sources += [(p["kl"], p["reward"]) for p in data["frontier"]["best_of_n"]]
    yield from ((x, y) for x, y in sources if x is not None and y is not None)


def _mean_ends(method: dict[str, Any], panel: Panel) -> list[tuple[float, float]]:
    """The mean, with its interval unless it is wider than the value itself, as it may be with two seeds."""
    x, y = method["mean"][panel.x], method["mean"][panel.y]
    if x is None or y is None:
        return []
    return [(x["mean"], y["mean"])] + ([(x["high"], y["mean"])] if x["high"] <= 2 * x["mean"] else [])


def base_of(data: dict[str, Any], panel: Panel) -> tuple[float | None, float | None]:
    """The point of the base policy, at zero KL and zero cost."""
    at_x = _value(data["base"], panel.x) if panel.x in ("ppl", "reward") else 0.0
    return at_x, _value(data["base"], panel.y)


def _value(found: dict[str, Any] | None, key: str) -> float | None:
    return found[key]["value"] if found else None


def _bar(found: dict[str, Any] | None, key: str) -> tuple[float | None, float | None]:
    """The ends of the 95% interval over prompts."""
    value = _value(found, key)
    if found is None or value is None:
        return None, None
    half = Z95 * (found[key]["stderr"] or 0.0)
    return value - half, value + half


def _scale(ax: Axes, panel: Panel, x: tuple[float, float], y: tuple[float, float]) -> None:
    if panel.x == "kl":
        root_scale(ax, x[1], 0.09)
    elif panel.x == "ppl":
        ax.set_xscale("log")
        ticks = log_ticks(*x)
        fixed_ticks(ax, thin(ticks, lambda t: log10(t / x[0]) / log10(x[1] / x[0]), 0.12))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(Ticks())
    ax.set(xlim=x, ylim=y)
    ax.grid(axis="y", color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)


def root_scale(ax: Axes, right: float, gap: float) -> None:
    """Set a square-root KL axis: KL is quadratic in small changes, so the root resolves values below one nat."""
    ax.set_xscale("function", functions=(lambda v: np.sign(v) * np.sqrt(np.abs(v)), lambda v: np.sign(v) * v**2))
    fixed_ticks(ax, thin([t for t in KL_TICKS if t <= right], lambda t: (t / right) ** 0.5, gap))


def log_ticks(low: float, high: float) -> list[float]:
    """Set round ticks on a logarithmic axis, evenly spaced ones if the axis is too short for several."""
    decades = range(floor(log10(low)), floor(log10(high)) + 1)
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [s * 10.0**d for d in decades for s in steps]
    inside = [t for t in ticks if low <= t <= high]
    return inside if len(inside) > 2 else [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]


def fixed_ticks(ax: Axes, ticks: list[float]) -> None:
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def thin(ticks: Sequence[Any], place: Callable[[Any], float], gap: float) -> list[Any]:
    """Select ticks at least `gap` apart, as a share of the axis."""
    kept: list[Any] = []
    for tick in ticks:
        if not kept or place(tick) - place(kept[-1]) >= gap:
            kept.append(tick)
    return kept


def _reference(ax: Axes, data: dict[str, Any], panel: Panel, limits: tuple) -> None:
    frontier = data["frontier"]
    if frontier and panel == REWARD_KL:
        draw_frontier(ax, frontier, limits)
        words = "no policy\ncan be here"
        ax.text(0.07, 0.97, words, transform=ax.transAxes, va="top", fontsize=8, style="italic", color="#595959")
        _draw_best_of_n(ax, frontier["best_of_n"])
    if frontier and (panel.x, panel.y) == ("kl", "judge"):
        at = judged(frontier)
        ax.plot([k for k, _ in at], [j for _, j in at], "-.", color=INK, linewidth=1.2, zorder=2)
    x, y = base_of(data, panel)
    if x is not None and panel.x == "ppl":
        ax.axvline(x, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
        ax.text(x, limits[1][1], " base ", va="top", ha="right", fontsize=8, color=INK, rotation=90)
    if frontier and frontier["judged"] and panel == OVER:
        along = frontier["judged"]
        ax.plot([p["reward"] for p in along], [p["judge"] for p in along], "-.", color=INK, linewidth=1.2, zorder=2)
        words = "line: the optimal policies\nfor the reward"
        ax.text(0.03, 0.97, words, transform=ax.transAxes, va="top", fontsize=8, style="italic", color=GREY)
    if x is not None and y is not None:
        ax.plot([x], [y], "*", color=INK, markersize=11, markeredgecolor="white", zorder=6, clip_on=False)


def judged(frontier: dict[str, Any]) -> list[tuple[float, float]]:
    """The judge score of the policies on the reward's frontier, which is not a bound on the judge."""
    found = frontier["judge_at"] or {"kl": [], "judge": []}
    return [(kl, judge) for kl, judge in zip(found["kl"], found["judge"], strict=True) if judge is not None]


def draw_frontier(ax: Axes, frontier: dict[str, Any], limits: tuple) -> None:
    """Draw the frontier with its 95% band, its upper bound beyond the estimate, and a shade over the unreachable area."""
    (_, right), (_, top) = limits
    solid, upper = frontier["solid"], frontier["upper"]
    kl, reward = [p["kl"] for p in solid], [p["reward"] for p in solid]
    half = [Z95 * (p["reward_stderr"] or 0.0) for p in solid]
    beyond = solid[-1:] + upper
    edge = solid + upper
    if edge:
        at = [p["kl"] for p in edge] + [max(right, edge[-1]["kl"])]
        height = [p["reward"] for p in edge] + [edge[-1]["reward"]]
        ax.fill_between(at, height, max([top, *height]), color=SHADE, linewidth=0, zorder=0)
    ax.fill_between(kl, np.subtract(reward, half), np.add(reward, half), color=INK, alpha=0.15, linewidth=0, zorder=1)
    ax.plot(kl, reward, "-", color=INK, linewidth=1.6, zorder=3)
    ax.plot([p["kl"] for p in beyond], [p["reward"] for p in beyond], "--", color=INK, linewidth=1.1, zorder=3)


def _draw_best_of_n(ax: Axes, points: list[dict[str, Any]]) -> None:
    x, y = [p["kl"] for p in points], [p["reward"] for p in points]
    for (a, b), (c, d) in pairwise(zip(x, y, strict=True)):  # linear in KL, as for a mixture of two policies, not in its root
        ax.plot(np.linspace(a, c, 20), np.linspace(b, d, 20), "-", color=GREY, linewidth=0.9, zorder=2.5)
    ax.plot(x, y, "d", color=GREY, markersize=4, markerfacecolor="white", zorder=3)
    right = ax.get_xlim()[1]
    for p in thin([p for p in points if p["n"] > 1], lambda p: (p["kl"] / right) ** 0.5, 0.05):
        ax.annotate(str(p["n"]), (p["kl"], p["reward"]), (3, -8), textcoords="offset points", fontsize=8, color=GREY)


def _draw_method(ax: Axes, method: dict[str, Any], panel: Panel, gid: str, many: bool, name_updates: bool) -> list[Note]:
    mean = method["mean"]
    averaged = mean[panel.x] is not None and mean[panel.y] is not None
    _draw_paths(ax, method, panel, gid, many, name_updates)
    notes = _draw_finals(ax, method, panel, gid, not averaged, many)
    if averaged and mean[panel.x]["mean"] <= ax.get_xlim()[1]:
        notes.append(_draw_mean(ax, method, panel, gid))
    return notes + _draw_far(ax, method, panel, f"{gid}-f")


def _draw_far(ax: Axes, method: dict[str, Any], panel: Panel, gid: str) -> list[Note]:
    """Draw arrows at the right edge for points beyond it; a mean stands for its seeds."""
    right = ax.get_xlim()[1]
    far, _ = _far(method, panel, right) if panel.x == "kl" else ([], False)
    if not far:
        return []
    at = [right] * len(far), [y for _, y, _ in far]
    ax.scatter(*at, s=30, marker=">", color=method["colour"], zorder=8, clip_on=False, gid=gid)
    return [Note(gid, [words for _, _, words in far])]


def _name_far(ax: Axes, methods: list[dict[str, Any]], panel: Panel) -> list[Box]:
    """Label the points beyond the right edge with name and KL, without overlap; return the boxes of the labels in points."""
    right, to_points = ax.get_xlim()[1], 72 / ax.figure.dpi  # type: ignore[union-attr]
    taken: list[Box] = []
    for method in methods:
        far, named = _far(method, panel, right)
        for x, y, _ in far if named else []:
            words = f"{shortened(method['name'])}, KL {x:.3g}"
            edge, level = ax.transData.transform((right, y)) * to_points
            boxes = [far_box(edge, level + lift, words) for lift in (5, -13, 14, -22, 23, -31)]
            box = next((b for b in boxes if not any(meet(b, other) for other in taken)), boxes[0])
            taken.append(box)
            look = {"ha": "right", "fontsize": LABEL_SIZE, "color": method["colour"], "va": "bottom"}
            ax.annotate(words, (right, y), (-4, box[1] - level), textcoords="offset points", **look)
    return taken


def _far(method: dict[str, Any], panel: Panel, right: float) -> tuple[list[tuple[float, float, str]], bool]:
    """The end points beyond the edge, and True if they need a label there (else the mean inside the panel has it)."""
    x, y = method["mean"][panel.x], method["mean"][panel.y]
    averaged = x is not None and y is not None
    if averaged and x["mean"] > right:
        return [(x["mean"], y["mean"], f"{method['name']}, mean of {x['n']} seeds: {panel.x} {x['mean']:.4g}")], True
    ends = [(*at, _tooltip(method["name"], run, panel)) for run in method["runs"] if (at := _at(run, panel))]
    return [end for end in ends if end[0] > right], not averaged


def _draw_paths(ax: Axes, method: dict[str, Any], panel: Panel, gid: str, many: bool, name_updates: bool) -> None:
    whole: dict[str, list[list[tuple[float, float]]]] = {"-": [], ":": [], "--": []}
    for run in method["runs"][:MOST_PATHS]:
        points, chosen_on = (_path(run[key], panel) for key in ("path", "validation"))
        whole["-" if run["final"] else ":"] += [[(p[panel.x], p[panel.y]) for p in points]] if points else []
        whole["--"] += [[(p[panel.x], p[panel.y]) for p in chosen_on]] if chosen_on else []
        for p in [*points, *chosen_on] if name_updates else []:
            at = (p[panel.x], p[panel.y])
            ax.annotate(
                str(p["update"]), at, (4, -9), textcoords="offset points", fontsize=8, color=method["colour"],
            )  # fmt: skip
    look = {"colors": method["colour"], "linewidth": 0.6 if many else 0.9, "alpha": 0.15 if many else 0.5, "zorder": 4}
    for style, lines in whole.items():
        if lines:
            ax.add_collection(LineCollection(lines, linestyle=style, gid=gid, **look), autolim=False)
    solid = {"s": 5, "color": method["colour"], "linewidth": 0}
    hollow = {"s": 9, "facecolors": "white", "edgecolors": method["colour"], "linewidths": 0.7}
    for look, lines in ((solid, whole["-"] + whole[":"]), (hollow, whole["--"])):
        dots = [at for line in lines for at in line]
        if dots and not many:
            ax.scatter(*zip(*dots, strict=True), alpha=0.6, zorder=4, gid=gid, **look)  # type: ignore[misc,arg-type]


def _path(points: Sequence[dict[str, Any]], panel: Panel) -> list[dict[str, Any]]:
    return [p for p in points if p[panel.x] is not None and p[panel.y] is not None]


def _draw_finals(ax: Axes, method: dict[str, Any], panel: Panel, gid: str, emphasised: bool, many: bool) -> list[Note]:
    """Draw one mark per run at its end, hollow for degraded runs."""
    notes = []
    for counts in (True, False):
        runs = [r for r in method["runs"] if (r["status"] != "degraded") == counts and _at(r, panel)]
        if not runs:
            continue
        at = [_at(run, panel) for run in runs]
        if emphasised:
            _cross(ax, runs, panel, method["colour"], gid)
        size = 52 if emphasised else 9 if many else 22
        face = method["colour"] if counts else "white"
        edge = "white" if counts else method["colour"]
        name = f"{gid}-{'s' if counts else 'd'}"
        ax.scatter(
            *zip(*at, strict=True),  # type: ignore[misc]
            s=size, marker=method["marker"], facecolors=face, edgecolors=edge, linewidths=0.6 if counts else 1.0,
            alpha=1 if emphasised or not counts else 0.45 if many else 0.6, zorder=5 + emphasised, gid=name,
        )  # fmt: skip
        notes.append(Note(name, [_tooltip(method["name"], run, panel) for run in runs]))
    return notes


def _at(run: dict[str, Any], panel: Panel) -> tuple[float, float] | None:
    x, y = _value(run["final"], panel.x), _value(run["final"], panel.y)
    return None if x is None or y is None else (x, y)


def _cross(ax: Axes, runs: list[dict[str, Any]], panel: Panel, colour: str, gid: str) -> None:
    """Draw intervals over prompts, for methods without one over seeds."""
    lines = []
    for run in runs:
        x, y = _at(run, panel) or (0.0, 0.0)
        dx, dy = (Z95 * (run["final"][key]["stderr"] or 0.0) for key in (panel.x, panel.y))
        lines += [[(x - dx, y), (x + dx, y)], [(x, y - dy), (x, y + dy)]]
    ax.add_collection(LineCollection(lines, colors=colour, linewidth=1.0, zorder=5, gid=gid), autolim=False)


def _draw_mean(ax: Axes, method: dict[str, Any], panel: Panel, gid: str) -> Note:
    x, y = method["mean"][panel.x], method["mean"][panel.y]
    lines = [[(x["low"], y["mean"]), (x["high"], y["mean"])], [(x["mean"], y["low"]), (x["mean"], y["high"])]]
    vague = x["high"] > 2 * x["mean"]  # too wide to be informative; it must not cover other marks
    look = {"linewidth": 0.8, "alpha": 0.3, "zorder": 1.5} if vague else {"linewidth": 1.5, "zorder": 7}
    ax.add_collection(LineCollection(lines, colors=method["colour"], gid=gid, **look), autolim=False)
    ax.scatter(
        [x["mean"]], [y["mean"]], s=60, marker=method["marker"], color=method["colour"], edgecolors=INK, linewidths=0.8,
        zorder=8, gid=f"{gid}-a",
    )  # fmt: skip
    ends = ", ".join(f"{key} {e['mean']:.4g} [{e['low']:.4g}, {e['high']:.4g}]" for key, e in ((panel.x, x), (panel.y, y)))
    ids = ", ".join(run["run_id"] for run in method["runs"] if run["status"] == "done")
    ids += f" and {more} more" if (more := method.get("runs_left_out")) else ""
    return Note(f"{gid}-a", [f"{method['name']}, mean of {y['n']} seeds: {ends}; runs {ids}"])


def _tooltip(name: str, run: dict[str, Any], panel: Panel) -> str:
    ends = ", ".join(f"{key} {_value(run['final'], key):.4g}" for key in (panel.x, panel.y))
    return f"{name}, seed {run['seed']}, run {run['run_id']}, {run['status']}: {ends}"


def _label(ax: Axes, methods: list[dict[str, Any]], panel: Panel, tag: str, taken: list[Box]) -> None:
    """Label the methods beside their points, without overlap; a method without room is named in the legend only."""
    to_points = 72 / ax.figure.dpi  # type: ignore[union-attr]
    spots = [(i, m, at) for i, m in enumerate(methods) if (at := _spot(m, panel))]
    places = [tuple(v * to_points for v in ax.transData.transform(at)) for _, _, at in spots]
    taken = taken + [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    taken += [box for _, m, _ in spots for box in _bars(ax, m, panel, to_points)]
    frame = ax.get_window_extent()
    inside = (frame.x0 * to_points, frame.y0 * to_points, frame.x1 * to_points, frame.y1 * to_points)
    for (i, method, at), place in zip(spots, places, strict=True):
        text = shortened(method["name"])
        found = free(place, len(text) * LABEL_SIZE * 0.56, LABEL_SIZE * 1.1, taken, inside)
        if found is None:
            continue
        box, offset = found
        taken.append(box)
        ax.annotate(
            text, at, offset, textcoords="offset points", fontsize=LABEL_SIZE, color=method["colour"], va="bottom",
            zorder=9, gid=f"{tag}m{i}", annotation_clip=True,
        )  # fmt: skip


def _spot(method: dict[str, Any], panel: Panel) -> tuple[float, float] | None:
    mean = method["mean"]
    if mean[panel.x] is not None and mean[panel.y] is not None:
        return mean[panel.x]["mean"], mean[panel.y]["mean"]
    ends = [at for run in method["runs"] if (at := _at(run, panel))]
    return ends[-1] if ends else None


def _bars(ax: Axes, method: dict[str, Any], panel: Panel, to_points: float) -> list[Box]:
    """The boxes of a mean's error bars, in points."""
    x, y = method["mean"][panel.x], method["mean"][panel.y]
    if x is None or y is None:
        return []
    ends = ((x["low"], y["mean"]), (x["high"], y["mean"])), ((x["mean"], y["low"]), (x["mean"], y["high"]))
    lines = [ax.transData.transform(line) * to_points for line in ends]
    return [(a[0] - 0.5, a[1] - 0.5, b[0] + 0.5, b[1] + 0.5) for a, b in lines]
