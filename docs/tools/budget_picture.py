"""A picture of one method at several budgets: what it removes of the habit, its reward, and its KL, from records.

python docs/tools/budget_picture.py docs/results/small-budget.png results/small-budget
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from readme_tables import runs_below
from transfer_page import keep

from harness.analysis.stats import Z95
from harness.core.errors import EmptySelection
from harness.core.process import script
from harness.records.read import Run
from harness.report.figures.style import STYLE, save_small

TITLES = {"removed": "undesired score removed, %", "reward": "reward", "kl": "KL to base, nats"}
PLAIN = "as in the preset"


class Point(NamedTuple):
    """A finished run: its budget, what sets it apart from the plain one, and each number with half of its 95 % interval."""

    flops: float
    label: str
    numbers: dict[str, tuple[float, float]]
    base_reward: float


def point(run: Run) -> Point:
    """The numbers of a run; the error of what is removed is that of the final policy alone."""
    identity, summary = run.manifest.identity, run.summary
    base, final = summary.base, summary.final
    found = {name: (final[name].value, Z95 * (final[name].stderr or 0)) for name in ("judge", "reward", "kl")}
    judge, half = found.pop("judge")
    undesired = 1 - base["judge"].value
    removed = (100 * (1 - (1 - judge) / undesired), 100 * half / undesired)
    updates = identity["method"]["settings"].get("neutral_updates", 0)
    label = f"{updates} neutral updates first" if updates else PLAIN
    return Point(identity["budget"]["flops"], label, {"removed": removed} | found, base["reward"].value)


def whole(run: Run) -> bool:
    """Whether a finished run has all numbers that are drawn; one that is missing is not zero."""
    needed = [run.summary.final[name] for name in ("judge", "reward", "kl")] + [
        run.summary.base[n] for n in ("judge", "reward")
    ]
    return all(metric.value is not None for metric in needed)


def draw(points: list[Point], path: Path) -> None:
    """Draw each number against the budget, a marker for each setting; raises Unwritable."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(TITLES)), TITLES, strict=True):
            _panel(axes, name, points)
        keep(save_small(figure), path)


def _panel(axes: Any, name: str, points: list[Point]) -> None:
    axes.set_title(TITLES[name])
    base = points[0].base_reward if name == "reward" else 0.0
    axes.axhline(base, color="0.4", lw=0.9, ls="--", label="base policy")
    for color, label in enumerate(dict.fromkeys(p.label for p in points)):
        own = [p for p in points if p.label == label]
        values, halves = zip(*(p.numbers[name] for p in own), strict=True)
        x = [p.flops for p in own]
        axes.errorbar(x, values, halves, color=f"C{color}", marker="os"[color % 2], ms=5, lw=1.2, capsize=3, label=label)
    axes.set(xscale="log", xlabel="budget, FLOPs")
    ticks = sorted({p.flops for p in points})
    axes.set_xticks(ticks, [f"{x:g}".replace("e+", "e") for x in ticks])
    axes.minorticks_off()
    if name == "kl":
        axes.legend(fontsize=8, loc="upper left")


def main(arguments: list[str]) -> None:
    """Write the picture; raises EmptySelection if no run has ended with a score."""
    parser = argparse.ArgumentParser(prog="python docs/tools/budget_picture.py", allow_abbrev=False)
    parser.add_argument("picture", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of records of one method at several budgets")
    args = parser.parse_args(arguments)
    found = (point(run) for run in runs_below(args.folders) if run.summary and whole(run))
    points = sorted(found, key=lambda p: (p.label != PLAIN, p.label, p.flops))
    if not points:
        raise EmptySelection("no run there has ended with a score; run them first, or name another folder")
    draw(points, args.picture)


if __name__ == "__main__":
    script(main)
