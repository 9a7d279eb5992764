"""Trackers that follow a run: they see what is on disk, once each, and can neither change the run nor end it."""

import json
import signal

import fake_tracker as fake
import pytest
import quick

from harness.core.errors import Interrupted, MissingPrerequisite
from harness.export import live, trackers
from harness.export.live import Live, Tracking, exported, tracked
from harness.export.trackers import hushed
from harness.records.read import read_run, scalars
from harness.runs import assemble, session
from harness.runs.progress import Progress
from harness.runs.sweep import worker
from harness.runs.sweep.engines import contract
from harness.runs.sweep.plan import Planned

pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture
def store(monkeypatch):
    """The store of the only tracker, `fake`, whose library is installed."""
    store = fake.Store()
    monkeypatch.setattr(live, "opened", lambda name, root: fake.Tracker(store))
    return store


def attempt(cell, said: list[str], **more) -> None:
    progress = Progress(quiet=True)
    with tracked(Tracking(("fake",), **more), cell.path, cell.out, said.append) as followers:
        progress.written = followers.written
        session.run(cell, progress=progress)
        said += followers.end()


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    cell = quick.cell(tmp_path_factory.mktemp("untracked"))
    session.run(cell)
    return cell


def test_an_interrupted_run_goes_on_in_the_same_tracked_run(untracked, tmp_path, monkeypatch, store):
    cell, update, said, rows_before = quick.cell(tmp_path), session.Trial.update, [], []

    def interrupted(trial, loss):
        update(trial, loss)
        rows_before[:] = store.rows
        if trial.cost.updates == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session.Trial, "update", interrupted)
    with pytest.raises(Interrupted):
        attempt(cell, said)
    assert [row.update for row in rows_before if row.evaluation] == [0, 2]  # given while the run went on
    assert store.closed == ["interrupted"] and store.rows[-1].update == 3 and not store.ended
    key = store.begun.key
    monkeypatch.setattr(session.Trial, "update", update)
    attempt(cell, said)
    assert store.begun.key == key and store.closed == ["interrupted", "done"] and said == ["fake: look at the store"]

    run = read_run(cell.path)
    for name in ("kl", "reward"):
        assert store.points(f"eval/{name}") == [(row.update, row.metrics[name].value) for row in run.trajectory]
    recorded = [(row.update, row.scalars["nll"]) for row in scalars(run)]
    assert store.points("train/nll") == recorded and len(recorded) == 6
    (end,) = store.ended
    assert end.values["final/kl"] == run.summary.final["kl"].value and end.samples == []
    # the run is the one without trackers, to the bit
    assert cell.run_id == untracked.run_id and quick.trajectory(cell.path) == quick.trajectory(untracked.path)
    assert quick.weights(cell.path) == quick.weights(untracked.path)

    attempt(cell, said)  # a finished one gives nothing again
    assert len(store.ended) == 1 and len(store.points("train/nll")) == 6


def test_each_cell_of_a_sweep_is_followed(tmp_path, monkeypatch, store):
    cell = quick.cell(tmp_path, "base")
    monkeypatch.setattr(assemble, "named_cell", lambda *of: cell)
    planned = Planned("base", "toxicity", 0, "micro", {}, {}, tmp_path, cell.path, cell.run_id)
    assert worker._run(json.loads(contract.told(planned, contract.Terms(track=("fake",))))) == 0
    assert store.closed == ["done"] and len(store.ended) == 1 and store.ended[0].picture is None
    assert store.points("eval/kl") == [(row.update, row.metrics["kl"].value) for row in read_run(cell.path).trajectory]


@pytest.fixture
def dir(tmp_path):
    return fake.record(tmp_path)


@pytest.mark.parametrize("call", ["begin", "add", "end", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(call, dir, capsys):
    said, good = [], fake.Store()
    followers = Live(dir, {"bad": fake.Tracker(fake.Store(), (call,)), "good": fake.Tracker(good)}, said.append)
    followers.written()
    followers.written()
    assert followers.end() == ["good: look at the store"]
    warning = f"warning: the tracker bad failed (ConnectionError: no network for {call}); the run goes on without it"
    assert said == [warning]
    assert len(good.rows) == 67 and len(good.ended) == 1 and good.closed == ["done"]
    assert capsys.readouterr().out == ""  # standard output is the command's


def test_a_broken_record_leaves_its_trackers_out(dir):
    said: list[str] = []
    (dir / "trajectory.jsonl").write_text("{")
    Live(dir, {"fake": fake.Tracker(fake.Store())}, said.append).written()
    assert len(said) == 1 and "CorruptRecord" in said[0]


def test_a_run_that_fails_before_its_record_begins_opens_nothing(tmp_path, store):
    with pytest.raises(ZeroDivisionError), tracked(Tracking(("fake",)), tmp_path / "run", tmp_path, print):
        raise ZeroDivisionError
    assert store == fake.Store()


def test_a_run_that_fails_is_closed_as_that(dir, store):
    with pytest.raises(ZeroDivisionError), tracked(Tracking(("fake",)), dir, dir.parent, print):
        raise ZeroDivisionError
    assert store.closed == ["failed"] and len(store.rows) == 67


@pytest.mark.parametrize("unmask", [False, True])
def test_samples_are_given_when_asked_for_and_masked_unless_unmasked(dir, unmask):
    store = fake.Store()
    assert exported(read_run(dir), fake.Tracker(store), None, Tracking(samples=5, unmask=unmask))
    text = json.dumps(store.ended[0].samples)
    assert len(store.ended[0].samples) == 5 and ("answer" in text) is unmask and ("hidden" in text) is not unmask
    assert not exported(read_run(dir), fake.Tracker(store), None) and len(store.ended) == 1


def test_a_missing_library_stops_a_run_before_its_work(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "import_module", lambda *of: (_ for _ in ()).throw(ImportError(name="grpc")))
    with (
        pytest.raises(MissingPrerequisite, match="wandb needs the package grpc"),
        tracked(Tracking(("wandb",)), tmp_path, tmp_path, print),
    ):
        raise AssertionError("the work begins")


def test_what_libraries_print_is_not_the_result(capsys):
    with hushed():
        print("view this run at")
    assert capsys.readouterr().out == ""
