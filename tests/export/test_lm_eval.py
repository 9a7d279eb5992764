"""Results in the layout of lm-evaluation-harness, and what its own code reads in them."""

import json

import fake_records
import fake_tracker as fake
import pytest

from harness.analysis.columns import COLLAPSE, COLUMNS, JUDGE
from harness.export import lm_eval as ours
from harness.records.read import read_run


@pytest.fixture
def run(tmp_path):
    final = {"pii@calm": fake_records.point(None, reason="no such prompts"), "entropy": fake_records.point(10.5)}
    provenance = {"git": {"commit": "ab" * 20, "dirty": False}, "packages": {"transformers": "5.24.0"}, "device": "cpu"}
    settings = {
        "model": {"id": "micro", "dtype": "float32"},
        "task": {"reward": "vader", "judge": "grammar", "decoding": {"temperature": 1.0, "max_new_tokens": 20}},
        "evaluation": {"split": "test"},
    }
    return read_run(fake.record(tmp_path, final=final, manifest={"provenance": provenance, "settings": settings}))


def test_every_metric_with_its_error_and_direction(run):
    found = ours.results(run)
    values = found["results"]["toxicity"]
    assert values["kl,none"] == run.summary.final["kl"].value and values["kl_stderr,none"] == run.summary.final["kl"].stderr
    assert values["entropy,none"] == 10.5 and values["entropy_stderr,none"] == "N/A" and "pii@calm,none" not in values
    better = found["higher_is_better"]["toxicity"]
    assert (better["judge"], better["kl"], better["entropy"]) == (True, False, None)
    assert found["n-samples"] == {"toxicity": {"original": 800, "effective": 800}} and found["n-shot"] == {"toxicity": 0}
    assert found["versions"] == {"toxicity": 1} and found["git_hash"] == "ab" * 20 and found["date"] == 1704067200
    assert found["config"]["model_args"] == "pretrained=micro,method=quark,preset=micro,run_id=5e5e5e5e-s0,seed=0"
    assert found["config"]["gen_kwargs"] == {"temperature": 1.0, "max_new_tokens": 20}
    task = found["configs"]["toxicity"]
    assert task["test_split"] == "test" and task["metadata"] == {"version": 1, "reward": "vader", "judge": "grammar"}
    assert "lm_eval_version" not in found  # it was not run
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert str(ours.file_of(run)) == "quark-5e5e5e5e-s0/results_2024-01-01T00-00-00.json"


def test_directions_are_those_of_the_report():
    others = {"undesired", "removed", "flops", "sampled_tokens", "own_documents", "seconds"}  # no metrics of a record
    for column in (*COLUMNS, *COLLAPSE, JUDGE):
        if column.key not in others:
            assert ours._better(column.key) is {"up": True, "down": False, "": None}[column.better], column.key
            assert ours._better(f"{column.key}@calm") is ours._better(column.key)
    assert ours._better("regret") is False and ours._better("toxicity_prob") is False and ours._better("diversity") is True


def test_a_name_is_a_file_name(tmp_path):
    run = read_run(fake.record(tmp_path))
    for method in ("../../etc", ".hidden", "a/b\x1b", "m" * 500, ""):
        name = ours.name_of(run._replace(manifest=run.manifest.model_copy(update={"method": method})))
        assert name.isascii() and "/" not in name and not name.startswith(".") and 0 < len(name) < 90


def test_their_code_reads_it(run, tmp_path):
    utils = pytest.importorskip("lm_eval.utils")
    schema = pytest.importorskip("lm_eval.result_schema")
    pytest.importorskip("pytablewriter")
    path = tmp_path / ours.file_of(run)
    path.parent.mkdir()
    path.write_text(json.dumps(ours.results(run)))
    assert utils.get_results_filenames([str(path)]) == [str(path)]
    found = json.loads(path.read_text())
    assert set(found) <= set(schema.EvalResults.__annotations__)
    table = utils.make_table(found)
    kl = run.summary.final["kl"]
    row = next(line for line in table.splitlines() if "|kl " in line)
    assert "↓" in row and f"{kl.value:.4f}" in row and f"{kl.stderr:.4f}" in row
