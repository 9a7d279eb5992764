"""Methods that keep the harness waiting, hand back control without an update, or change what is not theirs."""

import threading
import time

import pytest
from four_weights import Counted, Four, OneStep, cell

from harness.core.errors import MethodFailed, RunFailed
from harness.records.read import read_run
from harness.runs import session
from harness.runs.progress import Progress, Watch


class Responses(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines, self.spoken = [], threading.Event()

    def say(self, text: str) -> None:
        self.lines.append(text)
        if "no update" in text:
            self.spoken.set()


@pytest.fixture(autouse=True)
def quick_policies(monkeypatch):
    monkeypatch.setattr(session, "Policy", Four)


def test_a_method_that_stays_away_is_spoken_of(tmp_path, monkeypatch):
    said = Responses()

    class Waits(OneStep):
        def train(self, trial):
            assert said.spoken.wait(60)
            yield from super().train(trial)

    monkeypatch.setattr(session, "SILENCE_SECONDS", 0.01)
    session.run(cell(tmp_path, Waits, updates=1), progress=said)
    assert "no update of one_step for 0 s; if it is stuck, Ctrl-C twice stops it at once" in said.lines


def test_nothing_is_said_of_a_method_while_the_harness_measures(tmp_path, monkeypatch):
    calls, measured = [], threading.Event()
    with Watch(0.01, lambda: calls.append(measured.is_set())) as watch, watch.paused():
        measured.set()
        time.sleep(0.05)
        assert True not in calls


def test_nothing_is_said_of_a_method_while_its_run_measures_a_point(tmp_path, monkeypatch):
    said, silent, at = Responses(), [], cell(tmp_path, updates=3)

    class Slow(Counted):
        def point(self, policy):
            before = len(said.lines)
            time.sleep(0.05)
            silent.append(len(said.lines) == before)
            return super().point(policy)

    at.make_evaluator = lambda *_: Slow()
    monkeypatch.setattr(session, "SILENCE_SECONDS", 0.01)
    session.run(at, progress=said)
    assert silent == [True, True]


def test_a_watch_ends_with_its_block():
    before = threading.active_count()
    with Watch(1000.0, lambda: None):
        assert threading.active_count() == before + 1
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join(60)
    assert threading.active_count() == before


@pytest.mark.parametrize("updates", [0, 1])
def test_a_yield_without_an_update_fails_the_run_and_names_the_rule(tmp_path, updates):
    class Idle(OneStep):
        def train(self, trial):
            for _, scalars in zip(range(updates), super().train(trial), strict=False):
                yield scalars
            yield {}

    said = f"^one_step yielded after update {updates} without another; train yields after each trial.update$"
    with pytest.raises(RunFailed, match=said):
        session.run(cell(tmp_path, Idle, updates=4))
    assert read_run(cell(tmp_path, updates=4).path).manifest.error.type == "RunFailed"


def test_a_method_may_end_before_its_budget_or_yield_nothing(tmp_path):
    class Nothing(OneStep):
        def train(self, trial):
            yield from ()

    class Once(OneStep):
        def train(self, trial):
            yield next(super().train(trial))

    for name, method in (("nothing", Nothing), ("once", Once)):
        summary, _ = session.run(cell(tmp_path / name, method, updates=4))
        assert summary.cost["updates"] == (name == "once")


def test_a_run_that_changed_its_reference_fails(tmp_path):
    """The base policy's weights are held once: what a method does to the reference would be done to the evaluator's too."""

    class Careless(OneStep):
        def train(self, trial):
            for scalars in super().train(trial):
                trial.reference.weight.data.add_(1.0)
                yield scalars

    at = cell(tmp_path, Careless)
    with pytest.raises(MethodFailed, match=r"one_step changed the weights of trial\.reference; expected .*copy\(\)"):
        session.run(at)
    assert read_run(at.path).manifest.error.type == "MethodFailed"
