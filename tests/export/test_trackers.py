"""Each tracker, read back from its own files: it holds the record's numbers, each once, whatever became of the run."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import fake_tracker as fake
import pytest
import tracker_stores
from places import ROOT

from harness.core.errors import MissingPrerequisite, UnknownName, UsageError
from harness.export import events, trackers
from harness.export.events import Held
from harness.export.live import Live, Tracking, exported
from harness.export.trackers import opened
from harness.export.trackio import Trackio
from harness.records.read import read_run, scalars

LIBRARIES = ("WANDB_", "MLFLOW_", "TRACKIO_")


@pytest.fixture(params=tracker_stores.READ)
def kind(request, tmp_path):
    """A tracker that is installed, and a home folder of its own; what it sets in the environment is gone afterwards."""
    if find_spec(request.param) is None:  # an import would fix the folder of Trackio
        pytest.skip(f"{request.param} is not installed")
    before = dict(os.environ)
    for name in before:
        if name.startswith(LIBRARIES):
            del os.environ[name]
    os.environ["HOME"] = str(tmp_path / "home")
    yield request.param
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.timeout(120)
def test_a_tracker_holds_what_the_record_does(kind, tmp_path, capfd):
    """Interrupted, resumed, finished and then exported: every step once."""
    dir, root, said = fake.record(tmp_path / "records"), tmp_path / "trackers", []
    whole = fake.rewound(dir, evaluations=3, updates=25)
    first = Live(dir, {kind: opened(kind, root)}, said.append)
    first.written()
    first.stopped(KeyboardInterrupt())
    fake.put_back(dir, whole)
    second = Live(dir, {kind: opened(kind, root)}, said.append, Tracking(samples=3))
    second.written()
    assert second.end() and said == []
    run = read_run(dir)
    assert not exported(run, opened(kind, root), None)

    held = tracker_stores.READ[kind](root / kind)
    exact = 1e-6 if kind == "tensorboard" else 1e-15  # it keeps single precision
    for name in ("kl", "reward", "efficiency"):
        expected = [(row.update, row.metrics[name].value) for row in run.trajectory if row.metrics[name].value is not None]
        assert along(held, f"eval/{name}") == [(u, pytest.approx(v, rel=exact)) for u, v in expected]
        assert held[f"final/{name}"][-1][1] == pytest.approx(run.summary.final[name].value, rel=exact)
    for name, tag in (("loss", "train/loss"), ("odd/name {x}", "train/odd_name _x_")):
        expected = [(row.update, row.scalars[name]) for row in scalars(run) if row.scalars[name] is not None]
        assert along(held, tag) == [(u, pytest.approx(v, rel=exact)) for u, v in expected]
    assert along(held, "cost/updates") == [(10 * i, 10 * i) for i in range(7)]
    texts = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert b"answer" not in texts and b"prompt 1" not in texts
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("kind", ["wandb"], indirect=True)  # the other stores are read back
def test_an_attempt_that_was_killed_is_given_again(kind, tmp_path):
    """W&B writes in a process of its own, which is killed with the run's: what it had not written is given again."""
    run, root = read_run(fake.record(tmp_path / "records")), tmp_path / "trackers"
    killed = opened("wandb", root)
    killed.begin(events.begin(run))
    killed.add(events.rows(run, Held())[:20])
    killed.close("failed")
    (note,) = (root / "wandb" / "held").iterdir()
    note.unlink()  # as if it had not come to its end
    assert exported(run, opened("wandb", root), None)
    assert along(tracker_stores.wandb(root), "train/loss") == [(i, 1 / i) for i in range(1, 61)]
    assert not exported(run, opened("wandb", root), None)


def along(held: dict, name: str) -> list[tuple[int, float]]:
    """The history of a value, without the summary that W&B keeps beside it."""
    return [(step, value) for step, value in held[name] if step >= 0]


def test_mlflow_and_tensorboard_name_the_run_and_its_settings(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = read_run(fake.record(tmp_path))
    assert exported(run, opened("tensorboard", tmp_path / "t"), fake.picture(), Tracking(samples=2, unmask=True))
    (folder,) = {path.parent for path in (tmp_path / "t").rglob("events*")}
    assert folder.relative_to(tmp_path / "t").parts[:4] == ("tensorboard", "micro", "toxicity", "quark")
    files = accumulator.EventAccumulator(str(folder)).Reload()
    (settings,), (samples,) = files.Tensors("settings"), files.Tensors("samples")
    assert b'"task.reward": "vader"' in settings.tensor_proto.string_val[0]
    text = samples.tensor_proto.string_val[0].decode()
    assert "answer" in text and all(line.startswith("    ") for line in text.splitlines())  # no Markdown
    assert files.Images("picture")[0].encoded_image_string == fake.picture()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["mlflow", "trackio"], indirect=True)  # whose store is one file
def test_runs_that_end_at_once_share_a_store(kind, tmp_path):
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fixtures")])}
    script = ROOT / "tests" / "fixtures" / "export_at_once.py"
    words = [[sys.executable, "-P", str(script), str(tmp_path), str(seed), kind] for seed in range(3)]
    processes = [subprocess.Popen(w, env=os.environ | paths, stderr=subprocess.PIPE, text=True) for w in words]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    held = tracker_stores.READ[kind](tmp_path / kind)
    assert sorted(along(held, "train/loss")) == sorted(3 * [(i, 1 / i) for i in (1, 2, 3)])


def test_rows_that_trackio_drops_are_missed(tmp_path):
    """It warns and goes on where it cannot write."""
    run = read_run(fake.record(tmp_path))
    tracker = Trackio.__new__(Trackio)
    tracker.folder, tracker._run = "its folder", None
    store = SimpleNamespace(get_logs=lambda project, name: [{"step": 1, "train/loss": 1.0}])
    tracker._library = SimpleNamespace(
        SQLiteStorage=store, init=lambda **of: SimpleNamespace(log=lambda *of, step: None), finish=print
    )
    assert tracker.begin(events.begin(run)) == Held(1, 0)
    tracker.add(events.rows(run, Held(1, 0))[:3])
    with pytest.raises(OSError, match="has not kept every row; look at the disk of its folder"):
        tracker.close("done")
    tracker.close("done")  # again, by the one who caught it


def test_names_of_trackers():
    assert trackers.names(" wandb,mlflow,wandb") == ["wandb", "mlflow"]
    with pytest.raises(UsageError, match="no tracker is named; known: tensorboard, wandb, mlflow, trackio"):
        trackers.names(",")
    with pytest.raises(UnknownName, match="did you mean 'tensorboard'"):
        trackers.names("tensorbord")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingPrerequisite, match=r"needs the package wandb, .*pip install 'unlearning-harness\[wandb\]'"):
        trackers.required("wandb")
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)  # an import of it fails
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[tensorboard\]'"):
        opened("tensorboard", tmp_path)


def test_a_folder_of_its_name_is_not_the_library(monkeypatch):
    """Such as the one that W&B leaves where it is called: Python finds it as a package without a file."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(MissingPrerequisite, match="needs the package wandb"):
        trackers.required("wandb")
