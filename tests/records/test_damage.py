"""Records that are damaged: the writers name the damage in one line, never go on from it, and clear it with --fresh."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from four_weights import Four, OneStep, cell

from harness.analysis.study import Study
from harness.cli import result as cli_result
from harness.cli import run, status, sweep
from harness.core.errors import CorruptRecord
from harness.records.read import read_run
from harness.runs import session
from harness.runs.progress import Progress
from harness.runs.sweep import launcher, plan
from harness.runs.sweep.board import Board
from harness.runs.sweep.engines.contract import Terms
from harness.runs.sweep.engines.local import LocalEngine
from harness.runs.sweep.plan import Result


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A finished run, and one that was stopped after its first checkpoint."""
    out = tmp_path_factory.mktemp("records")

    class Stops(OneStep):
        def train(self, trial):
            for n, scalars in enumerate(super().train(trial)):
                if n == 1:
                    raise KeyboardInterrupt
                yield scalars

    with pytest.MonkeyPatch.context() as m:
        m.setattr(session, "Policy", Four)
        session.run(cell(out / "done"))
        with pytest.raises(KeyboardInterrupt):
            session.run(cell(out / "begun", Stops))
    (cell(out / "done").path / "picture.png").touch()
    (cell(out / "done").path / "picture.svg").touch()
    return out


@pytest.fixture
def record(records, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "Policy", Four)

    def copy(kind: str):
        shutil.copytree(records / kind, tmp_path / "out")
        return cell(tmp_path / "out")

    return copy


def edit(name: str, **changes):
    """Set keys of a JSON file; None removes one."""

    def damage(path: Path) -> None:
        value = json.loads((path / name).read_text()) | changes
        (path / name).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return damage


def text(name: str, content: str):
    return lambda path: (path / name).write_text(content)


def folder(name: str):
    def damage(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()

    return damage


def state(change):
    def damage(path: Path) -> None:
        (file,) = path.glob("checkpoints/update-*/state.pt")
        torch.save(change(torch.load(file)), file)

    return damage


def no_folder(name: str):
    def damage(path: Path) -> None:
        shutil.rmtree(path / name)
        (path / name).write_text("")

    return damage


def samples(change):
    def damage(path: Path) -> None:
        for file in path.glob("samples/*.parquet"):
            change(pd.read_parquet(file)).to_parquet(file)

    return damage


def removed(pattern: str):
    return lambda path: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in path.glob(pattern)]


