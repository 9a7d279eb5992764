r"""Write the page of results by method from records.

    python docs/tools/methods_page.py docs/results/methods.md --finals results/reference --trials results/trials \
        --shapes results/claims --picture reports/micro/figures/curves-micro-toxicity.png

The page holds a table of finished runs for each task, the comparison with best-of-n at equal KL, the trials behind the
settings, the checks of the papers' claims, and what each method needs. The picture is copied beside the page.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from readme_tables import runs_below, write

from harness.analysis import ranking
from harness.analysis.columns import ARROWS, BY_KEY, Column, title
from harness.analysis.groups import Entry, Group, counted
from harness.analysis.stats import Interval
from harness.analysis.study import Study, StudyGroup
from harness.core import registry
from harness.core.errors import EmptySelection, MissingPrerequisite
from harness.core.process import script
from harness.core.text import plain
from harness.records.schema import Run
from harness.report.learning_rates import counts, on_validation
from harness.report.tables import Table, escape_markdown, interval, markdown, number
from harness.report.trials import page as trials_page
from harness.report.trials import trials_table
from harness.report.verdict import impossible

HEAD = """# Results by method

On each task every method has the same prompts, the same reward and the same compute budget. One rule chose the learning rate
of each method on each task from four trials at the whole budget on validation prompts; `harness/core/presets/micro.toml` says
where its other settings come from. The algorithms are described in [Papers](../papers.md). A command writes this page from the
records:

    {command}

