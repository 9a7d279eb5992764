"""Ctrl-C, once and again, and a standard output that takes no more: one line, and the exit code that the page on it says."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import SimpleNamespace

import pytest
from four_weights import Counted, Four, OneStep, cell, content

from harness.cli import main
from harness.core import process
from harness.core.errors import Interrupted
from harness.records.read import read_run
from harness.runs import session


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """`harness run` with a cell that takes a moment; -> where its record is, and how to change what it does."""
    from harness.runs import assemble

    parts = SimpleNamespace(method=OneStep, evaluator=Counted, loading=lambda: None)

    def made(*args):
        parts.loading()
        at = cell(tmp_path, parts.method)
        at.make_evaluator = lambda *a: parts.evaluator()
        return at

    monkeypatch.setattr(session, "Policy", Four)
    monkeypatch.setattr(assemble, "parts", lambda *a: None)
    monkeypatch.setattr(assemble, "cell", made)
    monkeypatch.setattr("harness.cli.run.draw", lambda path: path / "picture.png")
    monkeypatch.setattr(process.atexit, "register", lambda *a: None)
    return parts


class TwiceAtBase(Counted):
    def base_evaluation(self):
        press()
        press()


class TwiceAtTheEnd(Counted):
    def __init__(self) -> None:
        self.calls = 0

    def final(self, policy):
        self.calls += 1
        if self.calls == 3:  # after the base, and a point along the way
            press()
            press()
        return super().final(policy)


class TwiceInTraining(OneStep):
    def train(self, trial):
        for n, scalars in enumerate(super().train(trial)):
            if n == 1:
                press()
                press()
            yield scalars


def again_while_it_ends() -> None:
    """The second one comes while the first is on its way."""
    try:
        press()
    finally:
        press()


def swallowed() -> None:
    """Code that Ctrl-C breaks into may make anything of it, as the loading of a library does."""
    try:
        press()
    except KeyboardInterrupt:
        raise ImportError("a library could not be loaded") from None


PHASES = {
    "loading": {"loading": again_while_it_ends},
    "loading, and a library that makes something else of it": {"loading": swallowed},
    "base": {"evaluator": TwiceAtBase},
    "training": {"method": TwiceInTraining},
    "final": {"evaluator": TwiceAtTheEnd},
}
RUN = ("run", "--method", "base", "--task", "toxicity")


@pytest.mark.parametrize("phase", PHASES)
def test_a_second_ctrl_c_is_one_line_and_130_and_the_same_command_goes_on(harness, quick, tmp_path, phase):
    usual = dict(vars(quick))
    vars(quick).update(PHASES[phase])
    code, out, err = harness(*RUN)
    lines = [line for line in err.splitlines() if "error" in line or "Traceback" in line]
    assert (code, out) == (130, "") and len(lines) == 1 and lines[0].startswith("error: interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not phase.startswith("loading"):
        assert read_run(cell(tmp_path).path).manifest.status == "interrupted"
    vars(quick).update(usual)
    assert harness(*RUN)[0] == 0
    session.run(cell(tmp_path / "whole"))
    assert content(cell(tmp_path).path) == content(cell(tmp_path / "whole").path)


def test_another_ctrl_c_does_not_cut_the_line_short(harness, monkeypatch):
    """It comes while the error is told."""

    def fails(**kw):
        raise KeyboardInterrupt

    told, at_exit = process.explain, []
    monkeypatch.setattr(process.atexit, "register", lambda *a: at_exit.append(a))
    monkeypatch.setattr(process, "explain", lambda error: (press(), told(error))[1])
    monkeypatch.setattr(main, "app", fails)
    code, out, err = harness("env")
    assert (code, out) == (130, "")
    assert err == "error: interrupted; finished work is kept; run the same command to resume\n"
    assert at_exit == [(signal.signal, signal.SIGINT, signal.SIG_IGN)]  # Python itself sets it back before the very end


def test_an_error_without_ctrl_c_stays_what_it_is(harness, monkeypatch):
    code, _, err = harness("show", "run", "nothing")
    assert code != 130 and "interrupted" not in err


def test_ctrl_c_in_another_thread_than_the_main_one_is_left_to_python():
    import threading

    seen = []

    def body() -> None:
        with process.watched() as found:
            seen.append(found.asked)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
    assert isinstance(process.Interrupts().meaning(ValueError()), ValueError)
    assert issubclass(Interrupted, BaseException)


class Full(io.StringIO):
    """Standard output on a full disk, its file descriptor one of our own."""

    def __init__(self, number: int, at: str) -> None:
        super().__init__()
        self.number, self.at = number, at

    def fileno(self) -> int:
        return self.number

    def write(self, text: str) -> int:
        if self.at == "write":
            raise OSError(self.error, os.strerror(self.error))
        return len(text)

    def flush(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    error = errno.ENOSPC


@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_full_standard_output_is_one_line_and_the_record_is_kept(quick, tmp_path, monkeypatch, capsys, at):
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Full(file.fileno(), at))
        monkeypatch.setattr(sys, "argv", ["harness", *RUN])
        with pytest.raises(SystemExit) as stopped:
            main.main()
    err = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert err[-1] == "error: cannot write the result to standard output: No space left on device; the records are kept"
    assert "Traceback" not in str(err) and read_run(cell(tmp_path).path).manifest.status == "done"


def test_a_reader_that_has_had_enough_is_no_error(tmp_path, monkeypatch, capsys):
    class Closed(Full):
        error = errno.EPIPE

    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Closed(file.fileno(), "write"))
        monkeypatch.setattr(sys, "argv", ["harness", "list", "methods"])
        with pytest.raises(SystemExit) as stopped:
            main.main()
    assert stopped.value.code == 1 and capsys.readouterr().err == ""


def test_a_file_that_the_system_refuses_has_a_line(harness, monkeypatch):
    def refuses(**kw):
        raise OSError(errno.ENOSPC, "No space left on device", "index.html")

    monkeypatch.setattr(main, "app", refuses)
    assert harness("env") == (1, "", "error: index.html: No space left on device; -v shows where\n")
