"""The Pareto picture of a group of runs: what they reached, at what cost in drift and fluency, below what any policy can.

A figure is drawn from plain data (`figure_data`) that the report writes beside it, so every point can be looked up.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from math import floor, log10
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..errors import EmptySelection, UsageError
from ..records import Run
from ..stats import Z95
from .groups import Entry, Group, estimate, groups, measure, metric, plain, shorten

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4488", "#B07A00", "#3A9BD0")  # Okabe and Ito's, darkened to 3:1 on white
MARKERS = "osD^vPX"  # seven to six colours, so that a pair of both returns only after 42 methods
INK, GREY, SHADE = "#222222", "#6b6b6b", "#ececec"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the bytes do not depend on the machine's fonts
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "harness",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
MEASURED = ("reward", "judge", "kl", "ppl")
WIDE, NARROW = (8.0, 5.9), (4.2, 10.4)


class Panel(NamedTuple):
    """A pair of metrics and how to say it."""

    x: str
    y: str
    title: str
    xlabel: str
    ylabel: str


KL_LABEL = "KL(policy || base), nats per response"
PANELS = (
    Panel("kl", "reward", "What is trained on: reward against drift", KL_LABEL, "reward, 1 is best"),
    Panel("kl", "judge", "What is meant: held-out judge", KL_LABEL, "judge = 1 − undesired"),
    Panel("ppl", "reward", "Fluency: perplexity", "perplexity under the judge model (log)", "reward, 1 is best"),
)


def pareto(runs: Sequence[Run], narrow: bool = False) -> Figure:
    """The picture of runs that share a world; raises UsageError if they do not, EmptySelection without any."""
    found = groups(list(runs))
    if not found:
        raise EmptySelection("a figure needs at least one run, found none")
    if len(found) > 1:
        raise UsageError(f"runs of {len(found)} different worlds cannot share one figure; draw each of groups(runs) alone")
    return draw(figure_data(found[0]), narrow)


def run_picture(run: Run, narrow: bool = False) -> Figure:
    """The picture of one run, with the updates named along its way."""
    return pareto([run], narrow)


def save(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a "png" (150 dpi) or an "svg", the same for the same figure."""
    out = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()


def figure_data(group: Group) -> dict[str, Any]:
    """All that the figure of a group shows, as plain data."""
    reference = group.reference
    base = {key: _point(metric(reference["base"].get(key))) for key in MEASURED} if reference else None
    entries = group.entries
    only = entries[0].runs[0].manifest if len(group.runs) == 1 else None
    return {
        "title": shorten(f"{group.task}, preset {group.preset}", 60),
        "run": shorten(f"{only['method']}, seed {only['seed']}", 60) if only else None,
        "base": base,
        "frontier": _frontier(reference["frontier"]) if reference and reference["frontier"] else None,
        "methods": [_method(entry, i) for i, entry in enumerate(entries)],
    }


def draw(data: dict[str, Any], narrow: bool = False) -> Figure:
    """The figure of `figure_data`: three panels side by side, or one below the other for a narrow screen."""
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
        figure = Figure(figsize=NARROW if narrow else WIDE, layout=layout)
        axes = figure.subplot_mosaic("0;1;2" if narrow else "01;02", width_ratios=None if narrow else [1.55, 1])
        for name, panel in zip("012", PANELS):
            _panel(axes[name], data, panel)
        _title(figure, data, narrow)
        _legend(figure, data, 2 if narrow else 4)
    return figure


def _point(found: Any) -> dict[str, Any]:
    return {"value": found.value, "stderr": found.stderr, "reason": found.reason}


def _frontier(found: dict[str, Any]) -> dict[str, Any]:
    solid = [p for p in found["curve"] if p["solid"]]
    edge = solid[-1]["kl"] if solid else 0.0
    return {
        "kl_cap": found.get("kl_cap"),
        "solid": [{key: p.get(key) for key in ("kl", "reward", "reward_stderr")} for p in solid],
        "upper": [{key: p[key] for key in ("kl", "reward")} for p in found.get("upper") or [] if p["kl"] >= edge],
        "best_of_n": [{key: p[key] for key in ("n", "kl", "reward")} for p in found.get("best_of_n") or []],
        "judge_at": found.get("judge_at"),
    }


