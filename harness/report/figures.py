"""The Pareto picture of a group of runs: what they reached, at what cost in drift and fluency, below what any policy can.

A figure is drawn from plain data (`figure_data`) that the report writes beside it, so every point can be looked up.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import EmptySelection, UsageError
from ..records import Run
from ..types import Metric
from .groups import Entry, Group, estimate, groups, measure, metric, plain, shorten
from .looks import GREY, INK, SHADE, Look, looks
from .panels import PICTURE, draw_panel
from .tables import cost

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
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
MEASURED = ("reward", "judge", "kl", "ppl")
COSTS = ("flops", "sampled_tokens", "scorer_calls", "seconds")
WIDE, NARROW = (8.0, 5.9), (4.2, 10.4)


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
    styles = looks([entry.runs[0].manifest["method"] for entry in entries])
    only = entries[0].runs[0].manifest if len(group.runs) == 1 else None
    return {
        "title": shorten(f"{group.task}, preset {group.preset}", 60),
        "run": shorten(f"{only['method']}, seed {only['seed']}", 60) if only else None,
        "base": base,
        "frontier": _frontier(reference["frontier"]) if reference and reference["frontier"] else None,
        "methods": [_method(entry, look) for entry, look in zip(entries, styles)],
    }


def draw(data: dict[str, Any], narrow: bool = False) -> Figure:
    """The figure of `figure_data`: three panels side by side, or one below the other for a narrow screen."""
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
        figure = Figure(figsize=NARROW if narrow else WIDE, layout=layout)
        axes = figure.subplot_mosaic("0;1;2" if narrow else "01;02", width_ratios=None if narrow else [1.55, 1])
        for name, panel in zip("012", PICTURE):
            draw_panel(axes[name], data, panel, name_updates=data["run"] is not None and panel is PICTURE[0])
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


def _method(entry: Entry, look: Look) -> dict[str, Any]:
    mean = {key: estimate(entry, lambda run, key=key: _end(run, key), key) for key in (*MEASURED, *COSTS)}  # type: ignore[misc]
    means = {k: dict(e.interval._asdict(), n=e.n) if e.interval and e.n > 1 else None for k, e in mean.items()}
    return {"name": shorten(entry.name), **look._asdict(), "runs": [_one(run) for run in entry.runs], "mean": means}


def _one(run: Run) -> dict[str, Any]:
    rows = [row for row in run.trajectory if row["split"] == "test"]
    final = {key: _point(_end(run, key)) for key in (*MEASURED, *COSTS)} if run.summary else None
    m = run.manifest
    key = {"run_id": plain(m["run_id"]), "seed": m["seed"], "status": m["status"]}
    return {**key, "path": [_step(row) for row in rows], "final": final}


def _step(row: dict[str, Any]) -> dict[str, Any]:
    """A point of the trajectory: what was measured, and what it had cost so far."""
    spent = {**(row.get("cost") or {}), "seconds": row.get("seconds")}
    measured = {key: metric(row["metrics"].get(key)).value for key in MEASURED}
    costs = {key: v if isinstance(v := spent.get(key), (int, float)) else None for key in COSTS}
    return {"update": row["update"], **measured, **costs}


def _end(run: Run, key: str) -> Metric:
    return cost(key)(run) if key in COSTS else measure(run, key)


def _title(figure: Figure, data: dict[str, Any], narrow: bool) -> None:
    what = f"Unlearning {data['title']}" + (f": {data['run']}" if data["run"] else "")
    points = "numbers: updates" if data["run"] else "large: mean of seeds"
    bars = "bars: 95% over prompts" if data["run"] else "bars: 95% over seeds, or over prompts for one seed"
    gap = "\n" if narrow else "; "
    figure.suptitle(f"{what}\nthin lines: training; {points}{gap}{bars}", x=0.01, ha="left", fontsize=9.5)


def _legend(figure: Figure, data: dict[str, Any], columns: int) -> None:
    """Below the panels, never over data; labels are set afterwards, because a leading underscore would hide one."""
    entries = list(legend_entries(data))
    legend = figure.legend(
        [h for h, _ in entries], ["x"] * len(entries), loc="outside lower left", ncols=columns, frameon=False,
        handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip
    for text, (_, label) in zip(legend.get_texts(), entries):
        text.set_text(label)


def legend_entries(data: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Handle and label of all that a figure may show."""
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
