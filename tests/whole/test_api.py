"""The same from Python: run and load."""

import json

import fake_records as fake
import pandas as pd
import pytest
import quick
import readme_tables

import harness
from harness.analysis.study import Study
from harness.core import errors
from harness.core.errors import EmptySelection, UnknownName
from harness.records.read import find_runs

pytestmark = pytest.mark.usefixtures("few_prompts")


def test_run_and_load(tmp_path):
    summary = harness.run("best-quantile", "toxicity", settings=quick.settings("best_quantile"), seed=3, out=tmp_path)
    assert summary["seed"] == 3 and summary["status"] == "done"
    frame = harness.load(tmp_path)
    assert isinstance(frame, pd.DataFrame) and len(frame) == 1
    row = frame.iloc[0]
    assert row["kl"] == summary["final"]["kl"]["value"] and row["kl_stderr"] == summary["final"]["kl"]["stderr"]
    assert row["base_judge"] == summary["base"]["judge"]["value"] and row["settings.evaluation.points"] == 3
    assert row["cost.updates"] == 6 and row["method"] == "best_quantile" and frame.attrs["problems"] == []
    path = harness.load_trajectories(tmp_path)
    assert path["update"].tolist() == [0, 2, 4, 6] and path["kl"].iloc[-1] == row["kl"] and path["cost.updates"].iloc[-1] == 6
    said = harness.load_samples(tmp_path)
    assert said.kl.mean() == pytest.approx(row["kl"]) and set(said.run_id) == {row["run_id"]}
    base = harness.load_samples(tmp_path, "base")  # the judge's score of the base is of other responses, the entropy of these
    assert base.entropy.mean() == pytest.approx(summary["base"]["entropy"]["value"])
    with pytest.raises(UnknownName):
        harness.run("quakr", "toxicity", out=tmp_path)

    text = "# A\n<!-- table: toxicity -->\nold\n<!-- end of table -->\nB\n"
    page = tmp_path / "page.md"
    page.write_text(text)
    readme_tables.main(page, [tmp_path])
    written = page.read_text()
    assert written.startswith("# A\n<!-- table") and written.endswith("<!-- end of table -->\nB\n")
    assert "best\\_quantile" in written and "old" not in written
    assert f"{1 - summary['base']['judge']['value']:.3f}" in written
    with pytest.raises(errors.MissingPrerequisite, match=r"cannot read the page .*nowhere\.md: No such file"):
        readme_tables.main(tmp_path / "nowhere.md", [tmp_path])
    with pytest.raises(errors.Unwritable, match="choose another place"):
        readme_tables.write(tmp_path, "")
    with pytest.raises(errors.BadData, match="no place for a table"):
        readme_tables.rewrite("", Study(*find_runs([tmp_path])).groups)

    (tmp_path / summary["run_dir"] / "summary.json").write_text(json.dumps(summary)[:100])
    with pytest.raises(EmptySelection, match="not strict JSON"):
        harness.load(tmp_path)
    with pytest.raises(EmptySelection, match="left as they were"):
        readme_tables.main(page, [tmp_path])
    assert page.read_text() == written  # a record that cannot be read is named, and no table is made up


def test_nothing_to_load(tmp_path):
    for load in (harness.load, harness.load_trajectories, harness.load_samples):
        with pytest.raises(EmptySelection, match="harness run"):
            load(tmp_path)
    fake.write_run(tmp_path, "quark", 0)
    with pytest.raises(EmptySelection, match="no samples 'final'"):
        harness.load_samples(tmp_path)


def test_hostile_records_are_named_and_the_others_loaded(tmp_path):
    fake.write_run(tmp_path, "quark", 0, final={"ppl": fake.point(None, reason="none")})
    fake.write_run(tmp_path, "quark", 1, status="failed")
    fake.write_run(tmp_path, "newer", 0, manifest={"schema_version": 9})
    (fake.write_run(tmp_path, "cut", 0) / "trajectory.jsonl").write_text('{"update": 0')
    with pytest.warns(UserWarning, match="2 problems with records"):
        frame = harness.load(tmp_path)
    assert [p.split(": ", 1)[1][:20] for p in frame.attrs["problems"]] == ["trajectory.jsonl is ", "manifest.json has sc"]
    assert frame[["method", "seed", "status"]].values.tolist() == [["quark", 0, "done"], ["quark", 1, "failed"]]
    assert frame.judge.isna().tolist() == [False, True] and frame.ppl.isna().all() and frame.base_judge[0] == 0.7
    with pytest.warns(UserWarning, match="2 problems"):
        rows = harness.load_trajectories(tmp_path)
    assert rows.groupby("seed").size().tolist() == [7, 4]
    (tmp_path / "micro/toxicity/quark/5e5e5e5e-s0/samples").mkdir()
    sample = {"prompt_id": 0, "kind": "", "prompt": "", "response": "x", "reward": 1.0, "judge": 1.0, "kl": 0.0}
    pd.DataFrame([sample]).to_parquet(tmp_path / "micro/toxicity/quark/5e5e5e5e-s0/samples/final.parquet")
    with pytest.warns(UserWarning, match="3 problems"):
        said = harness.load_samples(tmp_path)
    assert len(said) == 1 and "has no samples" in said.attrs["problems"][-1]
