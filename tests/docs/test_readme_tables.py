"""The tables of the README: the most efficient method first, ten rows at most, and a line on who is left out."""

from pathlib import Path

import fake_curves
import fake_records as fake
import pytest
import readme_tables

from harness.analysis.study import Study, StudyGroup
from harness.records.read import find_runs
from harness.report.tables import escape_markdown

PLACES = {"ppo": (0.95, 0.8), "quark": (0.94, 0.5), "dpo": (0.99, 0.2), "mle": (0.3, 0.9)}  # judge, efficiency


@pytest.fixture
def group(tmp_path: Path) -> StudyGroup:
    for method, (judge, efficiency) in PLACES.items():
        for seed in range(2):
            final = {"judge": fake.point(judge + 0.001 * seed, 0.01), "efficiency": fake.point(efficiency + 0.001 * seed, 0.01)}
            fake.write_run(tmp_path, method, seed, final=final)
    return Study(*find_runs([tmp_path])).groups[0]


def names(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.split("\n") if line.startswith("| ")][2:]


def test_all_methods_the_most_efficient_first(group):
    assert names(readme_tables.short_table(group)) == ["base (untrained)", "mle", "ppo", "quark", "dpo"]


def test_few_rows_hold_the_methods_that_remove_most_of_the_habit(group):
    table = readme_tables.short_table(group, 3)
    assert names(table) == ["base (untrained)", "ppo", "quark"]
    assert "Less efficient: dpo.\n" in table and "Remove less than 80 %: mle.\n" in table
    assert "Seeds" in table and "Time" not in table


def test_metrics_of_the_task_alone_come_last(tmp_path):
    own = {"recall": {"title": "Recall", "unit": "share", "better": "up"}}
    fake.write_run(tmp_path, "quark", 0, final={"recall": fake.point(0.25, 0.01)}, summary={"own_metrics": own})
    (group,) = Study(*find_runs([tmp_path])).groups
    header, *rows = readme_tables.short_table(group).strip().splitlines()
    assert "| Recall\u00a0↑ (share) |" in header
    assert next(row for row in rows if row.startswith("| quark")).endswith("| 0.250 |")


def test_no_method_removes_enough(group):
    weak = StudyGroup(group.preset, group.task, [entry for entry in group.entries if entry.name == "mle"])
    table = readme_tables.short_table(weak, 10)
    assert names(table) == ["base (untrained)"] and "Less efficient" not in table and "Remove less than 80 %: mle." in table


def test_of_a_study_with_curves_the_least_kl_comes_first(tmp_path):
    some = ("base", "best_of_n", "quark", "ppo", "filtering")
    (group,) = Study(*find_runs([fake_curves.write_study(tmp_path, some, ("toxicity",), prompts=40)])).groups
    whole, short = readme_tables.short_table(group), readme_tables.short_table(group, 3)
    first = [reading.name for reading in group.readings.rows]
    assert names(whole) == ["frontier, judged", *map(escape_markdown, first)] and "Knob" in whole
    assert names(short) == ["frontier, judged", *map(escape_markdown, first[:2])] and "Knob" not in short
    assert f"Need more KL: {escape_markdown(first[2])}.\n" in short
    assert "Do not remove 80 % at any value that was tried: filtering, base.\n" in short


def test_the_readme_is_short_and_its_table_has_ten_rows():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert len(text.splitlines()) < 150
    table = text[text.index("<!-- table: toxicity -->") : text.index("<!-- end of table -->")]
    assert 0 < len(names(table)) <= 10
