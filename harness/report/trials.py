"""Tables of hyperparameter trials as Markdown: `python -m harness.report.trials DIR...`.

A comparison of methods is fair only with the same number of trials each, so the number is given above each table. A row is
one choice of settings, shown by the settings that vary within its method; the values are means over seeds.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import hypot, inf, sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from harness.analysis.columns import BY_KEY, JUDGE, title
from harness.analysis.groups import Entry, Group, apart, counted, measure
from harness.analysis.study import Study, StudyGroup
from harness.analysis.terms import PromptTerms
from harness.core.errors import EmptySelection
from harness.core.process import script
from harness.core.text import escaped, escaped_lines
from harness.records.read import find_runs

from .tables import Table, interval, markdown

RULE = """The rule: the highest judge at the task's KL cap; of the trials within one standard error of that judge, the one of
lowest KL. A trial beyond the cap counts with the judge of a mixture: the base policy answers a prompt in place of the policy so
often that the KL of the two together is at most the cap. The standard error is that of the difference, with prompts paired.

"""
SHOWN = (BY_KEY["reward"], JUDGE, BY_KEY["kl"], BY_KEY["efficiency"])


class Trial(NamedTuple):
    """One choice of settings: its judge score at the cap, its KL in nats, and the share of responses it gives there.

    KL is convex, so the policy that answers with probability `share` in place of the base has at most `share` times its KL.
    """

    entry: Entry
    judge: float
    kl: float
    share: float


def chosen(group: StudyGroup, entries: list[Entry]) -> Entry | None:
    """Select one of the entries of a method by the rule; None if no entry has both a judge score and a KL."""
    found = [trial for entry in entries if (trial := at_cap(group, entry, cap_of(entries))) is not None]
    if not found:
        return None
    best, prompts = max(found, key=lambda trial: trial.judge), PromptTerms()
    tied = [trial for trial in found if best.judge - trial.judge <= difference_error(best, trial, prompts)]
    return min(tied, key=lambda trial: trial.kl).entry


def cap_of(entries: list[Entry]) -> float:
    """The KL cap of the task that these entries are of, nats; infinity if no record has one."""
    frontiers = [run.summary.frontier for entry in entries for run in entry.runs if run.summary]
    return min((f.kl_cap for f in frontiers if f and f.kl_cap), default=inf)


def at_cap(group: StudyGroup, entry: Entry, cap: float) -> Trial | None:
    """An entry at the cap, beyond it as a mixture with the base policy; None without a judge score and a KL."""
    judge, kl = (group.estimate(entry, BY_KEY[key]).interval for key in ("judge", "kl"))
    bases = [value for run in counted(entry) if (value := measure(run, "judge", "base").value) is not None]
    if judge is None or kl is None or not bases:
        return None
    share, base = min(1.0, cap / kl.mean) if kl.mean > 0 else 1.0, fmean(bases)
    return Trial(entry, base + share * (judge.mean - base), kl.mean, share)


def difference_error(a: Trial, b: Trial, prompts: PromptTerms) -> float:
    """Standard error of the difference of two trials' judge scores at the cap, over prompts paired.

    Without scores of each prompt it is that of two independent means, from the error recorded with each; an unknown one is 0.
    """
    if a is b:
        return 0.0
    runs = [counted(a.entry), counted(b.entry)]
    judge, base = prompts.table(runs, "judge"), prompts.table(runs, "base_judge")
    if judge is not None and base is not None:
        one, two = (base[i] + trial.share * (judge[i] - base[i]) for i, trial in enumerate((a, b)))
        return float((one - two).std(ddof=1)) / sqrt(len(one))
    return hypot(*(t.share * fmean([measure(run, "judge").stderr or 0.0 for run in counted(t.entry)]) for t in (a, b)))


def trials_table(group: StudyGroup, rule: bool = False) -> Table:
    """One row per choice of settings: means over seeds with 95% t intervals, and with `rule` a mark of the selected ones."""
    notes: list[str] = []
    rows = []
    for method, entries in by_method(group).items():
        best = chosen(group, entries) if rule else None
        for entry, words in zip(entries, apart([entry.runs for entry in entries]), strict=True):
            seeds = ", ".join(str(seed) for seed in sorted({run.manifest.seed for run in counted(entry)}))
            row = [method, words, seeds, *(interval(group.estimate(entry, c), c, notes) for c in SHOWN)]
            rows.append([*row, "chosen" if entry is best else ""] if rule else row)
    return Table(["Method", "Settings that vary", "Seeds", *map(title, SHOWN), *(["By the rule"] if rule else [])], rows, notes)


def by_method(group: Group) -> dict[str, list[Entry]]:
    """The entries of a group by method."""
    found: dict[str, list[Entry]] = {}
    for entry in group.entries:
        found.setdefault(entry.runs[0].manifest.method, []).append(entry)
    return found


def page(study: Study) -> str:
    """The trials of all groups, each below its heading; raises EmptySelection if there are none."""
    if not study.runs:
        raise EmptySelection("no records to make a table of trials from; make some with harness sweep")
    return "\n".join(_section(group) for group in study.groups)


def split_of(group: Group) -> str:
    """The split of the prompts that all runs of a group are measured on."""
    return str(group.runs[0].manifest.identity.get("evaluation", {}).get("split", "unknown"))


def _section(group: StudyGroup) -> str:
    trials = Counter({method: len(entries) for method, entries in by_method(group).items()})
    count = ", ".join(f"{method} {n}" for method, n in sorted(trials.items()))
    head = f"### {group.task}, preset {group.preset}, {split_of(group)} prompts\n\nTrials: {count}.\n"
    rule = split_of(group) == "validation"  # no settings are selected on test prompts
    return f"{head}\n{RULE if rule else ''}{markdown(trials_table(group, rule))}"


def main(folders: list[Path]) -> None:
    """Print the trials of some folders; raises EmptySelection if there are none."""
    runs, problems = find_runs(folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    print(escaped_lines(page(Study(runs, problems))))


if __name__ == "__main__":
    script(lambda words: main([Path(word) for word in words] or [Path("results")]))
