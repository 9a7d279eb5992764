"""Copies of records for keeping: every value as it was, in fewer bytes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_records as fake
import pandas as pd
import pytest
import quick

import harness
from harness.analysis.study import Study
from harness.cli.result import examples
from harness.core.errors import CorruptRecord, EmptySelection, Unwritable
from harness.records import archive, dedup, verify
from harness.records.read import find_runs, prompt_scores, read_run
from harness.report.build import build

pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Two real runs of one world."""
    out = tmp_path_factory.mktemp("real")
    for seed in (0, 1):
        harness.run("base", "toxicity", seed=seed, settings=quick.settings("base"), out=out)
    return out


def copies(source: Path, target: Path) -> list[tuple]:
    """Each run of a source beside its copy."""
    runs, _ = find_runs([source])
    again, more = find_runs([target])
    assert not more and len(again) == len(runs)
    return list(zip(runs, again, strict=True))


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def total(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_every_value_is_as_it_was(tmp_path):
    source, target = fake.write_study(tmp_path / "source"), tmp_path / "target"
    fake.write_run(source, "ppo", 3, status="failed")
    fake.write_run(source, "ppo", 4, status="degraded")
    done = archive.archive([source], target)
    assert len(done.added) == 14 and not done.updated and not done.problems
    for run, copy in copies(source, target):
        assert copy.summary == run.summary and copy.trajectory == run.trajectory
        assert copy.manifest.plain() == run.manifest.plain() | {"archive": {"samples": 0}}
        assert list(copy.summary.plain() if copy.summary else {}) == list(run.summary.plain() if run.summary else {})
    assert total(target) < total(source) / 2


def test_the_report_of_a_copy_is_the_report(undrawn, tmp_path):
    source = tmp_path / "source"
    for method in ("quark", "ppo"):
        fake.write_run(source, method, 0)
    archive.archive([source], tmp_path / "target")
    for name in ("source", "target"):
        build(Study(*find_runs([tmp_path / name])), tmp_path / f"page-{name}")
    assert bytes_of(tmp_path / "page-source") == bytes_of(tmp_path / "page-target")


def test_real_runs_small_and_sound(real, tmp_path):
    done = archive.archive([real], tmp_path)
    assert len(done.added) == 2
    for run, copy in copies(real, tmp_path):
        assert (copy.summary, copy.trajectory) == (run.summary, run.trajectory) and copy.manifest.settings
        assert prompt_scores(copy.dir) == prompt_scores(run.dir)
        checks = verify.verify(copy)
        assert not [c for c in checks if c.held is False]
        assert {"summary.json", "trajectory.jsonl", "prompts.json", "run id"} <= {c.what for c in checks if c.held}
        assert total(copy.dir) < 15_000
    assert len(list((tmp_path / "shared").iterdir())) < 18  # for both of them
    assert harness.load(tmp_path).drop(columns="dir").equals(harness.load(real).drop(columns="dir"))
    assert "no samples" in examples(done.added[0], True)


def test_a_copy_is_a_finished_run_to_the_runner(real, tmp_path):
    archive.archive([real], tmp_path)
    before = bytes_of(tmp_path)
    summary = harness.run("base", "toxicity", seed=1, settings=quick.settings("base"), out=tmp_path)
    assert summary == harness.run("base", "toxicity", seed=1, settings=quick.settings("base"), out=real)
    after = {name: content for name, content in bytes_of(tmp_path).items() if ".lock" not in name}
    assert after == before


def test_what_is_changed_in_a_copy_is_found(real, tmp_path):
    archive.archive([real], tmp_path)
    dir = next(tmp_path.rglob("summary.json")).parent
    text = (dir / "summary.json").read_text()
    (dir / "summary.json").write_text(text.replace('"n_unscored":0', '"n_unscored":1', 1))
    assert {"summary.json"} <= {c.what for c in verify.verify(read_run(dir)) if c.held is False}


def test_the_same_command_again_adds_what_is_missing(tmp_path):
    source, target = fake.write_study(tmp_path / "source"), tmp_path / "target"
    archive.archive([source], target)
    before = bytes_of(target)
    again = archive.archive([source], target)
    assert len(again.unchanged) == 12 and not again.added + again.updated and bytes_of(target) == before
    fake.write_run(source, "quark", 3)
    (target / "micro/toxicity/ppo/5e5e5e5e-s0/summary.json").unlink()
    third = archive.archive([source], target)
    assert [p.name for p in third.added] == ["5e5e5e5e-s3"] and [p.parent.name for p in third.updated] == ["ppo"]
    assert len(find_runs([target])[0]) == 13
    second = archive.archive([target], tmp_path / "another")  # an archive of an archive
    assert len(second.added) == 13 and bytes_of(tmp_path / "another") == bytes_of(target)


def test_what_is_left_out_is_said(tmp_path):
    source = tmp_path / "source"
    for i, status in enumerate(("done", "running", "interrupted")):
        fake.write_run(source, "quark", i, status=status)
    fake.write_run(source / "copy", "quark", 0)
    (fake.write_run(source, "npo", 0) / "summary.json").write_text("{")
    done = archive.archive([source], tmp_path / "target")
    said = " ".join(p.what for p in done.problems)
    assert len(done.added) == 1
    for words in ("is running", "is interrupted", "left out: a second record", "not strict JSON"):
        assert words in said
    with pytest.raises(EmptySelection, match="to keep"):
        archive.archive([tmp_path / "nothing"], tmp_path / "target")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="choose another archive"):
        archive.archive([source], tmp_path / "file")


