"""An efficiency beyond the solid part of the frontier is a bound, and says so wherever it is printed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import fake_records as fake
import pytest
import readme_tables
from fake_reports import only_group

from harness.analysis.columns import BY_KEY, bound_sign
from harness.analysis.compare import compare, text
from harness.analysis.select import Side
from harness.analysis.study import Study, StudyGroup
from harness.cli.result import result_table
from harness.records.read import find_runs
from harness.report.sections import optimum_table
from harness.report.tables import method_table, methods_csv, run_table
from harness.report.verdict import verdict

UPPER = "beyond the solid range of the frontier: an upper bound"


@pytest.fixture
def group(tmp_path: Path) -> StudyGroup:
    """ppo, which removes most, is beyond the solid part in one of its seeds; quark is not."""
    for seed in range(2):
        beyond = fake.point(0.83, 0.02, reason=UPPER) if seed else fake.point(0.81, 0.02)
        low = {"judge": fake.point(0.99), "kl": fake.point(0.5, 0.02)}
        fake.write_run(tmp_path, "ppo", seed, final={"efficiency": beyond, **low})
        fake.write_run(tmp_path, "quark", seed, final={"efficiency": fake.point(0.5, 0.02)})
    return only_group(tmp_path)


def test_every_table_marks_it_and_says_why(group: StudyGroup) -> None:
    for table in (method_table(group), optimum_table(group), run_table(group)):
        at = next(i for i, title in enumerate(table.header) if title.startswith("Efficiency"))
        cells = {(row[0], row[1]): row[at] for row in table.rows if row[0] in ("ppo", "quark")}
        marked = [key for key, cell in cells.items() if cell.startswith("≤ 0.8")]
        assert marked == ([("ppo", "1")] if len(cells) == 4 else [("ppo", "2")])
        note = next(note for note in table.notes if "an upper bound" in note)
        assert cells[marked[0]].endswith(note[0])
    short = readme_tables.short_table(group)
    assert "| ≤ 0.82" in short and "Efficiency: seed 1: " + UPPER in short
    rows = list(csv.DictReader(io.StringIO(methods_csv(Study(group.runs)))))
    assert UPPER in next(row for row in rows if row["method"] == "ppo")["missing"]


def test_sentences_and_the_command_line_say_it(group: StudyGroup) -> None:
    said = " ".join(verdict(group))
    assert "with at most 82% of its KL" in said and "most efficient as far as the bounds tell" in said
    summaries = {run.manifest.method: run.summary for run in group.runs if run.manifest.seed == 1}
    summaries = {m: s.model_copy(update={"cost": s.cost | {"scorer_calls": 1}}) for m, s in summaries.items()}
    shown = result_table(summaries["ppo"])
    assert "≤ 0.830" in shown and f"share of the optimum: {UPPER}" in shown
    assert "≤" not in result_table(summaries["quark"])
    sides = [Side(m, [r for r in group.runs if r.manifest.method == m], [], []) for m in ("ppo", "quark")]
    assert f"efficiency: A: seed 1: {UPPER}" in text(compare(*sides, ["efficiency"]))


def test_the_side_of_a_bound() -> None:
    """Of older records too, whose reason names no side: K*(R) of few responses is too high, R*(KL) too low."""
    older = "beyond the solid range of the frontier"
    assert [bound_sign(key, [older]) for key in ("efficiency", "excess_kl", "regret", "kl")] == ["≤", "≥", "≥", ""]
    reached = "above every reward of the base responses: a bound"
    assert [bound_sign(key, [reached]) for key in ("efficiency", "excess_kl")] == ["≥", "≤"]
    assert bound_sign("efficiency", [UPPER, reached]) == "~" and bound_sign("efficiency", []) == ""


def test_the_error_of_an_efficiency_holds_that_over_prompts(tmp_path: Path) -> None:
    """Three seeds of one value: nothing over seeds, but the prompts differ in what they need and in what they take."""
    for seed in range(3):
        dir = fake.write_run(tmp_path, "quark", seed, final={"efficiency": fake.point(0.5, 0.001), "kl": fake.point(1.0)})
        same = [0.5, 0.5, 0.5, 0.5]
        columns = {"id": list("abcd"), "kind": ["calm"] * 4, "judge": same, "reward": same, "nll_per_token": same}
        columns |= {"kl": [0.4, 1.6, 0.8, 1.2], "least_kl": [0.5, 0.5, 0.6, 0.4], "n_scored": [4] * 4}
        fake.dump(dir / "prompts.json", {"schema_version": 1, "split": "test", **columns})
    group = Study(*find_runs([tmp_path])).groups[0]
    found = group.estimate(group.entries[0], BY_KEY["efficiency"])
    terms = [0.5 + least - 0.5 * kl for least, kl in zip(columns["least_kl"], columns["kl"], strict=True)]
    mean = sum(terms) / 4
    spread = (sum((t - mean) ** 2 for t in terms) / 3 / 4) ** 0.5
    assert found.interval.high - 0.5 == pytest.approx(3.18245 * spread, rel=1e-4)  # t of 3 degrees of freedom
