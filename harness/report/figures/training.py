"""Training panels: one small panel per scalar that a method yielded, by update, one line per run."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.analysis.scalars import Trace
from harness.core.text import plain

from .labels import shortened
from .ticks import Ticks

FEW = 20  # values of which all are shown: of so few the largest is no spike


def draw_trace(ax: Axes, trace: Trace, colour: str) -> None:
    """Draw the lines of one scalar; the axis covers the central 98% of the values, so that spikes do not flatten the rest."""
    values = sorted(value for line in trace.lines for _, value in line)
    last = len(values) - 1
    low, high = values[int(0.01 * last)], values[int(0.99 * last) if last >= FEW else last]
    room = 0.08 * (high - low) or max(abs(low) * 0.05, 1e-3)
    for line in trace.lines:
        ax.plot([update for update, _ in line], [value for _, value in line], color=colour, linewidth=0.9, alpha=0.75)
    ax.set_ylim(low - room, high + room)
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(Ticks())
    ax.set_xlabel("update", fontsize=7.5, labelpad=1)
    title = f"{shortened(trace.method)}: {plain(trace.name)[:20]}"
    ax.set_title(title, fontweight="bold", fontsize=8, color=colour, pad=4, y=1.0)
