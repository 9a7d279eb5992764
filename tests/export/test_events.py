"""A record as events: every number of it, in the order of its updates, with names that every tracker accepts."""

import json

import fake_records
import fake_tracker as fake
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import CorruptRecord
from harness.export import events
from harness.export.events import Held
from harness.records.read import read_run


def test_every_row_of_a_record_by_update(tmp_path):
    run = read_run(fake.record(tmp_path))
    rows = events.rows(run, Held())
    assert [row.update for row in rows] == sorted([*range(1, 61), *range(0, 61, 10)])
    assert [row.evaluation for row in rows if row.update == 10] == [False, True]
    last = rows[-1]
    assert last.values["eval/kl"] == run.trajectory[-1].metrics["kl"].value and last.values["cost/updates"] == 60
    assert last.values["eval/kl_stderr"] == run.trajectory[-1].metrics["kl"].stderr
    assert rows[1].values == {"train/loss": 1.0, "train/odd_name _x_": 0.1} and "train/odd_name _x_" not in rows[3].values
    start = events.started(run)
    assert start == 1704067200 and last.at == start + 72 and rows[1].at == start  # the time of the evaluation before it
    assert rows == events.rows(run, Held(-1, 0)) and events.rows(run, events.after(Held(), rows)) == []
    later = events.rows(run, Held(25, 3))
    assert [row.update for row in later if not row.evaluation] == [*range(26, 61)]
    assert [row.update for row in later if row.evaluation] == [30, 40, 50, 60]


def test_two_evaluations_of_one_update_are_both_given(tmp_path):
    """As of a method that does not train: the start and the end."""
    dir = fake.record(tmp_path, updates=0)
    lines = (dir / "trajectory.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"update": 0} for line in (lines[0], lines[-1])]
    fake_records.dump_rows(dir / "trajectory.jsonl", rows)
    run = read_run(dir)
    assert [row.values["eval/kl"] for row in events.rows(run, Held())] == [0.0, run.summary.final["kl"].value]
    assert len(events.rows(run, Held(evaluations=1))) == 1


def test_the_result_has_both_sides_and_the_whole_cost(tmp_path):
    run = read_run(fake.record(tmp_path))
    end = events.end(run, events.picture(run))
    assert end.status == "done" and end.update == 60 and end.picture == fake.picture() and end.samples == []
    assert end.values["final/judge"] == run.summary.final["judge"].value
    assert end.values["base/judge_stderr"] == run.summary.base["judge"].stderr and end.values["total/flops"] == 3.1e13
    masked = events.end(run, None, texts=4).samples
    assert len(masked) == 4 and all(row["response"].startswith("(hidden: ") for row in masked)
    assert all("answer" in row["response"] for row in events.end(run, None, texts=4, unmask=True).samples)


def test_a_run_has_one_key_until_it_is_begun_afresh(tmp_path):
    first = events.begin(read_run(fake.record(tmp_path / "a")))
    again = events.begin(read_run(fake.record(tmp_path / "b")))
    afresh = events.begin(read_run(fake.record(tmp_path / "c", manifest={"started_at": "2024-01-01T00:00:01+00:00"})))
    assert first == again and first.key != afresh.key and first.key.startswith("5e5e5e5e-s0-")
    assert first.settings == {"lr": 1e-4, "task.reward": "vader", "tags": "[1]"}
    assert first.labels["method"] == "quark" and first.name == "toxicity/quark/5e5e5e5e-s0"
    unknown = read_run(fake.record(tmp_path / "d", manifest={"started_at": "yesterday"}))
    assert events.started(unknown) == 0.0


def test_a_picture_that_cannot_be_read_is_a_broken_record(tmp_path, monkeypatch):
    run = read_run(fake.record(tmp_path))
    (run.dir / "picture.png").unlink()
    assert events.picture(run) is None

    def broken(*of):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(events.files, "read", broken)
    with pytest.raises(CorruptRecord, match=r"picture\.png cannot be read: Permission denied"):
        events.picture(run)


@given(st.text())
def test_names_hold_no_character_that_a_tracker_refuses(text):
    found = events.named(text)
    assert found.strip(". ") and len(found) <= events.LONGEST_NAME and "/" not in found
    assert found.isascii() and found.isprintable()
