"""Tables of hyperparameter trials as Markdown: `python -m harness.report.trials DIR...`.

A comparison of methods is fair only with the same number of trials each, so the number is given above each table. A row is
one choice of settings, shown by the settings that vary within its method; the values are means over seeds.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from harness.analysis.columns import COLUMNS, Column, title
from harness.analysis.groups import Entry, Group, apart, counted, estimate, groups, measure
from harness.core.errors import EmptySelection
from harness.core.text import escaped, escaped_lines
from harness.records.read import find_runs
from harness.records.schema import Run

from .tables import Table, interval, markdown

RULE = "The rule: the highest judge with a KL within the task's cap.\n\n"
JUDGE = Column("judge", "Judge", "0 to 1", "up", ".3f", lambda run: measure(run, "judge"))
SHOWN = [*(c for c in COLUMNS if c.key == "reward"), JUDGE, *(c for c in COLUMNS if c.key in ("kl", "efficiency"))]


def chosen(entries: list[Entry]) -> list[Entry]:
    """Select the entries of one method with the highest mean judge score among those whose mean KL is within the cap."""

    def mean(entry: Entry, key: str) -> float | None:
        found = estimate(entry, lambda run: measure(run, key)).interval
        return found.mean if found else None

    caps = {(run.summary["frontier"] or {}).get("kl_cap") for e in entries for run in e.runs if run.summary}
    cap = min((c for c in caps if c), default=None)
    judges = [(mean(e, "judge"), mean(e, "kl")) for e in entries]
    within = [j for j, kl in judges if cap and j is not None and kl is not None and kl <= cap]
    return [
        e
        for e, (j, kl) in zip(entries, judges, strict=True)
        if within and j == max(within) and kl is not None and kl <= (cap or 0)
    ]


def trials_table(group: Group, rule: bool = False) -> Table:
    """One row per choice of settings: means over seeds with 95% t intervals, and with `rule` a mark of the selected ones."""
    notes: list[str] = []
    said = {method: apart([entry.runs for entry in entries]) for method, entries in _by_method(group).items()}
    rows = []
    for method, entries in _by_method(group).items():
        best = chosen(entries) if rule else []
        for entry, words in zip(entries, said[method], strict=True):
            seeds = ", ".join(str(seed) for seed in sorted({run.manifest["seed"] for run in counted(entry)}))
            row = [method, words, seeds, *(interval(estimate(entry, c.of, c.key), c, notes) for c in SHOWN)]
            rows.append([*row, "chosen" if entry in best else ""] if rule else row)
    return Table(["Method", "Settings that vary", "Seeds", *map(title, SHOWN), *(["By the rule"] if rule else [])], rows, notes)


def _by_method(group: Group) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in group.entries:
        found.setdefault(entry.runs[0].manifest["method"], []).append(entry)
    return found


def page(runs: list[Run]) -> str:
    """The trials of all groups, each below its heading; raises EmptySelection if there are none."""
    if not runs:
        raise EmptySelection("no records to make a table of trials from; make some with harness sweep")
    return "\n".join(_section(group) for group in groups(runs))


def _section(group: Group) -> str:
    trials = Counter({method: len(entries) for method, entries in _by_method(group).items()})
    split = group.runs[0].manifest["identity"].get("evaluation", {}).get("split", "unknown")
    count = ", ".join(f"{method} {n}" for method, n in sorted(trials.items()))
    head = f"### {group.task}, preset {group.preset}, {split} prompts\n\nTrials: {count}.\n"
    rule = split == "validation"  # no settings are selected on test prompts
    return f"{head}\n{RULE if rule else ''}{markdown(trials_table(group, rule))}"


def main(folders: list[Path]) -> None:
    runs, problems = find_runs(folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    try:
        print(escaped_lines(page(runs)))
    except EmptySelection as e:
        print(escaped(f"error: {e}"), file=sys.stderr)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [Path("results")])