DEEP = '{"schema_version": 1, "a": ' + "[" * 1000 + "]" * 1000 + "}"
UNFINISHED = {
    "a schema that is text": (edit("manifest.json", schema_version="1"), "manifest.json has no schema_version"),
    "a schema that is null": (edit("manifest.json", schema_version=None), "manifest.json has no schema_version"),
    "a schema between two": (edit("manifest.json", schema_version=0.5), "manifest.json has no schema_version"),
    "a newer schema": (edit("manifest.json", schema_version=9), "install a newer one"),
    "no start": (edit("manifest.json", started_at=None), "manifest.json has no started_at"),
    "a start that is a number": (edit("manifest.json", started_at=3), "started_at"),
    "another cell": (edit("manifest.json", run_id="12345678"), "holds the record of a run with another identity"),
    "other settings": (edit("manifest.json", identity={"seed": 3}), "holds the record of a run with another identity"),
    "a manifest that is cut off": (text("manifest.json", '{"schema'), "manifest.json is not strict JSON"),
    "a manifest 1,000 levels deep": (text("manifest.json", DEEP), "manifest.json is not"),
    "a manifest that is a folder": (folder("manifest.json"), "manifest.json cannot be read: it is not a regular file"),
    "a trajectory that is a folder": (folder("trajectory.jsonl"), "trajectory.jsonl cannot be read: Is a directory"),
    "a trajectory without its rows": (text("trajectory.jsonl", ""), "has 0 rows, its checkpoint knows 2"),
    "a row that is cut off": (text("trajectory.jsonl", '{"update": 0}\n{"up'), "has 1 rows, its checkpoint knows 2"),
    "rows that are none": (text("trajectory.jsonl", "{}\n[]\n"), "trajectory.jsonl line 1 is not a record"),
    "no trial": (state(lambda s: {k: v for k, v in s.items() if k != "trial"}), "has no trial in its state"),
    "a state that is a list": (state(lambda s: [1]), "has no trial, next_point, rows, seconds in its state"),
    "a trial of another form": (state(lambda s: s | {"trial": s["trial"] | {"cost": {"a": 1}}}), "does not fit (TypeError"),
    "a trial without its draws": (state(lambda s: s | {"trial": {}}), "does not fit (KeyError"),
    "a generator of another size": (
        state(lambda s: s | {"trial": s["trial"] | {"rng": torch.zeros(3, dtype=torch.uint8)}}),
        "does not fit (RuntimeError",
    ),
    "no state": (removed("checkpoints/*/state.pt"), "cannot be read"),
    "no policy": (removed("checkpoints/*/config.json"), "no readable policy in"),
    "checkpoints that are a file": (no_folder("checkpoints"), "checkpoints is not a folder"),
}
DONE = {
    "a schema that is text": (edit("summary.json", schema_version="1"), "summary.json has no schema_version"),
    "a schema that is null": (edit("summary.json", schema_version=None), "summary.json has no schema_version"),
    "a schema between two": (edit("summary.json", schema_version=0.5), "summary.json has no schema_version"),
    "no result": (edit("summary.json", final=None), "final: Field required"),
    "no status": (edit("summary.json", status=None), "has the status None"),
    "no cost": (edit("summary.json", cost={}), "summary.json is missing or changed since the run"),
    "1,000 levels deep": (text("summary.json", DEEP), "summary.json is not"),
    "a summary that is a folder": (folder("summary.json"), "summary.json cannot be read: it is not a regular file"),
    "a summary that leads nowhere": (
        lambda path: ((path / "summary.json").unlink(), (path / "summary.json").symlink_to(path / "nowhere")),
        "summary.json is missing",
    ),
    "no manifest": (removed("manifest.json"), "manifest.json is missing"),
    "another cell": (edit("manifest.json", identity={"seed": 3}), "holds the record of a run with another identity"),
    "no trajectory": (removed("trajectory.jsonl"), "trajectory.jsonl is missing"),
    "samples that are broken": (text("samples/final.parquet", "broken"), "samples/final.parquet is missing or changed"),
    "no samples": (removed("samples"), "samples/final.parquet is missing or changed"),
    "samples without a row": (samples(lambda t: t.head(0)), "samples/final.parquet is missing or changed"),
    "samples of other prompts": (samples(lambda t: t.assign(prompt="z")), "samples/base.parquet, samples/final.parquet is"),
}


def shown(at: session.Cell, fresh: bool = False) -> int:
    """`harness run` from the loaded cell on."""
    return run._run_cell(at, fresh, Progress(quiet=True), as_json=False, unmask=False)


def one_line(error: BaseException) -> str:
    said = str(error)
    assert "\n" not in said and "--fresh" in said
    return said


@pytest.mark.parametrize("name", UNFINISHED)
def test_damage_to_a_run_that_was_begun_is_named_and_cleared(record, name):
    damage, said = UNFINISHED[name]
    at = record("begun")
    damage(at.path)
    with pytest.raises(CorruptRecord) as found:
        session.run(at)
    assert said in one_line(found.value)
    summary, _ = session.run(at, fresh=True)
    assert summary.status == "done" and len(read_run(at.path).trajectory) == 3


