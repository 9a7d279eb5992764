"""What a method yields at each update: recorded, cut where a run resumes, kept in a study, drawn."""

import json
from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis import scalars as analysis
from harness.analysis.groups import groups
from harness.analysis.study import Study
from harness.core.errors import CorruptRecord
from harness.records import archive, verify
from harness.records.read import find_runs, read_run, scalars, source_of
from harness.records.schema import Scalars
from harness.records.tables.encode import SCALARS, thinned
from harness.records.write import RunStore
from harness.report.build import build
from harness.runs.session import finite


def models(n: int) -> list[Scalars]:
    return [Scalars.model_validate(row) for row in rows(n)]


def rows(n: int, **more: float | None) -> list[dict]:
    return [{"update": i, "scalars": {"loss": 1 / (i + 1), "kl": 0.1 * i, **more}} for i in range(1, n + 1)]


def write(dir: Path, found: list[dict]) -> Path:
    (dir / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return dir


def test_rows_that_a_checkpoint_does_not_know_are_cut(tmp_path):
    store = RunStore(fake.write_run(tmp_path, "quark", 0, status="interrupted"))
    store.append_scalars(models(3))
    whole = (store.path / "scalars.jsonl").read_bytes()
    store.append_scalars([])
    store.append_scalars(models(5)[3:])
    (store.path / "scalars.jsonl").write_bytes((store.path / "scalars.jsonl").read_bytes() + b'{"upd')
    store.rewind(1, 3)
    assert (store.path / "scalars.jsonl").read_bytes() == whole
    store.rewind(1, 0)
    assert not (store.path / "scalars.jsonl").exists() and scalars(read_run(store.path)) == []
    with pytest.raises(CorruptRecord, match=r"scalars.jsonl has 0 rows, its checkpoint knows 2"):
        store.rewind(1, 2)


def test_a_value_that_is_not_finite_is_null():
    assert finite({"a": float("nan"), "b": float("-inf"), "c": 1}) == {"a": None, "b": None, "c": 1.0}


def test_rows_are_read_and_those_that_are_none_are_named(tmp_path):
    dir = write(fake.write_run(tmp_path, "quark", 0), rows(2, odd=None))
    assert scalars(read_run(dir))[1].plain() == {"update": 2, "scalars": {"loss": 1 / 3, "kl": 0.2, "odd": None}}
    (dir / "scalars.jsonl").write_bytes((dir / "scalars.jsonl").read_bytes() + b'{"update": 3')  # is being written
    assert len(scalars(read_run(dir))) == 2
    for text, words in (('{"update": -1, "scalars": {}}', "line 1 is not a record: update"), ("{", "line 1 is not strict")):
        (dir / "scalars.jsonl").write_text(text + "\n")
        with pytest.raises(CorruptRecord, match=words):
            scalars(read_run(dir))
        assert words in analysis.traces(groups([read_run(dir)])[0])[1][0].what


def test_a_study_keeps_a_hundred_updates_in_float32(tmp_path):
    write(fake.write_run(tmp_path / "runs", "quark", 0), rows(1000, odd=None, big=1e300))
    write(fake.write_run(tmp_path / "runs", "ppo", 0), rows(3))
    fake.write_run(tmp_path / "runs", "npo", 0)
    archive.write_study([tmp_path / "runs"], tmp_path / "study")
    by_method = {run.manifest.method: run for run in find_runs([tmp_path / "study"])[0]}
    kept = scalars(by_method["quark"])
    assert len(kept) == SCALARS and [kept[0].update, kept[-1].update] == [1, 1000]
    assert kept[-1].scalars["kl"] == pytest.approx(100.0, rel=1e-7) and set(kept[0].scalars) == set(kept[5].scalars) == {
        "loss",
        "kl",
    }
    assert [row.update for row in scalars(by_method["ppo"])] == [1, 2, 3] and scalars(by_method["npo"]) == []
    assert thinned(thinned(models(1000))) == thinned(models(1000))
    assert len(archive.write_study([tmp_path / "runs"], tmp_path / "study").unchanged) == 3
    files = {"files": {"scalars.jsonl": "0" * 64, "trajectory.jsonl": "0" * 64}}
    run = by_method["quark"]._replace(manifest=by_method["quark"].manifest.model_copy(update=files))
    assert {c.what: c.held for c in verify._files(run)}["scalars.jsonl"] is None  # a part of the file
    folders = archive.archive([tmp_path / "study"], tmp_path / "folders")
    assert sorted(len(source_of(read_run(dir)).scalars()) for dir in folders.added) == [0, 3, SCALARS]


def test_a_changed_row_is_a_mismatch(tmp_path):
    dir = write(fake.write_run(tmp_path, "quark", 0), rows(3))
    run = read_run(dir)
    files = RunStore(dir).hashes({"summary.json": run.summary.plain()})
    run = run._replace(manifest=run.manifest.model_copy(update={"files": files}))
    assert "scalars.jsonl" in files
    assert all(check.held for check in verify._files(run))
    write(dir, rows(4)[1:])
    assert [check.what for check in verify._files(run) if check.held is False] == ["scalars.jsonl"]


def test_each_scalar_of_a_method_has_a_panel(tmp_path):
    for seed in (0, 1):
        write(fake.write_run(tmp_path / "runs", "quark", seed), rows(300, fixed=0.05))
        write(
            fake.write_run(tmp_path / "runs", "ppo", seed),
            rows(20, a=0.0) if seed else [*rows(20, a=1.0), {"update": 21, "scalars": {}}],
        )
    (group,) = groups(find_runs([tmp_path / "runs"])[0])
    found, problems = analysis.traces(group)
    assert not problems and [(t.method, t.name) for t in found] == [
        ("ppo", "a"), ("ppo", "kl"), ("ppo", "loss"), ("quark", "fixed"), ("quark", "kl"), ("quark", "loss"),
    ]  # fmt: skip
    assert [len(line) for line in found[4].lines] == [analysis.POINTS] * 2 and found[4].lines[0][-1][0] == 300
    assert [(t.method, t.name) for t in analysis.shown(found)][3:] == [("quark", "kl"), ("quark", "loss")]
    assert len(analysis.shown(found * 20)) == 8
    build(Study(*find_runs([tmp_path / "runs"])), tmp_path / "page")
    page, text = (tmp_path / "page/index.html").read_text(), (tmp_path / "page/report.md").read_text()
    assert page.count('aria-label="quark: ') == 2 and "figures/training-micro-toxicity.png" in text
    data = json.loads((tmp_path / "page/figures/data-micro-toxicity.json").read_text())["scalars"]
    assert [(d["method"], d["name"]) for d in data] == [(t.method, t.name) for t in found]