def test_names_stay_inside_the_archive(tmp_path):
    names = {"method": "../../out", "task": "a/b", "preset": ".."}
    fake.write_run(tmp_path / "source", "quark", 0, manifest=names, summary=names)
    archive.archive([tmp_path / "source"], tmp_path / "target")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "target"}
    (copy,) = find_runs([tmp_path / "target"])[0]
    assert copy.manifest.method == "../../out" and "target" in copy.dir.parts


def write_samples(dir: Path, who: str) -> None:
    kinds = ["calm"] * 6 + ["heated"] * 3 + ["adversarial"]
    rows = [
        {"prompt_id": x, "kind": kind, "prompt": f"Prompt {x}?", "response": f"{who} {x} {s}", "reward": 0.5, "judge": None,
         "kl": 0.1, "tokens": [1]}
        for x, kind in enumerate(kinds) for s in range(3)
    ]  # fmt: skip
    (dir / "samples").mkdir()
    for of in ("base", "final"):
        pd.DataFrame(rows).to_parquet(dir / "samples" / f"{of}.parquet")


def test_the_same_few_prompts_of_every_run(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for method in ("quark", "ppo"):
        write_samples(fake.write_run(source, method, 0), method)
    fake.write_run(source, "npo", 0)
    archive.archive([source], target, samples=5)
    kept = {m: pd.read_parquet(target / f"micro/toxicity/{m}/5e5e5e5e-s0/samples/final.parquet") for m in ("quark", "ppo")}
    assert kept["quark"].prompt.tolist() == kept["ppo"].prompt.tolist()
    assert kept["quark"].kind.tolist() == ["adversarial", "calm", "heated", "calm", "heated"]
    assert all(response.endswith(" 0") for response in kept["quark"].response)
    assert not (target / "micro/toxicity/npo/5e5e5e5e-s0/samples").exists()
    archived = {run.manifest.method: run.manifest.archive.plain() for run in find_runs([target])[0]}
    assert archived == {"quark": {"samples": 5}, "ppo": {"samples": 5}, "npo": {"samples": 0}}
    again = archive.archive([source], target)  # without samples: those that were kept stay
    assert len(again.unchanged) == 3
    assert len(harness.load_samples(target / "micro/toxicity/ppo")) == 5


def test_references_are_checked(tmp_path):
    source = fake.write_study(tmp_path / "source")
    target = tmp_path / "target"
    archive.archive([source], target)
    dir = target / "micro/toxicity/ppo/5e5e5e5e-s1"
    path = target / dedup.file_name(json.loads((dir / "summary.json").read_text())["frontier"]["shared"])
    whole = path.read_text()
    path.write_text(whole.replace("0.62", "0.63", 1))
    with pytest.raises(CorruptRecord, match="differs from its hash"):
        read_run(dir)
    path.write_text("{")
    with pytest.raises(CorruptRecord, match="cannot be read"):
        read_run(dir)
    path.unlink()
    with pytest.raises(CorruptRecord, match="copied with its folder shared/"):
        read_run(dir)
    assert len(find_runs([target])[1]) == 12
    path.write_text(whole)
    moved = shutil.copytree(target, tmp_path / "moved")
    assert read_run(moved / "micro/toxicity/ppo/5e5e5e5e-s1").summary == read_run(dir).summary
    odd = {"a": [{"shared": "no hash"}, {"shared": "0" * 64, "b": 1}, 1.5, None]}
    assert dedup.put_back(odd, dir) == odd


def test_the_command(tmp_path):
    source = fake.write_study(tmp_path / "source")
    call = [sys.executable, "-m", "harness.records.archive"]
    done = subprocess.run([*call, source, tmp_path / "target"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("12 added, 0 updated, 0 unchanged"), done.stderr
    fake.write_run(source, "quark", 9, status="running")
    done = subprocess.run([*call, source, tmp_path / "target"], capture_output=True, text=True)
    assert done.returncode == 4 and "the run is running" in done.stderr and "12 unchanged" in done.stdout
    done = subprocess.run([*call, tmp_path / "none", tmp_path / "target"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no record")


def test_an_archive_below_the_records_is_read_only_where_it_is_named(tmp_path):
    """As results/reference lies in results: else the runs of a checkout would be in every report and every name be two."""
    fake.write_run(tmp_path / "results", "quark", 0)
    archive.archive([tmp_path / "results"], tmp_path / "results" / "reference")
    assert [run.dir for run in find_runs([tmp_path / "results"])[0]] == [tmp_path / "results/micro/toxicity/quark/5e5e5e5e-s0"]
    assert len(find_runs([tmp_path / "results" / "reference"])[0]) == 1
