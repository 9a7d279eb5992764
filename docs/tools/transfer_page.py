r"""Write the page that compares the methods' numbers on two models: does the small world predict the real one?

    python docs/tools/transfer_page.py docs/results/transfer.md --toy results/reference --real results/small \
        --picture docs/results/transfer.png

For each task that both studies have it gives the rank correlation of the methods' numbers, with an interval, and each method's
place in both. A method counts at the middle value of its knob where it ran at several; one that a study lacks is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import atanh, sqrt, tanh
from pathlib import Path
from typing import Any, NamedTuple

from readme_tables import runs_below, write
from scipy.stats import rankdata, spearmanr

from harness.analysis.columns import BY_KEY
from harness.analysis.groups import Entry
from harness.analysis.stats import Z95
from harness.analysis.study import Study, StudyGroup
from harness.core.errors import EmptySelection, Unwritable
from harness.core.process import script
from harness.core.text import plain
from harness.report.figures.style import STYLE, save_small
from harness.report.tables import MISSING, Table, markdown, number
from harness.report.trials import at_cap, cap_of

FEWEST = 4  # methods of which a correlation is given
HEAD = """# Does the toy predict the real model?

The methods' numbers on the micro world, each at the middle value of its knob, beside those on a pretrained language model
({real}), at the value of its preset. A command writes this page from the records:

    {command}

*Judge at the cap* is the held-out judge's score at the task's KL cap; beyond it that of a mixture with the base policy, whose
KL is at most the cap. *Efficiency* is the least KL that any policy needs for the reward, over the KL. The correlation is
Spearman's; its 95 % interval is over methods (Bonett and Wright 2000, Psychometrika 65). Errors of the numbers lower it.

"""
FEW = f"{MISSING}: fewer than {FEWEST} methods with both numbers, or all equal.\n\n"


class Quantity(NamedTuple):
    """A number of a method, by which methods are ranked; more is better."""

    title: str
    digits: str
    of: Callable[[StudyGroup, Entry], float | None]


class Placed(NamedTuple):
    """A method with its number and its rank (1 is best) on both models."""

    method: str
    toy: float
    real: float
    ranks: tuple[float, float]

    @property
    def apart(self) -> float:
        return self.ranks[1] - self.ranks[0]


def _judge(group: StudyGroup, entry: Entry) -> float | None:
    found = at_cap(group, entry, cap_of(group.entries))
    return None if found is None else found.judge


def _efficiency(group: StudyGroup, entry: Entry) -> float | None:
    found = group.estimate(entry, BY_KEY["efficiency"]).interval
    return None if found is None else found.mean


QUANTITIES = (Quantity("Judge at the cap", ".3f", _judge), Quantity("Efficiency", ".2f", _efficiency))


def placed(quantity: Quantity, toy: StudyGroup, real: StudyGroup) -> list[Placed]:
    """The methods with this number in both studies, those first whose rank differs most."""
    numbers = [
        {e.runs[0].manifest.method: x for e in g.at_middle.entries if (x := quantity.of(g.at_middle, e)) is not None}
        for g in (toy, real)
    ]
    both = sorted(numbers[0].keys() & numbers[1].keys())
    ranks = [rankdata([-found[m] for m in both]) if both else [] for found in numbers]
    made = [Placed(m, numbers[0][m], numbers[1][m], (float(a), float(b))) for m, a, b in zip(both, *ranks, strict=True)]
    return sorted(made, key=lambda p: (-abs(p.apart), p.method))


def correlation(found: list[Placed]) -> tuple[float, float, float] | None:
    """Spearman's rank correlation with its 95 % interval; None of too few methods, or if one side does not vary."""
    if len(found) < FEWEST or any(len({p.ranks[side] for p in found}) == 1 for side in (0, 1)):
        return None
    rho = float(spearmanr([p.toy for p in found], [p.real for p in found]).statistic)
    error = sqrt((1 + rho**2 / 2) / (len(found) - 3))
    centre = atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    return rho, tanh(centre - Z95 * error), tanh(centre + Z95 * error)


def section(toy: StudyGroup, real: StudyGroup) -> str:
    """The section of a task: the correlations, and the methods by how far their ranks differ."""
    parts, rows = [], []
    for quantity in QUANTITIES:
        found = placed(quantity, toy, real)
        r = correlation(found)
        told = MISSING if r is None else f"{number(r[0], '.2f')} [{number(r[1], '.2f')}, {number(r[2], '.2f')}]"
        rows.append([quantity.title, str(len(found)), told])
        parts.append(f"### {quantity.title}\n\n{markdown(_methods(quantity, found))}")
    summary = markdown(Table(["Number", "Methods", "Rank correlation"], rows, []))
    few = (
        f"{MISSING}: fewer than {FEWEST} methods with both numbers, or all equal.\n\n"
        if any(MISSING in r for r in rows)
        else ""
    )
    return f"## {plain(toy.task)}\n\n{summary}\n{few}" + "\n".join(parts)