def _method(entry: Entry, i: int) -> dict[str, Any]:
    look = {"name": shorten(entry.name), "colour": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    mean = {key: estimate(entry, lambda run, key=key: measure(run, key)) for key in MEASURED}  # type: ignore[misc]
    means = {k: dict(e.interval._asdict(), n=e.n) if e.interval and e.n > 1 else None for k, e in mean.items()}
    return {**look, "runs": [_one(run) for run in entry.runs], "mean": means}


def _one(run: Run) -> dict[str, Any]:
    rows = [row for row in run.trajectory if row["split"] == "test"]
    path = [{"update": row["update"], **{k: metric(row["metrics"].get(k)).value for k in MEASURED}} for row in rows]
    final = {key: _point(measure(run, key)) for key in MEASURED} if run.summary else None
    m = run.manifest
    return {"run_id": plain(m["run_id"]), "seed": m["seed"], "status": m["status"], "path": path, "final": final}


def _panel(ax: Axes, data: dict[str, Any], panel: Panel) -> None:
    better = "better: up and left ↖" if panel.x == "kl" else "better: up, near the base's line"
    ax.set_title(panel.title, fontweight="bold", pad=17)
    ax.annotate(better, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=GREY)
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    limits = _limits(data, panel)
    if limits is None:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=GREY)
        ax.set(xticks=[], yticks=[])
        return
    _scale(ax, panel, *limits)
    _reference(ax, data, panel, limits)
    for method in data["methods"]:
        _draw_method(ax, method, panel, name_updates=data["run"] is not None and panel is PANELS[0])


def _limits(data: dict[str, Any], panel: Panel) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """What the axes must show: every point of the runs, the base, and the frontier as far as the runs go or to the cap."""
    points = list(_points(data, panel))
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frontier = data["frontier"]
    if panel.x == "kl":
        xs += [0.0, (frontier["kl_cap"] or 0.0) if frontier else 0.0]
        right = max(max(xs) * 1.08, 1e-3)
        if frontier and panel.y == "reward":
            ys += [p["reward"] for p in frontier["solid"] + frontier["upper"] if p["kl"] <= right]
        if frontier and panel.y == "judge":
            ys += [judge for kl, judge in _judged(frontier) if kl <= right]
        x_range = (-0.002 * right, right)
    else:
        x_range = (min(xs) / 1.06, max(xs) * 1.06)
    span = max(max(ys) - min(ys), 1e-3)
    return x_range, (min(ys) - 0.08 * span, max(ys) + 0.09 * span)


def _points(data: dict[str, Any], panel: Panel) -> Iterator[tuple[float, float]]:
    sources = [(0.0 if panel.x == "kl" else _value(data["base"], panel.x), _value(data["base"], panel.y))]
    for method in data["methods"]:
        for run in method["runs"]:
            sources += [(p[panel.x], p[panel.y]) for p in run["path"]]
            final = run["final"]
            low, high = _bar(final, panel.y)
            sources += [(_value(final, panel.x), y) for y in (_value(final, panel.y), low, high)]
    if data["frontier"] and panel == PANELS[0]:
        sources += [(p["kl"], p["reward"]) for p in data["frontier"]["best_of_n"]]
    yield from ((x, y) for x, y in sources if x is not None and y is not None)


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
        # Drift grows like the square of a small change, so the root spreads out what happens below one nat.
        ax.set_xscale("function", functions=(lambda v: np.sign(v) * np.sqrt(np.abs(v)), lambda v: np.sign(v) * v**2))
        ticks = [t for t in (0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3, 5, 8, 12, 20, 35, 60, 100, 200) if t <= x[1]]
        ticks = _thin(ticks, lambda t: (t / x[1]) ** 0.5, 0.09)
    else:
        ax.set_xscale("log")
        decades = range(floor(log10(x[0])), floor(log10(x[1])) + 1)
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
        ticks = [s * 10.0**d for d in decades for s in steps if x[0] <= s * 10.0**d <= x[1]]
        ticks = _thin(ticks, lambda t: log10(t / x[0]) / log10(x[1] / x[0]), 0.12)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set(xlim=x, ylim=y)
    ax.grid(axis="y", color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)


