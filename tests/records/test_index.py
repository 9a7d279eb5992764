"""The index beside many records: it saves work and changes nothing, whatever is in it."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis import study
from harness.analysis.study import read_states, read_study
from harness.cli import status
from harness.records.read import read_run
from harness.records.tables import index
from harness.records.tables.index import NAME, Index, States


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A study with records in all states, and an index from the first record on."""
    monkeypatch.setattr(index, "LEAST", 1)
    fake.write_study(tmp_path)
    for n, state in enumerate(("failed", "degraded", "interrupted", "running")):
        fake.write_run(tmp_path, "quark", 3 + n, status=state)
    fake.write_run(tmp_path, "quark", 0, id8="77777777", task="sentiment", manifest={"settings": {"a": {"b": 1}, "c": None}})
    (fake.write_run(tmp_path, "npo", 0) / "summary.json").write_text("{")
    return tmp_path


def said(found: study.Study, top: Path) -> tuple[str, dict]:
    return status.text(found, top), status.data(found, top)


def opened(top: Path) -> list[str]:
    """The folders that a status of a folder still opens."""
    found: list[str] = []

    def read(folder: Path):
        found.append(folder.name)
        return read_run(folder)

    read_index = Index(top, States(read))
    study.find_runs([top], read_index)
    read_index.save()
    return found


def test_what_status_says_is_the_same_without_an_index_with_a_new_one_and_through_it(records):
    whole = said(read_study([records]), records)
    assert said(read_states([records]), records) == whole and (records / NAME).exists()
    assert opened(records) == ["5e5e5e5e-s0"]  # the damaged one
    assert said(read_states([records]), records) == whole
    assert said(read_states([records, records / "micro"]), records) == whole  # of several folders without it


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "trajectory.jsonl"])
def test_a_record_that_changed_is_read_again(records, name):
    read_states([records])
    at = records / "micro" / "toxicity" / "ppo" / "5e5e5e5e-s1"
    os.utime(at / name, ns=(1, 1))
    assert sorted(opened(records)) == ["5e5e5e5e-s0", "5e5e5e5e-s1"]
    assert opened(records) == ["5e5e5e5e-s0"]
    (at / "summary.json").unlink()
    problems = read_states([records]).problems
    assert any(p.path == at and "summary.json is missing" in p.what for p in problems)


def change(top: Path, *statements: str) -> None:
    with closing(sqlite3.connect(top / NAME)) as base, base:
        for statement in statements:
            base.execute(statement)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda top: (top / NAME).write_text("no data base"),
        lambda top: change(top, "PRAGMA user_version = 99"),
        lambda top: change(top, "DROP TABLE parts"),
        lambda top: change(top, "DELETE FROM parts"),
        lambda top: change(top, "UPDATE runs SET run = '{'"),
        lambda top: change(top, "UPDATE runs SET run = '[{}, null, []]'"),
        lambda top: change(top, "UPDATE runs SET run = 3, stamp = 4"),
        lambda top: change(top, f"UPDATE runs SET run = '{'[' * 100_000}'"),
        lambda top: change(top, "UPDATE parts SET value = 'x'"),
    ],
)
def test_a_damaged_index_is_not_believed(records, spoil):
    whole = said(read_study([records]), records)
    read_states([records])
    spoil(records)
    assert said(read_states([records]), records) == whole
    assert said(read_states([records]), records) == whole


@pytest.mark.parametrize("place", ["link", "folder"])
def test_an_index_is_written_to_no_other_place(records, tmp_path_factory, place):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    (records / NAME).symlink_to(elsewhere) if place == "link" else (records / NAME).mkdir()
    whole = said(read_study([records]), records)
    assert said(read_states([records]), records) == whole
    assert not elsewhere.exists()


def test_few_records_have_no_index_and_a_folder_that_takes_none_is_read(records, monkeypatch):
    whole = said(read_study([records]), records)
    monkeypatch.setattr(index, "LEAST", 500)
    assert said(read_states([records]), records) == whole and not (records / NAME).exists()
    monkeypatch.setattr(index, "LEAST", 1)
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: (_ for _ in ()).throw(sqlite3.OperationalError("read-only")))
    assert said(read_states([records]), records) == whole and not (records / NAME).exists()


def test_equal_parts_are_kept_once(records):
    runs = {run.dir.name: run for run in read_states([records]).runs if run.manifest.method == "ppo"}
    first, second = (runs[f"5e5e5e5e-s{seed}"] for seed in range(2))
    assert first.manifest.identity["model"] is second.manifest.identity["model"]
    assert first.summary.frontier is second.summary.frontier and first.summary.final == {} and first.trajectory == []
    assert len(json.dumps(first.summary.plain())) < 5000
