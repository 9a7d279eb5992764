"""Attainment: what a share of a method's seeds reaches within each drift, on the way or at the end.

A mean of end points hides a method that works in two seeds of three; here the seeds are a band below the frontier.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..stats import attainment, hypervolume
from .panels import draw_frontier, root_scale, shortened

SHARES = {"every": 0.0, "half": 0.5, "one": 1.0}  # quantile 0 is the worst: attained by every seed
MOST = 24  # panels; the data has all


def attained(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The corners (KL, reward) that every, half, and one of a method's seeds attain, the largest area of half of them first.

    Of `figures.figure_data`: finished runs, test prompts, KL up to the task's cap. Nothing where the base or the cap is not
    known; a method of one seed is left out, as its three curves are one.
    """
    base, cap = _corner(data)
    if base is None or cap is None:
        return []
    found = []
    for method in data["methods"]:
        fronts = _fronts(method, base, cap)
        if len(fronts) > 1:
            curves = {name: attainment(fronts, share).tolist() for name, share in SHARES.items()}
            found.append({**{key: method[key] for key in ("name", "colour")}, "n": len(fronts), **curves})
    return sorted(found, key=lambda m: (-hypervolume(m["half"], (cap, base)), m["name"]))


def _corner(data: dict[str, Any]) -> tuple[float | None, float | None]:
    """The base policy's reward and the task's KL cap."""
    base, frontier = data["base"], data["frontier"]
    return base["reward"]["value"] if base else None, (frontier["kl_cap"] or None) if frontier else None


def _fronts(method: dict[str, Any], base: float, cap: float) -> list[list[tuple[float, float]]]:
    """The points of each seed; every policy can stay at the base."""
    by_seed: dict[int, list[tuple[float, float]]] = defaultdict(lambda: [(0.0, base)])
    for run in method["runs"]:
        if run["status"] == "done" and run["final"]:
            ends = (run["final"]["kl"]["value"], run["final"]["reward"]["value"])
            points = [*((p["kl"], p["reward"]) for p in run["path"]), ends]
            by_seed[run["seed"]] += [(x, y) for x, y in points if x is not None and y is not None and x <= cap]
    return [by_seed[seed] for seed in sorted(by_seed)]


def draw_attained(ax: Axes, data: dict[str, Any], one: dict[str, Any]) -> None:
    """A method's band from what every seed attains to what one does, a line for half of them, below the frontier."""
    base, cap = _corner(data)
    assert base is not None and cap is not None  # `attained` found none otherwise
    edge = [p["reward"] for p in data["frontier"]["solid"] + data["frontier"]["upper"] if p["kl"] <= cap]
    top = max([base + 1e-3, *edge, *(reward for _, reward in one["one"])])
    limits = (-0.002 * cap, cap), (base - 0.04 * (top - base), top + 0.06 * (top - base))
    root_scale(ax, cap, 0.3)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.set(xlim=limits[0], ylim=limits[1])
    draw_frontier(ax, data["frontier"], limits)
    kl = sorted({0.0, cap, *(x for name in SHARES for x, _ in one[name])})
    every, half, best = ([max((y for x, y in one[name] if x <= at), default=base) for at in kl] for name in SHARES)
    ax.fill_between(kl, every, best, step="post", color=one["colour"], alpha=0.25, linewidth=0, zorder=2)
    ax.step(kl, half, where="post", color=one["colour"], linewidth=1.6, zorder=4)
    ax.set_title(f"{shortened(one['name'])}, n = {one['n']}", fontweight="bold", color=one["colour"], pad=4, y=1.0)
