"""Placement of labels without overlap."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

LABEL_SIZE = 7.5


def far_box(edge: float, bottom: float, words: str) -> Box:
    return edge - 4 - len(words) * LABEL_SIZE * 0.56, bottom, edge - 4, bottom + LABEL_SIZE * 1.1


def shortened(name: str) -> str:
    """A name shortened to fit beside a point."""
    return name if len(name) <= 18 else name[:17] + "…"


Box = tuple[float, float, float, float]


def free(at: tuple[float, ...], width: float, height: float, taken: list[Box], inside: Box) -> tuple[Box, tuple] | None:
    """The first free position around a point, inside the axes, and its offset from the point (both in points)."""
    x, y = at
    if not (isfinite(x) and isfinite(y)):
        return None
    for dx, dy in _around(width, height):
        box = (x + dx, y + dy, x + dx + width, y + dy + height)
        within = box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]
        if within and not any(meet(box, other) for other in taken):
            return box, (dx, dy)
    return None


def _around(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Candidate positions of a label around its point, nearest and most usual first."""
    for reach in (4, 9, 15):
        yield from ((reach, reach), (-reach - width, reach), (reach, -reach - height), (-reach - width, -reach - height))
        yield from ((-width / 2, reach + 2), (-width / 2, -reach - height - 2))
        yield from ((reach + 3, -height / 2), (-reach - 3 - width, -height / 2))


def meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