"""
NEEDS = (
    ("sampled_tokens", "samples from the policy"),
    ("scorer_calls", "calls the reward in training"),
    ("document_tokens", "reads the scored corpus"),
    ("beside_flops", "trains a value network"),
)
MIDDLE = "Each method at the middle value of its knob; [Results by task](tasks.md) has the numbers along the whole curve."
BESIDE = Column("beside", "Gain over best-of-n", "reward at equal KL", "up", "+.3f", ranking.beside)
_ORDER = (
    "reward", "judge", "removed", "kl", "efficiency", "beside", "ppl", "distinct_2", "flops", "sampled_tokens", "scorer_calls",
    "own_documents", "seconds",
)  # fmt: skip
SHOWN = tuple(BESIDE if key == "beside" else BY_KEY[key] for key in _ORDER)
BARE = ("flops", "sampled_tokens", "scorer_calls", "seconds")  # costs, which are shown without an interval


def finals_table(group: StudyGroup) -> Table:
    """The table of methods by descending efficiency: means over seeds with 95% t intervals."""
    notes: list[str] = []
    rows = []
    for entry in sorted(group.entries, key=lambda entry: _efficiency(group, entry), reverse=True):
        seeds = ", ".join(str(seed) for seed in sorted({run.manifest.seed for run in counted(entry)}))
        rows.append([entry.name, seeds, *(_cell(group, entry, c, notes) for c in SHOWN)])
    return Table(["Method", "Seeds", *(_title(c) for c in SHOWN)], rows, notes)


def _efficiency(group: StudyGroup, entry: Entry) -> float:
    found = group.estimate(entry, BY_KEY["efficiency"]).interval
    return found.mean if found else -1.0


def _cell(group: StudyGroup, entry: Entry, column: Column, notes: list[str]) -> str:
    found = group.estimate(entry, column)
    if column.key in BARE and found.interval:
        found = found._replace(interval=Interval(found.interval.mean, None, None))
    return interval(found, column, notes)


def _title(column: Column) -> str:
    return title(column) if column.unit else f"{column.title}{ARROWS[column.better]}"


def beside(group: Group) -> list[str]:
    """Sentences that list the methods below, above and not significantly different from best-of-n at equal KL."""
    sorts: dict[bool | None, list[str]] = {False: [], True: [], None: []}
    for entry in group.entries:
        found = ranking.beside_best_of_n(entry)
        if found is not None and registry.attribute("method", entry.runs[0].manifest.method, "trains") is not False:
            sorts[ranking.beats(found)].append(f"{entry.name} ({number(found.mean, '+.3f')})")
    said = {
        False: "Lower reward than best-of-n at equal KL",
        True: "Higher reward than best-of-n at equal KL",
        None: "No significant difference from best-of-n at equal KL",
    }
    return [f"{said[sort]}: {', '.join(names)}." for sort, names in sorts.items() if names]


def above(group: StudyGroup) -> str:
    """The sentence on the number of runs significantly above the frontier, which is impossible for a policy."""
    found = impossible(group)
    if found:
        return f"{len(found)} of {len(group.runs)} runs lie above the frontier by more than its error, which no policy can."
    return f"None of the {len(group.runs)} runs lies above the frontier by more than its error."


def missing(found: Iterable[Group]) -> list[str]:
    """The registered methods without a finished run."""
    have = {entry.runs[0].manifest.method for group in found for entry in group.entries if counted(entry)}
    return sorted(set(registry.table("method")) - have)


def needs_table(finals: list[Run]) -> str:
    """The table of the costs charged to each method, as Markdown, one row per method."""
    lines = ["| Method | " + " | ".join(words for _, words in NEEDS) + " |", "|---|" + ":---:|" * len(NEEDS)]
    for name in sorted(registry.table("method")):
        costs = [run.summary.cost for run in finals if run.summary and run.manifest.method == name]
        cells = ["yes" if any(cost.get(key) for cost in costs) else "" for key, _ in NEEDS]
        lines.append(f"| {escape_markdown(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(finals: list[Run], trials: list[Run], shapes: list[Run], command: str, picture: str | None = None) -> str:
    """The whole page as Markdown, with a link to a picture if given; raises EmptySelection if no run is finished."""
    study = Study(finals)
    if not study.groups:
        raise EmptySelection("no records of finished runs for the page of methods; run harness sweep first")
    shown = [f"![Judge and reward of each method against KL and perplexity, with the frontier]({picture})\n"] if picture else []
    parts = [HEAD.format(command=command), *shown, *(_results(group, trials) for group in study.groups)]
    if absent := missing(study.groups):
        parts.append(f"Methods without records: {', '.join(absent)}.\n")
    other = [run for run in trials if on_validation(run) and not counts(run)]
    chose = [run for run in trials if run not in other]
    parts.append(f"## Trials\n\nThe trials on validation prompts that chose the settings.\n\n{trials_page(Study(chose))}")
    if other:
        chosen = "These chose no learning rate: the preset's file says what they chose."
        parts.append(f"### At other settings than the preset's\n\n{chosen}\n\n{plain_trials(other)}")
    parts.append("## The papers' claims\n\nEach claim of the papers with a verdict from runs: [Claims](claims.md).\n")
    if shapes:
        parts.append("## Ablations\n\nRuns that vary one setting, on the test prompts.\n\n" + trials_page(Study(shapes)))
    return "\n".join([*parts, "## What each method needs\n", needs_table(finals)])


def untried(group: Group, trials: list[Run]) -> list[str]:
    """The sentence on the source of the settings, if the task has no trials of its own."""
    if any(run.manifest.task == group.task for run in trials):
        return []
    return ["No trials were run on this task; its settings are the preset's for every task."]


def plain_trials(runs: list[Run]) -> str:
    """The trials of each task without a mark."""
    return "\n".join(f"{plain(group.task)}:\n\n{markdown(trials_table(group))}" for group in Study(runs).groups)


def _results(group: StudyGroup, trials: list[Run]) -> str:
    """The section of a task; of a study with curves it shows each method at the middle value of its knob."""
    middle = group.at_middle
    said = "\n".join(f"- {sentence}" for sentence in [*beside(middle), above(group), *untried(group, trials)])
    where = f"{MIDDLE}\n\n" if group.curves else ""
    return f"## {plain(group.task)}, preset {plain(group.preset)}\n\n{where}{markdown(finals_table(middle))}\n\n{said}\n"


def main(arguments: list[str]) -> None:
    """Write the page and copy its picture; raises MissingPrerequisite if the picture does not exist."""
    parser = argparse.ArgumentParser(prog="python docs/tools/methods_page.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    for name in ("finals", "trials", "shapes"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=name != "shapes", default=[], help="folders of records")
    parser.add_argument("--picture", type=Path, help="picture of the results, shown at the top")
    args = parser.parse_args(arguments)
    if args.picture and not args.picture.is_file():
        raise MissingPrerequisite(f"no picture {args.picture}; draw it with harness report, or leave out --picture")
    command = "python docs/tools/methods_page.py " + " ".join(arguments)
    text = page(
        runs_below(args.finals), runs_below(args.trials), runs_below(args.shapes), command, args.picture and args.picture.name
    )
    write(args.page, text)
    if args.picture and args.picture.parent != args.page.parent:  # the site includes only pictures in the folder of the page
        shutil.copyfile(args.picture, args.page.parent / args.picture.name)


if __name__ == "__main__":
    script(main)