def _thin(ticks: Sequence[float], place: Callable[[float], float], gap: float) -> list[float]:
    """The ticks that keep a gap between each other, as a share of the axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or place(tick) - place(kept[-1]) >= gap:
            kept.append(tick)
    return kept


def _reference(ax: Axes, data: dict[str, Any], panel: Panel, limits: tuple) -> None:
    frontier = data["frontier"]
    if frontier and panel == PANELS[0]:
        _draw_frontier(ax, frontier, limits)
        _draw_best_of_n(ax, frontier["best_of_n"])
    if frontier and panel.y == "judge":
        at = _judged(frontier)
        ax.plot([k for k, _ in at], [j for _, j in at], "-.", color=INK, linewidth=1.2, zorder=2)
    x = 0.0 if panel.x == "kl" else _value(data["base"], panel.x)
    y = _value(data["base"], panel.y)
    if x is not None and panel.x == "ppl":
        ax.axvline(x, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
        ax.text(x, limits[1][1], " base ", va="top", ha="right", fontsize=8, color=INK, rotation=90)
    if x is not None and y is not None:
        ax.plot([x], [y], "*", color=INK, markersize=11, markeredgecolor="white", zorder=6, clip_on=False)


def _judged(frontier: dict[str, Any]) -> list[tuple[float, float]]:
    """The judge along the frontier of the reward: no bound on the judge, but what the best policy for the reward gets."""
    found = frontier["judge_at"] or {"kl": [], "judge": []}
    return [(kl, judge) for kl, judge in zip(found["kl"], found["judge"]) if judge is not None]


def _draw_frontier(ax: Axes, frontier: dict[str, Any], limits: tuple) -> None:
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
        words = "no policy\ncan be here"
        ax.text(0.07, 0.97, words, transform=ax.transAxes, va="top", fontsize=8, style="italic", color="#595959")
    ax.fill_between(kl, np.subtract(reward, half), np.add(reward, half), color=INK, alpha=0.15, linewidth=0, zorder=1)
    ax.plot(kl, reward, "-", color=INK, linewidth=1.6, zorder=3)
    ax.plot([p["kl"] for p in beyond], [p["reward"] for p in beyond], "--", color=INK, linewidth=1.1, zorder=3)


def _draw_best_of_n(ax: Axes, points: list[dict[str, Any]]) -> None:
    x, y = [p["kl"] for p in points], [p["reward"] for p in points]
    for (a, b), (c, d) in zip(zip(x, y), zip(x[1:], y[1:])):  # straight in KL, as a mixture of two is, not in its root
        ax.plot(np.linspace(a, c, 20), np.linspace(b, d, 20), "-", color=GREY, linewidth=0.9, zorder=2.5)
    ax.plot(x, y, "d", color=GREY, markersize=4, markerfacecolor="white", zorder=3)
    for p in points:
        if p["n"] > 1:
            ax.annotate(str(p["n"]), (p["kl"], p["reward"]), (3, -8), textcoords="offset points", fontsize=8, color=GREY)


def _draw_method(ax: Axes, method: dict[str, Any], panel: Panel, name_updates: bool) -> None:
    look = {"color": method["colour"], "marker": method["marker"]}
    mean = method["mean"]
    averaged = mean[panel.x] is not None and mean[panel.y] is not None
    for run in method["runs"]:
        _draw_path(ax, run, panel, look, name_updates)
        _draw_final(ax, run, panel, look, emphasised=not averaged)
    if averaged:
        _draw_mean(ax, mean[panel.x], mean[panel.y], look)


def _draw_path(ax: Axes, run: dict[str, Any], panel: Panel, look: dict[str, Any], name_updates: bool) -> None:
    points = [p for p in run["path"] if p[panel.x] is not None and p[panel.y] is not None]
    style = "-" if run["final"] else ":"
    xy = [p[panel.x] for p in points], [p[panel.y] for p in points]
    ax.plot(*xy, style, **look, linewidth=0.8, markersize=2.2, markeredgewidth=0, alpha=0.5, zorder=4)
    for p in points if name_updates else []:
        x, y = p[panel.x], p[panel.y]
        ax.annotate(str(p["update"]), (x, y), (4, -9), textcoords="offset points", fontsize=8, color=look["color"])


def _draw_final(ax: Axes, run: dict[str, Any], panel: Panel, look: dict[str, Any], emphasised: bool) -> None:
    x, y = _value(run["final"], panel.x), _value(run["final"], panel.y)
    if x is None or y is None:
        return
    errors = [[Z95 * (run["final"][key]["stderr"] or 0.0)] for key in (panel.x, panel.y)]
    face = "white" if run["status"] == "degraded" else look["color"]
    edge = look["color"] if run["status"] == "degraded" else "white"
    ax.errorbar(
        [x], [y], xerr=errors[0], yerr=errors[1], fmt=look["marker"], color=look["color"], zorder=5 + emphasised,
        markersize=8 if emphasised else 5, markerfacecolor=face, markeredgecolor=edge, elinewidth=1.1 if emphasised else 0.7,
        alpha=1 if emphasised or face == "white" else 0.6,
    )  # fmt: skip


def _draw_mean(ax: Axes, x: dict[str, float], y: dict[str, float], look: dict[str, Any]) -> None:
    errors = [[[at["mean"] - at["low"]], [at["high"] - at["mean"]]] for at in (x, y)]
    ax.errorbar(
        [x["mean"]], [y["mean"]], xerr=errors[0], yerr=errors[1], fmt=look["marker"], color=look["color"], zorder=7,
        markersize=9, markeredgecolor=INK, markeredgewidth=0.9, elinewidth=1.7, capsize=2.5,
    )  # fmt: skip


def _title(figure: Figure, data: dict[str, Any], narrow: bool) -> None:
    what = f"Unlearning {data['title']}" + (f": {data['run']}" if data["run"] else "")
    points = "numbers: updates" if data["run"] else "large: mean of seeds"
    bars = "bars: 95% over prompts" if data["run"] else "bars: 95% over seeds, or over prompts for one seed"
    gap = "\n" if narrow else "; "
    figure.suptitle(f"{what}\nthin lines: training; {points}{gap}{bars}", x=0.01, ha="left", fontsize=9.5)


def _legend(figure: Figure, data: dict[str, Any], columns: int) -> None:
    """Below the panels, never over data; labels are set afterwards, because a leading underscore would hide one."""
    entries = list(_legend_entries(data))
    legend = figure.legend(
        [h for h, _ in entries], ["x"] * len(entries), loc="outside lower left", ncols=columns, frameon=False,
        handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip
    for text, (_, label) in zip(legend.get_texts(), entries):
        text.set_text(label)


def _legend_entries(data: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    for m in data["methods"]:
        seeds = len({run["seed"] for run in m["runs"] if run["status"] == "done"})
        label = f"{m['name']}, {seeds} seed{'' if seeds == 1 else 's'}"
        yield Line2D([], [], color=m["colour"], marker=m["marker"], markersize=7, linewidth=1, markeredgecolor=INK), label
    if data["base"]:
        yield Line2D([], [], color=INK, marker="*", markersize=10, linestyle=""), "base policy"
    frontier = data["frontier"]
    if frontier:
        yield Line2D([], [], color=INK, linewidth=1.6), "optimal frontier, 95% band"
        yield Line2D([], [], color=INK, linewidth=1.1, linestyle="--"), "upper bound beyond it"
        yield Line2D([], [], color=GREY, marker="d", markerfacecolor="white", markersize=4), "best of n (n beside it)"
        yield Patch(color=SHADE), "unattainable"
    if frontier and frontier["judge_at"]:
        yield Line2D([], [], color=INK, linewidth=1.2, linestyle="-."), "reward's optimum, judged"
    statuses = {run["status"] for m in data["methods"] for run in m["runs"]}
    if "degraded" in statuses:
        yield Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle=""), "hollow: degraded, not in means"
    if statuses & {"running", "failed", "interrupted"}:
        yield Line2D([], [], color=GREY, linestyle=":"), "dotted: not finished"
