"""Styles of methods in all figures and legends: families share a hue, members differ in shade and marker.

All colours have a contrast of 4.5:1 or more on white, as names are written in them, and no two members of a family share a
marker, so that neither a colour-blind reader nor a grey print depends on hue.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.figure import Figure

from harness.core import registry

OTHERS = "other"  # a method without a family, or with an unknown one
HUES = {
    "controls": "#5f5f5f",
    "at decoding": "#8a6a00",
    "likelihood, weighted or conditioned": "#0072b2",
    "policy gradients": "#b84c00",
    "preferences": "#00875f",
    "pushing bad text down": "#aa4488",
    OTHERS: "#5a4fcf",
}
SHADES = (1.0, 0.72, 0.5)  # lightness relative to the hue: the hue itself and darker shades, which keep the contrast
MARKERS = "osD^vP<>pX"
GLYPHS = dict(zip(MARKERS, "●■◆▲▼✚◀▶⬟✖", strict=True))  # the same in text
SMALL_DPI = 110  # dpi of the pictures of report.md: 1034 pixels for a sheet with two columns
INK, GREY, SHADE = "#222222", "#6b6b6b", "#ececec"


class Look(NamedTuple):
    """A method's family, colour (#rrggbb) and matplotlib marker."""

    family: str
    colour: str
    marker: str


def family(method: str) -> str:
    """The family of a method's class; OTHERS for a file or a method that is not installed."""
    found = registry.attribute("method", method, "family")
    return found if found in HUES else OTHERS


def families() -> dict[str, list[str]]:
    """The methods of each family in the order of their table."""
    found: dict[str, list[str]] = {name: [] for name in HUES}
    for method in registry.table("method"):
        found[family(method)].append(method)
    return found


def looks(methods: Sequence[str]) -> list[Look]:
    """The style of each method, or of each choice of its settings, in the given order.

    A listed method looks the same in every figure; only further choices of settings take what comes after.
    """
    seen: Counter[str] = Counter()
    listed: set[str] = set()
    known = families()
    found = []
    for method in methods:
        name = family(method)
        members = known[name] if name != OTHERS else []
        if method in members and method not in listed:
            i = members.index(method)
            listed.add(method)
        else:
            i = len(members) + seen[name]
            seen[name] += 1
        found.append(Look(name, _shade(HUES[name], SHADES[i % len(SHADES)]), MARKERS[i % len(MARKERS)]))
    return found


def _shade(colour: str, share: float) -> str:
    parts = (round(int(colour[i : i + 2], 16) * share) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


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


def save(figure: Figure, kind: str) -> bytes:
    """Encode a figure as "png" (150 dpi) or "svg", with equal bytes for equal figures."""
    out = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()


def save_small(figure: Figure) -> bytes:
    """Encode a figure as a small PNG for report.md: 110 dpi and 256 colours, a quarter of the size of `save`."""
    from PIL import Image

    out, small = io.BytesIO(), io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(out, format="png", dpi=SMALL_DPI, metadata={"Software": None})
    method = Image.Quantize.MAXCOVERAGE  # keeps rare colours, as of a name; one step of k-means gives large areas theirs back
    image = Image.open(out).convert("RGB").quantize(256, method=method, kmeans=1, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()
