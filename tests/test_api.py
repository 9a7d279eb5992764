"""The same from Python: run and load."""

import json

import pandas as pd
import pytest
import quick

import harness
from harness.errors import CorruptRecord, EmptySelection, UnknownName
from harness.records import find_runs
from harness.report import readme
from harness.report.groups import groups


def settings(method: str) -> dict:
    return quick.SMALL | quick.METHODS[method]


def test_run_and_load(tmp_path):
    summary = harness.run("best-quantile", "toxicity", settings=settings("best_quantile"), seed=3, out=tmp_path)
    assert summary["seed"] == 3 and summary["status"] == "done"
    frame = harness.load(tmp_path)
    assert isinstance(frame, pd.DataFrame) and len(frame) == 1
    row = frame.iloc[0]
    assert row["final.kl"] == summary["final"]["kl"]["value"] and row["final.kl.stderr"] == summary["final"]["kl"]["stderr"]
    assert row["cost.updates"] == 6 and row["method"] == "best_quantile"
    assert row["trajectory"][-1]["metrics"]["kl"] == summary["final"]["kl"]
    assert pd.read_parquet(row["samples"]).kl.mean() == pytest.approx(row["final.kl"])
    with pytest.raises(UnknownName):
        harness.run("quakr", "toxicity", out=tmp_path)

    text = "# A\n<!-- table: toxicity -->\nold\n<!-- end of table -->\nB\n"
    page = tmp_path / "page.md"
    page.write_text(text)
    readme.main(page, [tmp_path])
    written = page.read_text()
    assert written.startswith("# A\n<!-- table") and written.endswith("<!-- end of table -->\nB\n")
    assert "best\\_quantile" in written and "old" not in written
    assert f"{1 - summary['base']['judge']['value']:.3f}" in written
    with pytest.raises(harness.errors.BadData, match="no place for a table"):
        readme.rewrite("", groups(find_runs([tmp_path])[0]))

    (tmp_path / summary["run_dir"] / "summary.json").write_text(json.dumps(summary)[:100])
    with pytest.raises(CorruptRecord, match="1 such records"):
        harness.load(tmp_path)
    with pytest.raises(EmptySelection, match="left as they were"):
        readme.main(page, [tmp_path])
    assert page.read_text() == written  # a record that cannot be read is named, and no table is made up


def test_nothing_to_load(tmp_path):
    with pytest.raises(EmptySelection, match="harness run"):
        harness.load(tmp_path)
