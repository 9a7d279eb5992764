r"""Write the page of the methods from records and from the methods' own files.

    python docs/tools/methods_page.py docs/methods.md --finals results/reference --trials results/trials \
        --shapes results/shapes --picture reports/micro/figures/pareto-micro-toxicity.png

The whole page is written: the table of finished runs, which methods best-of-n beats, the trials behind the settings, the
checks of what the papers say, and a card for each method. Nothing heavy is imported; a card is the docstring of its file.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from claims import checks, said
from readme_tables import write

from harness.analysis import ranking
from harness.analysis.columns import ARROWS, COLUMNS, Column, cost, title
from harness.analysis.groups import Entry, Group, counted, estimate, groups, measure
from harness.analysis.stats import Interval
from harness.core import registry
from harness.core.errors import BadData, BenchError, EmptySelection, MissingPrerequisite
from harness.core.text import escaped, plain
from harness.records.read import find_runs
from harness.records.schema import Run
from harness.report.tables import Table, interval, markdown, number
from harness.report.trials import JUDGE
from harness.report.trials import page as trials_page
from harness.report.verdict import impossible

HEAD = """# Methods

On each task every method below was given the same prompts, the same reward and the same budget, and settings that one rule
chose from short trials on validation prompts; `harness/presets/micro.toml` names the exceptions. This page is written by a
command from records and from the methods' own files; no number in it was typed:

    {command}

