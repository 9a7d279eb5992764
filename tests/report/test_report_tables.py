"""The tables of a report: means, intervals, what is missing, and how numbers are written."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import only_group, report, rows_of

from harness.analysis.study import Study
from harness.records.read import find_runs
from harness.report.figures.data import figure_data
from harness.report.tables import method_table, number, run_table, runs_csv


def test_a_missing_metric_is_never_a_number(messy: tuple) -> None:
    _, out, _ = messy
    rows = list(csv.DictReader(io.StringIO((out / "tables/methods.csv").read_text())))
    nulls = next(row for row in rows if row["method"] == "nulls")
    assert nulls["reward"] == nulls["undesired"] == nulls["ppl"] == "" and nulls["kl"] != ""
    assert "reward: seed 0: SCORER-OFFLINE" in nulls["missing"]
    data = json.loads((out / "figures/data-micro-toxicity.json").read_text())
    (run,) = next(m for m in data["methods"] if m["name"] == "nulls")["runs"]
    assert run["final"]["judge"] == {"value": None, "stderr": None, "reason": "SCORER-OFFLINE"}
    page = (out / "index.html").read_text()
    assert "Reward: SCORER-OFFLINE" in page and re.search(r">– [¹²³⁴-⁹⁰]+<", page)


def test_means_are_over_the_seeds_that_are_done(tmp_path: Path) -> None:
    for seed, value in enumerate((0.90, 0.92, 0.97)):
        fake.write_run(tmp_path, "quark", seed, final={"reward": fake.point(value, 0.001)})
    fake.write_run(tmp_path, "quark", 3, status="degraded", final={"reward": fake.point(0.1, 0.001)})
    table = method_table(only_group(tmp_path))
    row = dict(zip(table.header, table.rows[-1], strict=True))
    # t(2) = 4.303, s = 0.0361: 1.020, but no reward is above 1; the error over prompts adds degrees of freedom
    assert row["Seeds"] == "3" and row["Reward\u00a0↑ (0 to 1)"] == "0.930 [0.841, 1.000]"


def test_intervals_end_where_the_metric_does(tmp_path: Path) -> None:
    """Nothing below no drift, above all of the habit, or beyond 0 and 1; what is a difference may have either sign."""
    for seed, (judge, kl) in enumerate([(0.99, 0.1), (1.0, 1.0), (0.97, 4.0)]):
        final = {"judge": fake.point(judge, 0.001), "kl": fake.point(kl, 0.1), "excess_kl": fake.point(kl - 0.1, 0.1)}
        fake.write_run(tmp_path, "quark", seed, final=final)
    table = method_table(only_group(tmp_path))
    row = {title.split("\u00a0")[0]: text for title, text in zip(table.header, table.rows[-1], strict=True)}
    assert row["Undesired"].startswith("0.013 [0.000, ") and row["Removed"].endswith(", 100.0]")
    assert row["KL"].startswith("1.700 [0.000, ") and row["Excess KL"].startswith("1.600 [−")
    drawn = figure_data(only_group(tmp_path))["methods"][0]["mean"]
    assert drawn["kl"]["low"] == 0.0 and drawn["judge"]["high"] == 1.0


def test_seeds_that_are_all_the_same_have_no_interval(tmp_path: Path) -> None:
    """[0.9, 0.9] would read as certainty; an error over prompts, or a last place that differs, is an interval."""
    for seed in range(3):
        final = {"reward": fake.point(0.9), "kl": fake.point(0.5 + 1e-6 * seed), "ppl": fake.point(2.0, 0.1)}
        fake.write_run(tmp_path, "base", seed, final=final)
    table = method_table(only_group(tmp_path))
    row = dict(zip(table.header, table.rows[-1], strict=True))
    reward, kl, ppl = (next(v for title, v in row.items() if title.startswith(n)) for n in ("Reward", "KL", "Perplexity"))
    note = next(note for note in table.notes if "identical across seeds" in note)
    assert reward == f"0.900 {note[0]}" and kl == "0.500 [0.500, 0.500]"
    assert ppl == "2.00 [1.80, 2.20]"


def test_two_records_of_a_seed_count_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake.write_run(tmp_path / name, "quark", 0)
    group = only_group(tmp_path)
    assert method_table(group).rows[-1][1] == "1" and len(run_table(group).rows) == 2


def test_kinds_of_prompts_have_a_figure_and_a_table(tmp_path: Path) -> None:
    final = {f"judge@{kind}": fake.point(value, 0.01) for kind, value in (("calm", 0.95), ("heated", 0.6))}
    fake.write_run(tmp_path / "r", "quark", 0, final=final, summary={"base": fake.BASE | final})
    report(tmp_path / "r", tmp_path / "out")
    assert (tmp_path / "out/figures/kinds-micro-toxicity.svg").exists()
    (row,) = [r for r in rows_of(tmp_path / "out/tables/kinds-micro-toxicity.csv") if r["Method"] == "quark"]
    assert [row["calm ↓ (undesired)"], row["heated ↓ (undesired)"]] == ["0.050", "0.400"]


def test_seeds_that_lack_a_number_for_one_reason_are_one_note(tmp_path: Path) -> None:
    for seed in range(5):
        why = "the scorer was away" if seed < 4 else "no response ended"
        fake.write_run(tmp_path, "quark", seed, final={"ppl": fake.point(None, reason=why)})
    notes = [note.split(" ", 1)[1] for note in method_table(only_group(tmp_path)).notes]
    assert notes == ["Perplexity: 4 seeds: the scorer was away", "Perplexity: seed 4: no response ended"]


def test_a_formula_in_a_name_is_text_in_csv(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "=1+1", 0)
    assert ",'=1+1," in runs_csv(Study(*find_runs([tmp_path])))


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(-0.0001, ".3f", "0.000"), (-1.5, ".1f", "−1.5"), (3.1e13, ".2g", "3.1e13")]
)
def test_numbers_read_well(value: float, digits: str, text: str) -> None:
    assert number(value, digits) == text