@pytest.mark.parametrize("name", DONE)
def test_damage_to_a_run_that_was_done_is_named_and_cleared(record, name, capsys):
    damage, said = DONE[name]
    at = record("done")
    damage(at.path)
    with pytest.raises(CorruptRecord) as found:
        shown(at)
    assert said in one_line(found.value) and not capsys.readouterr().out
    session.run(at, fresh=True)
    assert sorted(p.name for p in at.path.iterdir() if p.name != ".lock") == [
        "manifest.json", "policy", "prompts.json", "samples", "scalars.jsonl", "summary.json", "trajectory.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["prompt_id", "judge", "response"])
def test_samples_that_cannot_be_shown_are_damage_where_no_hash_says_so(record, column, capsys):
    """Of a record from before hashes were kept."""
    at = record("done")
    edit("manifest.json", files=None)(at.path)
    samples(lambda table: table.drop(columns=column))(at.path)
    with pytest.raises(CorruptRecord, match=r"cannot be shown \(.*start again with --fresh"):
        shown(at)


def test_a_whole_record_is_shown(record, capsys):
    at = record("done")
    before = {p: p.stat().st_mtime_ns for p in at.path.rglob("*") if p.name != ".lock" and p != at.path}
    assert shown(at) == 0 and "undesired" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_run_that_was_done_before_is_drawn_where_its_picture_is_missing(record, monkeypatch):
    at, drawn = record("done"), []
    (at.path / "picture.png").unlink()
    monkeypatch.setattr(cli_result, "_draw", lambda store, target: drawn.append(target))
    assert shown(at) == 0 and drawn == [at.path / "picture.png"]


def test_fresh_removes_a_link_and_not_what_it_points_at(record, tmp_path):
    at, mine = record("done"), tmp_path / "mine"
    mine.mkdir()
    (mine / "weights").write_text("mine")
    for name in ("policy", "samples"):
        shutil.rmtree(at.path / name)
        (at.path / name).symlink_to(mine)
    session.run(at, fresh=True)
    assert (mine / "weights").read_text() == "mine" and os.listdir(mine) == ["weights"]
    assert not (at.path / "policy").is_symlink() and not (at.path / "samples").is_symlink()


def test_what_status_says_of_a_damaged_run_begins_anew(record):
    """Without --fresh the command that it gives would fail once more."""
    at = record("begun")
    removed("checkpoints/*/state.pt")(at.path)
    with pytest.raises(CorruptRecord):
        session.run(at)
    (found,) = Study([read_run(at.path)]).cells
    (command,) = status.commands(found, at.out)
    assert found.state == "failed" and command.endswith("--seeds 0 --fresh")


def planned(at: session.Cell) -> plan.Planned:
    return plan.Planned("one_step", "toy", 0, "micro", {}, {}, at.out, at.path, at.run_id)


@pytest.mark.parametrize("name", ["no result", "no status", "1,000 levels deep", "a summary that is a folder", "no trajectory"])
def test_a_damaged_cell_does_not_stop_a_sweep(record, records, name):
    """Its state is corrupt, so that it is tried and fails with its own line; the table has the other cells."""
    at, good = record("done"), cell(records / "done")
    DONE[name][0](at.path)
    assert plan.state_of(planned(at)) == "corrupt" and plan.state_of(planned(good)) == "done"
    assert "one_step" in sweep._trials([planned(at), planned(good)])
    assert sweep._trials([planned(at)]) == "no cell has finished"


def test_a_sweep_draws_what_a_kill_left_undrawn_and_goes_on_where_it_cannot(record, records, monkeypatch, capsys):
    at, good = record("done"), cell(records / "done")
    (at.path / "picture.png").unlink()
    drawn = []
    monkeypatch.setattr(cli_result, "_draw", lambda store, target: drawn.append(target))
    results = [Result(planned(good), "done"), Result(planned(at), "done"), Result(planned(at), "failed")]
    assert sweep._draw_missing(results) == 0 and drawn == [at.path / "picture.png"]
    (at.path / "manifest.json").write_text("{")
    assert sweep._draw_missing(results) == 1
    assert "warning: no picture of" in capsys.readouterr().err
    shutil.copy(good.path / "manifest.json", at.path)
    edit("manifest.json", archive={"samples": 0})(at.path)
    assert sweep._draw_missing(results) == 0 and len(drawn) == 1  # an archive keeps no pictures


class Ends(LocalEngine):
    """Cells that write the summary of a finished run and then end as they are told."""

    def command(self, cell):
        script = f"import shutil, os, signal; shutil.copytree({str(cell.settings['record'])!r}, {str(cell.path)!r})\n"
        return [sys.executable, "-c", script + cell.settings["end"]]


def ended(at: plan.Planned, **board: bool) -> plan.Result:
    (result,) = launcher.Launcher([at], Ends(1, Terms(), []), Board(1, **board)).run()
    return result


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "os._exit(0)"])
def test_a_cell_that_dies_after_its_summary_is_done(records, tmp_path, end, capsys):
    at = planned(cell(tmp_path / "out"))._replace(settings={"record": cell(records / "done").path, "end": end})
    result = ended(at)
    assert result.state == "done"
    assert ("its record is complete; after that:" in capsys.readouterr().err) == (end != "os._exit(0)")


def test_a_log_that_cannot_be_written_does_not_stop_a_sweep(tmp_path):
    (tmp_path / ".logs").write_text("a file")
    at = planned(cell(tmp_path))._replace(settings={"record": tmp_path / "nowhere", "end": ""})
    result = ended(at, quiet=True)
    assert result.state == "failed" and "(no log: " in result.why
