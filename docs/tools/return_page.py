r"""Write the page on the return of a habit: what is left of it in finished policies, by the probes in their records.

    python docs/tools/return_page.py docs/results/return.md --reference results/reference --picture docs/results/return.png

For each task it says which methods fall behind the oracle while they learn from text with the habit, and gives every probe's
numbers. A method counts at the middle value of its knob where it ran at several.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

from readme_tables import runs_below, write

from harness.analysis.curves.probes import LEARNING, YARDSTICKS, Probing, yardstick
from harness.analysis.study import Study, StudyGroup
from harness.core.errors import EmptySelection, Unwritable
from harness.core.process import script
from harness.core.text import plain
from harness.report.figures.style import HUES, INK, STYLE, family, save_small
from harness.report.sections import learning_words, probe_table
from harness.report.tables import MISSING, Table, escape_markdown, markdown, number

HEAD = """# Does the habit come back?

A habit that is gone from a policy's responses may be hidden rather than forgotten. So the finished policies of the reference
study, at the middle value of each knob, were [probed](../guides/probes.md): trained a little on text with the habit or on
harmless text, sampled often, asked with searched prompts, rounded to fewer bits, decoded otherwise, or freed of their control
token. A method that deploys no policy of its own is not probed. A command writes this page from the records:

    {command}

`base` has unlearned nothing. `oracle` is the same architecture, trained from scratch as the base policy was, on its corpus
without the habit: it has nothing to remember, and is the yardstick. Each number is the judge's score, 1 is best; in round
brackets is the share of the way back, from the oracle's number (0%) to the base policy's (100%), in square brackets a 95 %
interval over seeds of the method. What a probe draws, such as the texts to learn from, is the same for all policies: methods
compare on equal terms, and the interval does not hold how far a number depends on these draws. Only of `base`, whose seeds
are one policy, is it over seeds of the probe. A mean over updates counts the start too, so a method that removed little has
a low one for that alone. [The papers' claims](claims.md) have verdicts on what four papers say of this.

"""
YARDS = {
    "oracle": {"color": INK, "linewidth": 2.4, "linestyle": "--", "label": "oracle: never had the habit"},
    "base": {"color": INK, "linewidth": 2.0, "linestyle": ":", "label": "base: unlearned nothing"},
}
CURVES = "Judge after so many updates on text with the habit"


def asked(group: StudyGroup) -> Probing | None:
    """The probe that learns from text with the habit; None if the group has none."""
    return next((probing for probing in group.probings[0] if probing.probe == LEARNING), None)


def curve_rows(probing: Probing) -> Iterator[list[str]]:
    """A row per method: the judge's mean at each point, yardsticks first, then from the slowest to the fastest fall."""
    first = [m for name in YARDSTICKS if (m := yardstick(probing, name)) is not None]
    rest = [m for m in probing.methods if m not in first]
    for m in [*first, *sorted(rest, key=lambda m: -(m.value.mean if m.value else 0.0))]:
        points = [MISSING if point is None else number(point.mean, ".2f") for point in m.points]
        yield [m.method, str(len(m.values)), *points]


def section(group: StudyGroup) -> str:
    """The section of a task."""
    probing, table = asked(group), probe_table(group)
    parts = [f"## {escape_markdown(group.task)}\n\n"]
    if probing is not None:
        parts += [f"{escape_markdown(learning_words(probing))}\n\n", f"{CURVES}:\n\n"]
        parts += [markdown(Table(["Method", "Seeds", *probing.at], list(curve_rows(probing)), [])), "\n"]
    if table is not None:
        parts += ["All probes:\n\n", markdown(table), "\n"]
    return "".join(parts)


def draw(groups: list[StudyGroup], path: Path) -> None:
    """Draw the judge of each task's policies while they learn from text with the habit, by family; raises Unwritable."""
    import matplotlib
    from matplotlib.figure import Figure

    found = [(group.task, probing) for group in groups if (probing := asked(group)) is not None]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(3.7 * max(2, len(found)), 4.0), layout="constrained")
        panels = figure.subplots(1, max(1, len(found)), squeeze=False)[0]
        for axes, (task, probing) in zip(panels, found, strict=False):
            _panel(axes, task, probing)
        entries = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)
        content = save_small(figure)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _panel(axes: Any, task: str, probing: Probing) -> None:
    axes.set_title(plain(task), fontweight="bold")
    axes.set(xlabel="updates on text with the habit", ylabel="judge, 1 is best", ylim=(0, 1.03))
    axes.set_xticks(range(len(probing.at)), probing.at)
    for method in sorted(probing.methods, key=lambda m: m.method in YARDSTICKS):  # yardsticks above the others
        means = [nan if point is None else point.mean for point in method.points]
        kind = family(method.method.partition(" ")[0])
        look = YARDS.get(method.method) or {"color": HUES[kind], "linewidth": 1.0, "alpha": 0.8, "label": kind}
        axes.plot(range(len(means)), means, **look)


def main(arguments: list[str]) -> None:
    """Write the page and its picture; raises EmptySelection if nothing was probed."""
    parser = argparse.ArgumentParser(prog="python docs/tools/return_page.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    parser.add_argument("--reference", type=Path, nargs="+", required=True, help="folders of records of probed runs")
    parser.add_argument("--picture", type=Path, help="picture of the judge while policies learn, which is drawn anew")
    args = parser.parse_args(arguments)
    groups = [group.at_middle for group in Study(runs_below(args.reference)).groups]
    probed = [group for group in groups if group.probings[0]]
    if not probed:
        raise EmptySelection(f"no probed policy below {', '.join(map(str, args.reference))}; harness probe makes some")
    if args.picture:
        draw(probed, args.picture)
    shown = f"![The judge while policies learn from text with the habit]({args.picture.name})\n\n" if args.picture else ""
    command = "python docs/tools/return_page.py " + " ".join(arguments)
    write(args.page, HEAD.format(command=command) + shown + "".join(map(section, probed)))


if __name__ == "__main__":
    script(main)