"""
NEEDS = (
    ("sampled_tokens", "draws its own responses"),
    ("scorer_calls", "asks the scorer while it trains"),
    ("document_tokens", "reads a scored corpus"),
    ("beside_flops", "trains a value network beside the policy"),
)
BESIDE = Column("beside", "Beside best-of-n", "reward at equal KL", "up", "+.3f", ranking.beside)
SCORED = Column("scorer_calls", "Scored", "calls", "down", ".3g", cost("scorer_calls"))
_BY_KEY = {c.key: c for c in (*COLUMNS, JUDGE, BESIDE, SCORED)}
_ORDER = (
    "reward", "judge", "removed", "kl", "efficiency", "beside", "ppl", "distinct_2", "flops", "sampled_tokens", "scorer_calls",
    "seconds",
)  # fmt: skip
SHOWN = tuple(_BY_KEY[key] for key in _ORDER)
BARE = ("flops", "sampled_tokens", "scorer_calls", "seconds")  # spent, not estimated: no interval


def finals_table(group: Group) -> Table:
    """A row a method, nearest to the optimum first: mean over seeds with its 95% t interval."""
    notes: list[str] = []
    rows = []
    for entry in sorted(group.entries, key=_efficiency, reverse=True):
        seeds = ", ".join(str(seed) for seed in sorted({run.manifest["seed"] for run in counted(entry)}))
        rows.append([entry.name, seeds, *(_cell(entry, c, notes) for c in SHOWN)])
    return Table(["Method", "Seeds", *(_title(c) for c in SHOWN)], rows, notes)


def _efficiency(entry: Entry) -> float:
    found = estimate(entry, lambda run: measure(run, "efficiency")).interval
    return found.mean if found else -1.0


def _cell(entry: Entry, column: Column, notes: list[str]) -> str:
    found = estimate(entry, column.of, column.key)
    if column.key in BARE and found.interval:
        found = found._replace(interval=Interval(found.interval.mean, None, None))
    return interval(found, column, notes)


def _title(column: Column) -> str:
    return title(column) if column.unit else f"{column.title}{ARROWS[column.better]}"


def beside(group: Group) -> list[str]:
    """Which methods best-of-n beats at equal KL, which it does not, and which of the two was not shown."""
    sorts: dict[bool | None, list[str]] = {False: [], True: [], None: []}
    for entry in group.entries:
        found = ranking.beside_best_of_n(entry)
        if found is not None and registry.attribute("method", entry.runs[0].manifest["method"], "trains") is not False:
            sorts[ranking.beats(found)].append(f"{entry.name} ({number(found.mean, '+.3f')})")
    said = {
        False: "Best-of-n has more reward at the same KL than",
        True: "More reward than best-of-n at the same KL has",
        None: "No difference from best-of-n at the same KL was shown for",
    }
    return [f"{said[sort]}: {', '.join(names)}." for sort, names in sorts.items() if names]


def above(group: Group) -> str:
    """Whether any run lies where no policy can."""
    found = impossible(group)
    if found:
        return f"Above the frontier beyond its error, which no policy can be: {len(found)} of {len(group.runs)} runs."
    return f"None of the {len(group.runs)} runs is above the frontier beyond its error."


def missing(found: Iterable[Group]) -> list[str]:
    """Listed methods without a finished run."""
    have = {entry.runs[0].manifest["method"] for group in found for entry in group.entries if counted(entry)}
    return sorted(set(registry.table("method")) - have)


class Card(NamedTuple):
    name: str
    text: str
    needs: list[str]


def card(name: str, runs: list[Run]) -> Card:
    """What the method's own file says of it, and what its finished runs were charged for; raises BadData without a text."""
    target = registry.table("method")[name][0].partition(":")[0]
    path = Path(__file__).parents[2] / (target.removeprefix("harness.").replace(".", "/") + ".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise BadData(f"{path} has no docstring; expected the method's source, equation and departures there")
    costs = [run.summary["cost"] for run in runs if run.summary and run.manifest["method"] == name]
    return Card(name, text, [words for key, words in NEEDS if any(c.get(key) for c in costs)])


def card_text(made: Card) -> str:
    needs = "; ".join(made.needs) or "nothing: it does not train"
    lines = [
        line if line.startswith("    ") else line.replace("<", "\\<").replace("*", "\\*") for line in made.text.split("\n")
    ]
    return f"### {made.name}\n\n" + "\n".join(lines) + f"\n\nNeeds: {needs}.\n"


def page(finals: list[Run], trials: list[Run], shapes: list[Run], command: str, picture: str | None = None) -> str:
    """The whole page as Markdown, with a link to a picture where there is one; raises EmptySelection without a finished run."""
    found = groups(finals)
    if not found:
        raise EmptySelection("no records of finished runs for the page of the methods; make them with harness sweep")
    shown = [f"![Judge and reward against KL, a mark a method, with the frontier]({picture})\n"] if picture else []
    parts = [HEAD.format(command=command), *shown, *(_results(group, trials) for group in found)]
    if absent := missing(found):
        parts.append(f"Not in these records: {', '.join(absent)}.\n")
    parts.append("## Trials\n\nThe settings above were chosen from these, on validation prompts.\n\n" + trials_page(trials))
    told = "\n".join(f"- {sentence}" for sentence in _told(finals, shapes))
    varied = "Runs that vary one setting, on the test prompts.\n\n" + trials_page(shapes) if shapes else ""
    parts.append(f"## What the papers say\n\n{told}\n\n{varied}")
    cards = [card_text(card(name, finals)) for name in sorted(registry.table("method"))]
    return "\n".join([*parts, "## Cards\n", *cards])


def _told(finals: list[Run], shapes: list[Run]) -> list[str]:
    """The checks of each task that the shapes are of, or the largest group; a mean over two tasks would say nothing."""
    tasks = sorted({run.manifest["task"] for run in shapes or groups(finals)[0].runs})
    of = {task: [[r for r in runs if r.manifest["task"] == task] for runs in (finals, shapes)] for task in tasks}
    made = [(task, check) for task in tasks for check in checks(*of[task])]
    shown = {check.claim: task for task, check in reversed(made) if check.holds is not None}
    # What one task shows is not said to lack on another, and what none shows is said once.
    return [f"{task}: {said(c)}" for task, c in made if c.holds is not None or shown.get(c.claim, tasks[0]) == task]


def untried(group: Group, trials: list[Run]) -> list[str]:
    """Says that settings come from the trials of other tasks, where the task has none of its own."""
    tried = sorted({run.manifest["task"] for run in trials})
    if group.task in tried:
        return []
    return [f"No trials on this task: the settings are those that trials on {', '.join(tried)} chose."]


def _results(group: Group, trials: list[Run]) -> str:
    said = "\n".join(f"- {sentence}" for sentence in [*beside(group), above(group), *untried(group, trials)])
    return f"## {plain(group.task)}, preset {plain(group.preset)}\n\n{markdown(finals_table(group))}\n{said}\n"


def _read(folders: list[Path]) -> list[Run]:
    runs, problems = find_runs(folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    return runs


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python docs/tools/methods_page.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    for name in ("finals", "trials", "shapes"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=name != "shapes", default=[], help="folders of records")
    parser.add_argument("--picture", type=Path, help="of the finals, to be shown on top")
    args = parser.parse_args(arguments)
    if args.picture and not args.picture.is_file():
        raise MissingPrerequisite(f"no picture {args.picture}; draw it with harness report, or leave --picture out")
    picture = os.path.relpath(args.picture, args.page.parent) if args.picture else None
    command = "python docs/tools/methods_page.py " + " ".join(arguments)
    text = page(_read(args.finals), _read(args.trials), _read(args.shapes), command, picture)
    write(args.page, text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BenchError as e:
        print(escaped(f"error: {e}"), file=sys.stderr)
        sys.exit(e.exit_code)
