"""Probe panels: the judge at each point of a probe, one line per method, each named at its end."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.analysis.curves.probes import YARDSTICKS, Probing
from harness.core.text import plain

from .curves import JUDGE, name_ends
from .panels import Note
from .ticks import Ticks

REFERENCE = {"base": ":", "oracle": "--"}
LEAST = 0.3  # of the judge's range
TITLES = {
    "relearn_clean": "Learning from harmless text",
    "relearn_habit": "Learning from text with the habit",
    "quantize": "Rounded weights",
    "sample_more": "The worst of n responses",
    "prompt_search": "Prompts searched for",
    "decode": "Other decodings",
    "no_prefix": "Without the control token",
    "downstream": "Downstream tasks",
}
LABELS = {"downstream": "right answers"}  # what the number is, where it is not the judge's score


def title_of(probing: Probing) -> str:
    """The title of a probe's panel."""
    return TITLES.get(probing.probe, plain(probing.probe))


def _limits(probing: Probing) -> tuple[float, float]:
    """The range of the judge, at least LEAST wide, so that noise does not look like an effect."""
    found = [y for m in probing.methods for p in m.points if p is not None for y in p if y is not None] or [0.0, 1.0]
    low, high = min(found), max(found)
    room = 0.04 * max(high - low, LEAST)
    return min(low, max(0.0, high - LEAST)) - room, max(high, min(1.0, low + LEAST)) + room


def draw_probe(ax: Axes, probing: Probing, methods: list[str], colours: Mapping[str, str], tag: str) -> list[Note]:
    """Draw a probe and return the tooltips; `methods` are those of the figures, in their order, with their colours.

    The base policy and the oracle are reference lines: dashed, without markers.
    """
    ax.set_title(title_of(probing), fontweight="bold", pad=8, y=1.0)
    ax.set(xlabel=probing.unit, ylabel=LABELS.get(probing.probe, JUDGE))
    names = [plain(name).replace(" ", "\n") for name in probing.at]
    ax.set_xticks(range(len(probing.at)), names, fontsize=7.5)
    ax.set_xlim(-0.15, len(probing.at) - 0.85)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(Ticks())
    ax.set_ylim(*_limits(probing))
    what = LABELS.get(probing.probe, "judge")
    notes, ends = [], []
    for found in probing.methods:
        i, colour = methods.index(found.method), colours[found.method]
        known = [(x, point) for x, point in enumerate(found.points) if point is not None]
        if not known or (len(probing.at) > 1 and [x for x, _ in known] == [0]):  # there was nothing to take away
            continue
        xs, means = [x for x, _ in known], [point.mean for _, point in known]
        if all(point.low is not None for _, point in known):
            low, high = [point.low or 0.0 for _, point in known], [point.high or 0.0 for _, point in known]
            ax.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0, gid=f"{tag}-m{i}-b")
        reference = found.method in YARDSTICKS
        ax.plot(xs, means, REFERENCE[found.method] if reference else "-", color=colour, linewidth=1.2, gid=f"{tag}-m{i}")
        size = 0.01 if reference and len(xs) > 1 else 13  # still there for the tooltip
        ax.scatter(xs, means, s=size, color=colour, edgecolors="white", linewidths=0.4, zorder=5, gid=f"{tag}-m{i}-a")
        texts = [f"{found.method}, {probing.at[x]} {probing.unit}: {what} {point.mean:.3f}" for x, point in known]
        notes.append(Note(f"{tag}-m{i}-a", texts))
        ends.append((i, {"name": found.method, "colour": colour}, (float(xs[-1]), means[-1])))
    name_ends(ax, ends, tag)
    return notes
