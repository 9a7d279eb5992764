"""Tables of hyperparameter trials as Markdown: `python -m harness.report.trials DIR...`.

A comparison of methods is fair only with the same number of trials each, so the number is given above each table. A row is
one choice of settings, shown by the settings that vary within its method; the values are means over seeds.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from harness.analysis.columns import BY_KEY, JUDGE, title
from harness.analysis.groups import Entry, Group, apart, counted
from harness.analysis.study import Study, StudyGroup
from harness.core.errors import EmptySelection
from harness.core.text import escaped, escaped_lines
from harness.records.read import find_runs

from .tables import Table, interval, markdown

RULE = "The rule: the highest judge with a KL within the task's cap.\n\n"
SHOWN = (BY_KEY["reward"], JUDGE, BY_KEY["kl"], BY_KEY["efficiency"])


def chosen(group: StudyGroup, entries: list[Entry]) -> list[Entry]:
    """Select the entries of one method with the highest mean judge score among those whose mean KL is within the cap."""

    def mean(entry: Entry, key: str) -> float | None:
        interval = group.estimate(entry, BY_KEY[key]).interval
        return interval.mean if interval else None

    frontiers = [run.summary.frontier for e in entries for run in e.runs if run.summary]
    cap = min((f.kl_cap for f in frontiers if f and f.kl_cap), default=None)
    judges = [(mean(e, "judge"), mean(e, "kl")) for e in entries]
    within = [j for j, kl in judges if cap and j is not None and kl is not None and kl <= cap]
    return [
        e
        for e, (j, kl) in zip(entries, judges, strict=True)
        if within and j == max(within) and kl is not None and kl <= (cap or 0)
    ]


def trials_table(group: StudyGroup, rule: bool = False) -> Table:
    """One row per choice of settings: means over seeds with 95% t intervals, and with `rule` a mark of the selected ones."""
    notes: list[str] = []
    rows = []
    for method, entries in _by_method(group).items():
        best = chosen(group, entries) if rule else []
        for entry, words in zip(entries, apart([entry.runs for entry in entries]), strict=True):
            seeds = ", ".join(str(seed) for seed in sorted({run.manifest.seed for run in counted(entry)}))
            row = [method, words, seeds, *(interval(group.estimate(entry, c), c, notes) for c in SHOWN)]
            rows.append([*row, "chosen" if entry in best else ""] if rule else row)
    return Table(["Method", "Settings that vary", "Seeds", *map(title, SHOWN), *(["By the rule"] if rule else [])], rows, notes)


def _by_method(group: Group) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in group.entries:
        found.setdefault(entry.runs[0].manifest.method, []).append(entry)
    return found


def page(study: Study) -> str:
    """The trials of all groups, each below its heading; raises EmptySelection if there are none."""
    if not study.runs:
        raise EmptySelection("no records to make a table of trials from; make some with harness sweep")
    return "\n".join(_section(group) for group in study.groups)


def _section(group: StudyGroup) -> str:
    trials = Counter({method: len(entries) for method, entries in _by_method(group).items()})
    split = group.runs[0].manifest.identity.get("evaluation", {}).get("split", "unknown")
    count = ", ".join(f"{method} {n}" for method, n in sorted(trials.items()))
    head = f"### {group.task}, preset {group.preset}, {split} prompts\n\nTrials: {count}.\n"
    rule = split == "validation"  # no settings are selected on test prompts
    return f"{head}\n{RULE if rule else ''}{markdown(trials_table(group, rule))}"


def main(folders: list[Path]) -> None:
    runs, problems = find_runs(folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    try:
        print(escaped_lines(page(Study(runs, problems))))
    except EmptySelection as e:
        print(escaped(f"error: {e}"), file=sys.stderr)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [Path("results")])
