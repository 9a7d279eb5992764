"""The page of claims: a verdict for each claim and task with its figures, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, groupby
from typing import NamedTuple

from harness.report.tables import escape_markdown, number

from .catalogue import Claim
from .records import Records
from .rule import FAILS, HOLDS, OPEN, Finding, Missing, Outcome, Verdict, all_of

HEAD = """# The papers' claims

{counts} A command writes this page from the records:

    {command}

**The rule.** Each figure is a difference of two methods or settings with its 95 % interval over seeds, and over
prompts where all runs answer the same ones. A claim *holds* if the interval excludes zero on the claimed side. It
*does not hold* if the interval lies on the other side, or excludes any difference of practical size on the claimed
side. Else the runs *cannot tell*. A claim that two are equal holds if the interval lies within the practical size,
and does not if it lies beyond. A claim of several parts holds if each does. No correction for the number of claims is
made: of forty claims without any truth one would be said to hold by chance.

The habit is measured by the judge, which no method trains on. *Smallest* is the true difference that four in five
such studies would show, by the noncentral t distribution with the standard error that was found; *practical* is the
difference of practical size. Methods of the reference study stand at the middle value of their knob unless another is
named; claims on pretraining are tried from scratch, those on the return of the habit by probes of the finished policies,
where `oracle` is the base policy's own training without the habit. The models are small and the data is synthetic, so a
claim that does not hold here may hold at the papers' scale.
"""


NOT_RUN = "cannot tell: not run"


class Tried(NamedTuple):
    """A claim on one task with its outcomes and verdict."""

    claim: Claim
    task: str
    outcomes: list[Outcome]
    verdict: Verdict


def tried(claims: Sequence[Claim], records: Records) -> list[Tried]:
    """Every claim on each of its tasks, in the order of the catalogue."""
    return [_try(claim, task, records) for claim in claims for task in claim.tasks]


def _try(claim: Claim, task: str, records: Records) -> Tried:
    parts = [(evidence, evidence.outcomes(records, task)) for evidence in claim.evidence]
    verdict = all_of([evidence.verdict(outcomes) for evidence, outcomes in parts])
    return Tried(claim, task, list(chain.from_iterable(outcomes for _, outcomes in parts)), verdict)


def page(found: Sequence[Tried], command: str, picture: str | None = None) -> str:
    """The whole page; the picture, if given, is shown with the claims on the posterior."""
    parts = [HEAD.format(counts=_counts(found), command=command)]
    for paper, rows in groupby(found, key=lambda row: row.claim.paper):
        parts.append(f"## {paper}\n\n{_table(list(rows))}")
        if picture and "inference" in paper:
            parts.append(f"![Log-ratio against reward, with the slope 1 / beta of the posterior]({picture})\n")
    return "\n".join(parts)


def _counts(found: Sequence[Tried]) -> str:
    counts = Counter(row.verdict for row in found)
    none = sum(all(isinstance(outcome, Missing) for outcome in row.outcomes) for row in found)
    words = f"{counts[HOLDS]} hold, {counts[FAILS]} do not hold, and of {counts[OPEN]} the runs cannot tell"
    words += f" ({none} of them not run)" if none else ""
    return f"{len(found)} verdicts on the claims of papers, one for each claim and task: {words}."


COLUMNS = ("Claim", "Section", "Task", "Verdict", "Figures", "n", "Smallest", "Practical")
ALIGNED = ("---", "---", "---", "---", "---", "---", "---:", "---:")


def _table(rows: Sequence[Tried]) -> str:
    lines = [COLUMNS, ALIGNED, *([escape_markdown(cell) for cell in _row(row)] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(row: Tried) -> list[str]:
    figures = "; ".join(figure(outcome) for outcome in row.outcomes)
    sizes = [_size(outcome) for outcome in row.outcomes if isinstance(outcome, Finding)]
    columns = ["; ".join(_same(column)) for column in _columns(sizes)]
    return [row.claim.text, row.claim.where, row.task, row.verdict if sizes else NOT_RUN, figures, *columns]


def _columns(sizes: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    return [list(column) for column in zip(*sizes, strict=True)] or [["–"], ["–"], ["–"]]


def _same(cells: list[str]) -> list[str]:
    """One cell where all are equal."""
    return cells[:1] if len(set(cells)) == 1 else cells


def figure(outcome: Outcome) -> str:
    """A comparison in words: the quantity, both means, and the difference with its interval."""
    if isinstance(outcome, Missing):
        return f"{outcome.words}: {outcome.why}"
    f, d = outcome, outcome.difference
    (first, second), (a, b) = f.names, (number(mean, f.digits) for mean in f.means)
    right = f"{second} {b}" if second != f"{f.means[1]:g}" else second
    gap = f"difference {number(d.mean, f'+{f.digits}')}"
    if d.low is None or d.high is None or d.stderr == 0:
        return f"{f.words}: {first} {a}, {right}; {gap}, no error known"
    low, high = (number(end, f"+{f.digits}") for end in (d.low, d.high))
    return f"{f.words}: {first} {a}, {right}; {gap} [{low}, {high}]"


def _size(f: Finding) -> tuple[str, str, str]:
    """Seeds and prompts, the smallest difference that could be shown, and the practical one."""
    one, two = f.seeds
    seeds = f"{one} seed{'s' if one > 1 else ''}" if one == two else f"{one} and {two} seeds"
    n = seeds if f.prompts is None else f"{seeds}, {f.prompts} prompts"
    return n, "–" if f.smallest is None else number(f.smallest, f.digits), number(f.margin, f.digits)
