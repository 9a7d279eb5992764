"""Metrics that only one task has: kept in the record, shown in a table of the page and in `compare`, absent elsewhere."""

from __future__ import annotations

import json

import fake_records as fake
import pytest
from fake_reports import only_group

from harness.analysis.columns import own_columns
from harness.analysis.compare import better_way, compare
from harness.analysis.select import Side
from harness.cli.result import result_table
from harness.records.read import read_run
from harness.records.schema import Summary
from harness.report.sections import own_table

OWN = {
    "recall": {"title": "Recall", "unit": "share", "better": "down"},
    "kept": {"title": "Kept", "unit": "share", "better": "up"},
}


@pytest.fixture
def runs(tmp_path):
    found = {}
    for method, recall in (("quark", 0.2), ("ppo", 0.4)):
        own = {"recall": fake.point(recall, 0.01), "kept": fake.point(0.9, 0.01)}
        base = {**fake.BASE, "recall": fake.point(0.95, 0.01), "kept": fake.point(0.97, 0.01)}
        for seed in (0, 1):
            dir = fake.write_run(tmp_path, method, seed, final=own, summary={"base": base, "own_metrics": OWN})
            found.setdefault(method, []).append(read_run(dir))
    return found


def test_a_table_of_the_page_has_them_with_the_base(runs, tmp_path):
    table = own_table(only_group(tmp_path))
    assert table.header[2:4] == ["Recall\u00a0↓ (share)", "Kept\u00a0↑ (share)"]
    rows = {row[0]: row[2:4] for row in table.rows}
    assert rows["base (untrained)"][0].startswith("0.950") and rows["quark"][0].startswith("0.200")


def test_a_task_without_any_has_no_table(tmp_path):
    fake.write_run(tmp_path, "quark", 0)
    group = only_group(tmp_path)
    assert own_table(group) is None and own_columns(group) == []


def test_compare_asks_for_them(runs):
    a, b = (Side(name, runs[name], [], []) for name in ("quark", "ppo"))
    rows = {row.metric: row for row in compare(a, b, []).rows}
    assert rows["recall"].difference.mean == pytest.approx(0.2) and rows["kept"].b == 0.9
    assert (better_way("extraction"), better_way("retain_accuracy"), better_way("membership_auc")) == ("down", "up", "")


def test_the_result_of_a_run_shows_them(runs):
    summary = runs["quark"][0].summary
    cost = {**summary.cost, "scorer_calls": 100.0}
    lines = result_table(summary.model_copy(update={"cost": cost})).splitlines()
    assert any(line.split()[:3] == ["recall", "0.950", "0.200"] for line in lines)


def test_a_record_keeps_them_and_one_without_stays_as_it_was(runs, tmp_path):
    summary = runs["quark"][0].summary
    assert json.loads(json.dumps(summary.plain()))["own_metrics"] == OWN
    plain = {k: v for k, v in summary.plain().items() if k != "own_metrics"}
    assert "own_metrics" not in Summary.model_validate(plain).plain()
