"""The Pareto figure of a group of runs: judge and reward against KL and perplexity, with the optimal frontier.

A figure is drawn from plain data (`figure_data`) that the report writes beside it, so every point can be looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.analysis.study import Study
from harness.core.errors import EmptySelection, UsageError
from harness.records.schema import Run

from .data import figure_data
from .panels import PICTURE, REWARD_KL, Panel, base_of, draw_panel, judged
from .style import GREY, INK, SHADE, STYLE

WIDE, NARROW = (8.0, 5.9), (4.2, 10.4)


def pareto(runs: Sequence[Run], narrow: bool = False) -> Figure:
    """The figure of runs that share a world; raises UsageError if they do not, EmptySelection without any."""
    groups = Study(runs).groups
    if not groups:
        raise EmptySelection("a figure needs at least one run, found none")
    if len(groups) > 1:
        raise UsageError(f"runs of {len(groups)} different worlds cannot share one figure; draw the runs of each world alone")
    return draw(figure_data(groups[0]), narrow)


def run_picture(run: Run, narrow: bool = False) -> Figure:
    """The figure of one run, with labels of its updates."""
    return pareto([run], narrow)


def draw(data: dict[str, Any], narrow: bool = False) -> Figure:
    """Draw `figure_data` as three panels side by side, or one below the other for a narrow screen."""
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
        figure = Figure(figsize=NARROW if narrow else WIDE, layout=layout)
        axes = figure.subplot_mosaic("0;1;2" if narrow else "01;02", width_ratios=None if narrow else [1.55, 1])
        for name, panel in zip("012", PICTURE, strict=True):
            draw_panel(axes[name], data, panel, name_updates=data["run"] is not None and panel is PICTURE[0])
        _title(figure, data, narrow)
        _legend(figure, data, 2 if narrow else 4)
    return figure


def _title(figure: Figure, data: dict[str, Any], narrow: bool) -> None:
    what = f"Unlearning {data['title']}" + (f": {data['run']}" if data["run"] else "")
    points = "numbers: updates" if data["run"] else "large: mean of seeds"
    bars = "bars: 95% over prompts" if data["run"] else "bars: 95% over seeds, or over prompts for one seed"
    gap = "\n" if narrow else "; "
    figure.suptitle(f"{what}\nthin lines: training; {points}{gap}{bars}", x=0.01, ha="left", fontsize=9.5)


def _legend(figure: Figure, data: dict[str, Any], columns: int) -> None:
    """Draw the legend below the panels; labels are set afterwards, because a leading underscore would hide one."""
    entries = list(legend_entries(data))
    legend = figure.legend(
        [h for h, _ in entries], ["x"] * len(entries), loc="outside lower left", ncols=columns, frameon=False,
        handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(label)


def legend_entries(data: dict[str, Any], panels: Sequence[Panel] = PICTURE) -> Iterator[tuple[Any, str]]:
    """Yield handle and label of every element that some panel of a figure shows."""
    for m in data["methods"]:
        seeds = m.get("seeds", len({run["seed"] for run in m["runs"] if run["status"] == "done"}))
        label = f"{m['name']}, {seeds} seed{'' if seeds == 1 else 's'}"
        yield Line2D([], [], color=m["colour"], marker=m["marker"], markersize=7, linewidth=1, markeredgecolor=INK), label
    if any(None not in base_of(data, panel) for panel in panels):
        yield Line2D([], [], color=INK, marker="*", markersize=10, linestyle=""), "base policy"
    yield from _frontier_entries(data["frontier"], panels) if data["frontier"] else ()
    runs = [run for m in data["methods"] for run in m["runs"]]
    if any(run["validation"] for run in runs):
        look = {"linestyle": "--", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
        yield Line2D([], [], color=GREY, **look), "dashed: training, on validation prompts"  # type: ignore[arg-type]
    statuses = {run["status"] for run in runs}
    if "degraded" in statuses:
        yield Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle=""), "hollow: degraded, not in means"
    if any(run["path"] and not run["final"] for run in runs):
        yield Line2D([], [], color=GREY, linestyle=":"), "dotted: not finished"


def _frontier_entries(frontier: dict[str, Any], panels: Sequence[Panel]) -> Iterator[tuple[Any, str]]:
    """The elements of the frontier: in a figure without its panel there are none."""
    rewards = [p["kl"] for p in frontier["solid"] + frontier["upper"]] if REWARD_KL in panels else []
    if rewards:
        yield Line2D([], [], color=INK, linewidth=1.6), "optimal frontier, 95% band"
    if rewards and frontier["upper"] and rewards[-1] > (frontier["solid"] or [{"kl": 0.0}])[-1]["kl"]:
        yield Line2D([], [], color=INK, linewidth=1.1, linestyle="--"), "upper bound beyond it"
    if frontier["best_of_n"] and REWARD_KL in panels:
        yield Line2D([], [], color=GREY, marker="d", markerfacecolor="white", markersize=4), "best of n (n beside it)"
    if rewards:
        yield Patch(color=SHADE), "unattainable"
    if judged(frontier) and any((panel.x, panel.y) == ("kl", "judge") for panel in panels):
        yield Line2D([], [], color=INK, linewidth=1.2, linestyle="-."), "reward's optimum, judged"
