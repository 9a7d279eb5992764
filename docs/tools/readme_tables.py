"""Write the tables of the README from records: `python docs/tools/readme_tables.py README.md results/reference`.

A table stands between `<!-- table: TASK -->` and `<!-- end of table -->`; nothing else of the file is touched.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.analysis.columns import COLUMNS
from harness.analysis.groups import Group, groups
from harness.core.errors import BadData, BenchError, EmptySelection, MissingPrerequisite, Unwritable
from harness.core.text import escaped
from harness.records.read import find_runs
from harness.report.tables import Table, entry_table, markdown

SHOWN = ("Undesired", "Removed", "Reward", "KL", "Efficiency", "Perplexity", "Grammatical", "Time")
PLACE = r"(<!-- table: {task} -->\n).*?(<!-- end of table -->)"


def short_table(group: Group) -> str:
    """The columns of the method table that a first reader needs, as Markdown."""
    whole = entry_table(group, [c for c in COLUMNS if c.title in SHOWN])
    return markdown(Table(whole.header[:-1], [row[:-1] for row in whole.rows], whole.notes))


def rewrite(text: str, found: list[Group]) -> str:
    """The text with each group's table in its place; raises BadData where the text has a place for none of them."""
    places = {group.task: re.compile(PLACE.format(task=re.escape(group.task)), re.DOTALL) for group in found}
    placed = [group for group in found if places[group.task].search(text)]
    if not placed:
        raise BadData(f"no place for a table: expected <!-- table: {found[0].task} --> and <!-- end of table -->")
    for group in placed:
        text = places[group.task].sub(lambda m, group=group: f"{m[1]}\n{short_table(group)}\n{m[2]}", text)  # type: ignore[misc]
    return text


def main(readme: Path, records: list[Path]) -> None:
    runs, problems = find_runs(records)
    for problem in problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    if not runs:
        raise EmptySelection(f"no records below {', '.join(map(str, records))}; the tables of {readme} are left as they were")
    write(readme, rewrite(read(readme), groups(runs)))


def read(page: Path) -> str:
    """The text of a page; raises MissingPrerequisite where it cannot be read."""
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingPrerequisite(f"cannot read the page {page}: {error.strerror}") from None


def write(page: Path, text: str) -> None:
    """Raises Unwritable where the page cannot be written."""
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unwritable(f"{page}: cannot be written ({error.strerror}); choose another place") from None


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:]])
    except BenchError as e:
        print(escaped(f"error: {e}"), file=sys.stderr)
        sys.exit(e.exit_code)