def _methods(quantity: Quantity, found: list[Placed]) -> Table:
    header = ["Method", "Toy", "Rank", "Real", "Rank", "Places lost"]
    rows = [
        [p.method, number(p.toy, quantity.digits), f"{p.ranks[0]:g}", number(p.real, quantity.digits), f"{p.ranks[1]:g}",
         number(p.apart, "+g")]
        for p in found
    ]  # fmt: skip
    return Table(header, rows, [])


def pairs(toy: Study, real: Study) -> list[tuple[StudyGroup, StudyGroup]]:
    """The groups of the same task in both studies; raises EmptySelection if there is none."""
    first = {group.task: group for group in toy.groups}
    found = [(first[group.task], group) for group in real.groups if group.task in first]
    if not found:
        raise EmptySelection("the two studies have no task in common; give records of the same tasks with --toy and --real")
    return found


def page(found: list[tuple[StudyGroup, StudyGroup]], command: str, picture: str | None) -> str:
    """The whole page as Markdown."""
    models = sorted({str(real.world.get("model", {}).get("name") or real.preset) for _, real in found})
    shown = [f"![Ranks of the methods by the judge at the cap on both models]({picture})\n"] if picture else []
    head = HEAD.format(real=plain(", ".join(models)), command=command)
    return "\n".join([head, *shown, *(section(toy, real) for toy, real in found)])


def draw(found: list[tuple[StudyGroup, StudyGroup]], path: Path) -> None:
    """Draw each task's ranks by the judge's score at the cap on both models, a line a method; raises Unwritable."""
    import matplotlib
    from matplotlib.figure import Figure

    ranked = [(toy.task, placed(QUANTITIES[0], toy, real)) for toy, real in found]
    with matplotlib.style.context(["default", STYLE]):
        height = 0.8 + 0.2 * max(len(methods) for _, methods in ranked)
        figure = Figure(figsize=(5.6 * len(found), height), layout="constrained")
        for axes, (task, methods) in zip(figure.subplots(1, len(found), squeeze=False)[0], ranked, strict=True):
            _panel(axes, task, methods)
        keep(save_small(figure), path)


def keep(content: bytes, path: Path) -> None:
    """Write a picture; raises Unwritable."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _panel(axes: Any, task: str, found: list[Placed]) -> None:
    axes.set_title(f"{plain(task)}: rank by the judge at the cap")
    axes.set(xlim=(-0.9, 1.9), ylim=(len(found) + 0.7, -0.6))
    axes.axis("off")
    for x, words, side in ((0, "micro world", "right"), (1, "pretrained model", "left")):
        axes.text(x, -0.1, words, ha=side, fontsize=8, fontweight="bold")
    for place, p in enumerate(sorted(found, key=lambda p: p.ranks[0]), 1):
        there = sorted(found, key=lambda p: p.ranks[1]).index(p) + 1  # ties side by side, not on one line
        strong = abs(p.apart) > len(found) / 4
        axes.plot([0.03, 0.97], [place, there], color="C0" if strong else "0.6", lw=1.6 if strong else 0.9, marker="o", ms=3)
        axes.text(0, place, f"{p.method}  {number(p.toy, '.3f')}", ha="right", va="center", fontsize=8)
        axes.text(1, there, f"{number(p.real, '.3f')}  {p.method}", ha="left", va="center", fontsize=8)


def main(arguments: list[str]) -> None:
    """Write the page and its picture; raises EmptySelection if the studies share no task."""
    parser = argparse.ArgumentParser(prog="python docs/tools/transfer_page.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    parser.add_argument("--toy", type=Path, nargs="+", required=True, help="folders of records on the micro world")
    parser.add_argument("--real", type=Path, nargs="+", required=True, help="folders of records on a pretrained model")
    parser.add_argument("--picture", type=Path, help="picture of both judges' scores, which is drawn anew")
    args = parser.parse_args(arguments)
    found = pairs(*(Study(runs_below(folders)) for folders in (args.toy, args.real)))
    if args.picture:
        draw(found, args.picture)
    command = "python docs/tools/transfer_page.py " + " ".join(arguments)
    write(args.page, page(found, command, args.picture and args.picture.name))


if __name__ == "__main__":
    script(main)
