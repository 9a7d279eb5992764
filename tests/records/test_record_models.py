"""Models keep a record exactly: what was read is written back, key by key and digit by digit."""

import json
from pathlib import Path

import fake_records as fake
import pyarrow
import pyarrow.parquet as parquet
import pytest
from places import ROOT

from harness.core.errors import BadData, CorruptRecord
from harness.core.hashing import canonical
from harness.core.types import Metric
from harness.records import checks, samples
from harness.records.read import read_run
from harness.records.schema import Evaluation, Manifest, MetricRecord, Prompts, Scalars, Summary, metric_records, parsed
from harness.records.tables.decode import Tables
from harness.records.write import RunStore

STUDIES = ["reference", *(pytest.param(name, marks=pytest.mark.slow) for name in ("facts", "trials"))]


def same(model, value, ordered: bool = True) -> None:
    """Raise AssertionError unless a model gives back the plain data that it is built from, and the order of its keys."""
    made = parsed(model, value, ROOT, "record").plain()
    assert canonical(made) == canonical(value) and (not ordered or json.dumps(made) == json.dumps(value))


@pytest.mark.parametrize("most", [40, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("study", STUDIES)
def test_the_records_of_a_study_are_written_back_as_they_were_read(study, most):
    """Some of each study, or all of them."""
    records = Tables(ROOT / "results" / study).records()
    assert records
    for record in records[:: 1 + len(records) // most if most else 1]:
        same(Manifest, record.manifest(), ordered=False)  # its tables have another order than its file
        same(Summary, record.summary() | {"frontier": record._json("frontier")})
        for row in record.trajectory():
            same(Evaluation, row)
        same(Prompts, record._prompts())


def test_numbers_nulls_absent_and_further_keys_stay_as_they_are():
    metric = {"value": 3, "stderr": 0, "n": 1}
    point = {"lambda": 1, "kl": 0, "reward": 1.0, "kl_stderr": None, "solid": True, "further": [1, 1.0, None]}
    frontier = {"base_reward": 0, "curve": [point], "judge_at": {"kl": [0, 1.0], "judge": [None, 1]}, "kl_cap": 2}
    cost = {"updates": 3, "flops": 3.0, "odd": None}
    summary = {"schema_version": 1, "run_id": "x", "base": {"kl": metric}, "final": {"b": metric, "a": metric}}
    same(Summary, summary | {"frontier": frontier, "cost": cost, "further": {"\ud800": "\ud800"}})
    same(Evaluation, {"cost": cost, "metrics": {"kl": metric | {"reason": None}}, "seconds": 2, "split": "test", "update": 0})
    same(Scalars, {"update": 1, "scalars": {"loss": 1, "kl": 1.0, "odd": None}})
    made = {"argv": ["\ud800"], "git": None, "further": 1}
    head = {"schema_version": 1, "run_id": "x", "status": "failed", "preset": "p", "task": "t", "method": "m", "seed": 0}
    fault = {"type": "Odd", "message": "\ud800 is no text"}
    same(Manifest, head | {"identity": {"b": 1, "a": 1.0}, "error": fault, "provenance": made, "settings": {"\ud800": 1}})


def test_a_judge_score_for_each_kl_of_the_frontier(tmp_path):
    uneven = fake.frontier() | {"judge_at": {"kl": [0.0, 1.0], "judge": [0.5]}}
    path = fake.write_run(tmp_path, "quark", 0, summary={"frontier": uneven})
    with pytest.raises(CorruptRecord, match="1 judge scores for 2 KLs"):
        read_run(path)


def test_a_record_cannot_be_changed_by_its_reader(tmp_path):
    manifest = read_run(fake.write_run(tmp_path, "quark", 0)).manifest
    with pytest.raises(ValueError, match="frozen"):
        manifest.seed = 1


def test_a_metric_is_recorded_in_one_place():
    assert MetricRecord.of(Metric(0.5, 0.1, 4)).plain() == {"value": 0.5, "stderr": 0.1, "n": 4, "n_unscored": 0}
    for value, words in ((float("nan"), "not finite: nan"), (float("-inf"), "not finite: -inf")):
        kept = {"value": None, "stderr": None, "n": 4, "n_unscored": 1, "reason": words}
        assert MetricRecord.of(Metric(value, 0.1, 4, 1)).plain() == kept
    assert MetricRecord.of(Metric(0.5, float("inf"), 4)).stderr is None
    with pytest.raises(BadData, match=r"metric 'mine' of the task is not a metric: stderr: .*found \(0.5, -1.0, 4"):
        metric_records({"kl": Metric(0.5, 0.1, 4), "mine": Metric(0.5, -1.0, 4)})


ROW = {"prompt_id": 0, "kind": "a", "prompt": "b", "response": "c", "reward": 0.5, "judge": None}


def test_samples_are_checked_by_column_when_they_are_written_and_read(tmp_path):
    store = RunStore(fake.write_run(tmp_path, "quark", 0))
    store.write_samples("final", [ROW | {"tokens": [1, 2], "ended": True}])
    store.write_samples("final-papers", [{"decoding": "top_p", "prompt_id": 0, "response": "c", "judge": 1.0}])
    run = read_run(store.path)
    assert samples.read(run)[0]["tokens"].tolist() == [1, 2] and samples.read_papers(run)[0]["decoding"] == "top_p"
    with pytest.raises(BadData, match=r"samples/base.parquet is not a table of samples: it has no judge, reward; look at"):
        store.write_samples("base", [{k: v for k, v in ROW.items() if k not in ("judge", "reward")}])
    with pytest.raises(BadData, match=r"it has (large_)?string in column 'reward'"):
        store.write_samples("base", [ROW | {"reward": "high"}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_id": "0"}, "string in column 'prompt_id'"), ({"kind": 1}, "int64 in column 'kind'"),
        ({"tokens": [0.5]}, "in column 'tokens'"), ({"judge": b"1"}, "binary in column 'judge'"),
        ({"prompt_id": 0.5}, "double in column 'prompt_id'"), (None, "no rows"),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_no_sample(tmp_path, change, words):
    dir = fake.write_run(tmp_path, "quark", 0)
    (dir / "samples").mkdir()
    rows = pyarrow.Table.from_pylist([ROW | (change or {})])
    parquet.write_table(rows if change else rows.slice(0, 0), dir / "samples" / "final.parquet")
    with pytest.raises(CorruptRecord, match=f"final.parquet is not a table of samples: it has .*{words}"):
        samples.read(read_run(dir))


@pytest.mark.parametrize("place", ["/", "/run", "/micro/run"])
def test_a_record_near_the_root_has_fewer_folders_above_it(tmp_path, place):
    """A disk of records may be mounted anywhere: the folder's check says so in a line."""
    run = read_run(fake.write_run(tmp_path, "quark", 0))._replace(dir=Path(place))
    assert checks._place(run).what == "folder"
