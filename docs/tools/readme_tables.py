"""Write the result tables of a page from records.

    python docs/tools/readme_tables.py README.md results/reference --rows 10
    python docs/tools/readme_tables.py docs/results/tasks.md results/reference

A table stands between `<!-- table: TASK -->` and `<!-- end of table -->`; the rest of the page stays as it is. Of a study with
several values of each knob it is the first table of the report, the least KL that removes 80 % first; else the most efficient
method comes first. With `--rows` a table holds the best methods among those that remove at least 80 % of the undesired score,
below the frontier or the base policy; a line below it names the others. Of a task with metrics of its own
a table has those, a row for each method and setting, by what is removed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from harness.analysis.columns import BY_KEY, COLUMNS, own_columns
from harness.analysis.groups import Entry
from harness.analysis.study import Study, StudyGroup
from harness.core.errors import BadData, EmptySelection, MissingPrerequisite, Unwritable
from harness.core.process import script
from harness.core.text import escaped
from harness.records.read import find_runs
from harness.records.schema import Run
from harness.report.curves import first_table
from harness.report.tables import Table, entry_table, escape_markdown, markdown

SHOWN = ("Undesired", "Removed", "Reward", "KL", "Efficiency", "Perplexity", "Grammatical", "Time")
BRIEF = ("Undesired", "Removed", "KL", "Efficiency", "Perplexity", "Grammatical")  # of a table with few rows
PLACE = r"(<!-- table: {task} -->\n).*?(<!-- end of table -->)"
MAIN = ("Method", "Least KL", "Removed at", "Area", "Rank", "Time")  # of a table of curves with few rows
BESIDE_OWN = ("Removed", "KL")  # of a table with metrics that only its task has
LEAST_REMOVED = 80.0  # percent of the base policy's undesired score


def mean(group: StudyGroup, entry: Entry, key: str) -> float:
    """The mean of a column over seeds; minus infinity if no seed has a value."""
    found = group.estimate(entry, BY_KEY[key]).interval
    return float("-inf") if found is None else found.mean


def ordered(group: StudyGroup, key: str = "efficiency") -> list[Entry]:
    """The methods by a descending column, ties by name."""
    return sorted(group.entries, key=lambda entry: (-mean(group, entry, key), entry.name))


def short_table(group: StudyGroup, rows: int | None = None) -> str:
    """The main columns of the method table as Markdown, with at most `rows` rows."""
    own = own_columns(group)
    if group.curves and not own:
        return curve_table(group, rows)
    entries = ordered(group, "removed" if own else "efficiency")
    good = entries if rows is None else [entry for entry in entries if mean(group, entry, "removed") >= LEAST_REMOVED]
    kept = good if rows is None else good[: rows - 1]  # one row is the base policy's
    among = BESIDE_OWN if own else SHOWN if rows is None else BRIEF
    columns = [c for c in COLUMNS if c.title in among] + own
    whole = entry_table(StudyGroup(group.preset, group.task, kept or entries), columns)
    shown = whole.rows if kept else whole.rows[:1]
    table = markdown(Table(whole.header[:-1], [row[:-1] for row in shown], whole.notes if kept else []))
    return table + others(good[len(kept) :], [entry for entry in entries if entry not in good])


def curve_table(group: StudyGroup, rows: int | None = None) -> str:
    """The first table of the report as Markdown; with `rows` its main columns and at most so many rows."""
    whole = first_table(group)
    if rows is None:
        return markdown(whole)
    there = [reading.name for reading in group.readings.ways if reading.least and reading.least.value is not None]
    kept, far = there[: rows - 1], there[rows - 1 :]  # one row is the frontier's
    best = [row for row in whole.rows if row[0] in kept or row is whole.rows[0]]
    known = [any(row[x] not in ("", "–") for row in best) for x in range(len(whole.header))]
    columns = [x for x, name in enumerate(whole.header) if name.startswith(MAIN) and known[x]]
    shown = [[row[x] for x in columns] for row in best]
    ways = {reading.name for reading in group.readings.ways}
    never = [row[0] for row in whole.rows[1:] if row[0] in ways and row[0] not in there]
    said = [f"Need more KL: {_words(far)}."] if far else []
    said += [f"Do not remove 80 % at any value that was tried: {_words(never)}."] if never else []
    return markdown(Table([whole.header[x] for x in columns], shown, [])) + "".join(f"\n{line}\n" for line in said)


def _words(names: list[str]) -> str:
    return ", ".join(map(escape_markdown, names))


def others(less_efficient: list[Entry], too_little: list[Entry]) -> str:
    """The sentences that name the methods left out of a short table, with the reason."""
    sentences = []
    if less_efficient:
        sentences.append(f"Less efficient: {_names(less_efficient)}.")
    if too_little:
        sentences.append(f"Remove less than {LEAST_REMOVED:.0f} %: {_names(too_little)}.")
    return "".join(f"\n{sentence}" for sentence in sentences) + ("\n" if sentences else "")


def _names(entries: list[Entry]) -> str:
    return _words([entry.name for entry in entries])


def rewrite(text: str, found: list[StudyGroup], rows: int | None = None) -> str:
    """The text with the table of each group in its place; raises BadData if the text has no place for any of them."""
    places = {group.task: re.compile(PLACE.format(task=re.escape(group.task)), re.DOTALL) for group in found}
    placed = [group for group in found if places[group.task].search(text)]
    if not placed:
        raise BadData(f"no place for a table: expected <!-- table: {found[0].task} --> and <!-- end of table -->")
    for group in placed:
        text = places[group.task].sub(lambda m, group=group: f"{m[1]}\n{short_table(group, rows)}\n{m[2]}", text)  # type: ignore[misc]
    return text


def runs_below(folders: list[Path]) -> list[Run]:
    """The runs below some folders; what cannot be read is warned of."""
    runs, problems = find_runs(folders)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    return runs


def main(readme: Path, records: list[Path], rows: int | None = None) -> None:
    """Rewrite the tables of one page; raises EmptySelection if there are no records."""
    runs = runs_below(records)
    if not runs:
        raise EmptySelection(f"no records below {', '.join(map(str, records))}; the tables of {readme} are left as they were")
    write(readme, rewrite(read(readme), Study(runs).groups, rows))


def read(page: Path) -> str:
    """The text of a page; raises MissingPrerequisite if it cannot be read."""
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingPrerequisite(f"cannot read the page {page}: {error.strerror}") from None


def write(page: Path, text: str) -> None:
    """Write a page; raises Unwritable if it cannot be written."""
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unwritable(f"{page}: cannot be written ({error.strerror}); choose another place") from None


def arguments() -> argparse.Namespace:
    """The page, the folders of records and the number of rows, from the command line."""
    parser = argparse.ArgumentParser(prog="python docs/tools/readme_tables.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    parser.add_argument("records", type=Path, nargs="+", help="folders of records")
    parser.add_argument("--rows", type=int, help="maximum number of rows of a table, base policy included")
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    script(lambda _: main(args.page, args.records, args.rows))
