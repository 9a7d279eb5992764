"""Attainment panels: the reward that a share of a method's seeds reaches within each KL, during or at the end of training.

A mean of end points hides a method that works in two seeds of three; here the seeds form a band below the frontier.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.analysis.curves.attainment import SHARES, corner

from .labels import shortened
from .panels import draw_frontier, root_scale


def draw_attained(ax: Axes, data: dict[str, Any], one: dict[str, Any]) -> None:
    """Draw a method's band from the reward attained by every seed to that of one, the line of half, and the frontier."""
    base, cap = corner(data)
    assert base is not None and cap is not None  # otherwise `attained` is empty
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
    ax.set_xlabel("KL to base, nats", fontsize=7.5, labelpad=1)
    ax.set_ylabel("reward attained", fontsize=7.5, labelpad=1)
    ax.set_title(f"{shortened(one['name'])}, n = {one['n']}", fontweight="bold", color=one["colour"], pad=4, y=1.0)
