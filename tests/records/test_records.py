import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from harness.core.errors import CorruptRecord
from harness.records.read import find_runs, read_run
from harness.records.schema import Run


def change(name: str, **keys: Any) -> Callable[[Path], None]:
    def do(dir: Path) -> None:
        value = json.loads((dir / name).read_text())
        fake.dump(dir / name, {**value, **keys})

    return do


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda dir: (dir / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Callable[[Path], None]:
    return lambda dir: (dir / name).write_text((dir / name).read_text()[:-20])


def without(name: str) -> Callable[[Path], None]:
    return lambda dir: (dir / name).unlink()


def instead(name: str) -> Callable[[Path], None]:
    def do(dir: Path) -> None:
        (dir / name).unlink()
        (dir / name).mkdir()

    return do


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (without("manifest.json"), "manifest.json is missing"),
    "no summary": (without("summary.json"), "summary.json is missing"),
    "no trajectory": (without("trajectory.jsonl"), "trajectory.jsonl is missing"),
    "a folder": (instead("summary.json"), "cannot be read"),
    "truncated manifest": (cut("manifest.json"), "not strict JSON, or is cut off"),
    "truncated summary": (cut("summary.json"), "not strict JSON, or is cut off"),
    "truncated trajectory": (cut("trajectory.jsonl"), "truncated"),
    "empty": (text("summary.json", ""), "not strict JSON"),
    "bytes": (text("summary.json", b"\xff\xfe{"), "not UTF-8"),
    "broken row": (text("trajectory.jsonl", "{}{\n"), "trajectory.jsonl line 1"),
    "strange row": (text("trajectory.jsonl", "{}\n"), "line 1 is not a record: metrics"),
    "NaN": (text("summary.json", '{"schema_version": 1, "x": NaN}'), "NaN is not a JSON number"),
    "infinite": (text("summary.json", '{"schema_version": 1, "x": 1e999}'), "1e999 is not a finite number"),
    "key twice": (text("summary.json", '{"schema_version": 1, "a": 1, "a": 2}'), "a key occurs twice"),
    "deep": (text("summary.json", "[" * 200_000), "not strict JSON"),
    "a list": (text("summary.json", "[]"), "no schema_version"),
    "a boolean version": (change("summary.json", schema_version=True), "no schema_version"),
    "newer": (change("manifest.json", schema_version=2), "schema_version 2, this package reads up to 1"),
    "unknown status": (change("manifest.json", status="fine"), "status"),
    "seed as text": (change("manifest.json", seed="0"), "seed"),
    "value as text": (change("summary.json", final={"kl": fake.point(None) | {"value": "0"}}), "final.kl.value"),
    "negative error": (change("summary.json", final={"kl": fake.point(0.1, -1.0)}), "final.kl.stderr"),
    "negative KL": (
        change("summary.json", frontier=fake.frontier() | {"upper": [{"kl": -1.0, "reward": 0.0}]}),
        "frontier.upper",
    ),
    "another run's summary": (change("summary.json", run_id="other"), "differ in 'run_id'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_an_error_and_a_named_problem(case: str, tmp_path: Path) -> None:
    breaks, words = BROKEN[case]
    dir = fake.write_run(tmp_path, "quark", 0)
    sound = fake.write_run(tmp_path, "ppo", 0)
    breaks(dir)
    with pytest.raises(CorruptRecord, match=words):
        read_run(dir)
    runs, problems = find_runs([tmp_path])
    assert [run.dir for run in runs] == [sound]
    assert [p.path for p in problems] == [dir]
    assert words.split("'")[0] in problems[0].what and str(tmp_path) not in problems[0].what


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 1)
    run = read_run(dir)
    assert isinstance(run, Run) and run.summary is not None
    assert run.manifest.plain() == json.loads((dir / "manifest.json").read_text())
    assert run.summary.plain() == json.loads((dir / "summary.json").read_text())
    assert [row.update for row in run.trajectory] == [0, 10, 20, 30, 40, 50, 60]


def test_further_keys_are_welcome(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0, manifest={"note": 1}, summary={"note": {"x": None}})
    assert read_run(dir).manifest.note == 1


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_run_needs_no_summary(status: str, tmp_path: Path) -> None:
    run = read_run(fake.write_run(tmp_path, "quark", 0, status=status))
    assert run.summary is None and len(run.trajectory) == 4


def test_a_run_at_work_may_be_in_the_middle_of_a_line(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0, status="running")
    cut("trajectory.jsonl")(dir)
    assert len(read_run(dir).trajectory) == 3


def test_a_run_that_has_just_begun_has_no_trajectory(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0, status="running")
    without("trajectory.jsonl")(dir)
    assert read_run(dir).trajectory == []


def test_the_order_is_fixed_and_a_folder_named_twice_counts_once(tmp_path: Path) -> None:
    fake.write_study(tmp_path)
    runs, problems = find_runs([tmp_path, tmp_path / "micro"])
    cells = [(run.manifest.method, run.manifest.seed) for run in runs]
    assert not problems and len(cells) == 12 and cells == sorted(cells)
    assert [run.dir for run in find_runs([tmp_path / "micro", tmp_path])[0]] == [run.dir for run in runs]


def test_two_records_of_one_cell_are_both_there_and_named(tmp_path: Path) -> None:
    first, second = (fake.write_run(tmp_path / name, "quark", 0) for name in ("a", "b"))
    runs, problems = find_runs([tmp_path])
    assert [run.dir for run in runs] == [first, second]
    assert [p.path for p in problems] == [second] and "a second record of the cell" in problems[0].what


def test_another_setting_is_another_cell(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "quark", 0, id8="other", manifest={"identity": fake.identity("toxicity", "quark", 0, method="x")})
    runs, problems = find_runs([tmp_path])
    assert len(runs) == 2 and not problems


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    runs, problems = find_runs([tmp_path / "nowhere"])
    assert not runs and problems[0].path == tmp_path / "nowhere" and "cannot be read" in problems[0].what


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_a_folder_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0)
    dir.chmod(0)
    try:
        assert find_runs([tmp_path])[1][0].path == dir
    finally:
        dir.chmod(0o755)
