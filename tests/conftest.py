"""One thread a process: the tests are small and run side by side, and a sum in another order is another float."""

import gc
import os
import signal
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of a shell's background jobs, whose commands would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """In a process that runs tests; with workers, the one that only hands them out is spared the import of torch."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # modules and tests live to the end: a full collection need not pass over a million objects each time


@pytest.fixture(scope="session")
def parser():
    """The parser of the command line, which is otherwise built again by each call: most of the time of a short one."""
    from typer.main import get_command

    from harness.cli import main

    return get_command(main.app)


@pytest.fixture
def harness(capsys, monkeypatch, parser):
    """Call the command line: -> exit code, standard output, standard error."""
    from harness.cli import main

    monkeypatch.setattr(main, "app", parser)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """No run is drawn, which takes as long as many a run itself, but in a test with the mark `pictures`."""
    from harness.cli import result

    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(result, "_draw", _in_place_of_pictures)


def _in_place_of_pictures(store, target):
    """Files of the names of pictures, of a record that is whole."""
    store.record()
    for path, content in ((target, b"\x89PNG\r\n\x1a\n"), (target.with_suffix(".svg"), b"<?xml")):
        path.write_bytes(content)


@pytest.fixture
def undrawn(monkeypatch):
    """Sheets without marks, for tests of anything but the pictures of a report."""
    import fake_reports

    fake_reports.undraw(monkeypatch)


@pytest.fixture(scope="module")
def one_thread():
    """Whatever an earlier test of this process asked for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_prompts():
    """A few held-out prompts instead of all, for tests of anything but the numbers: a module asks for it in `pytestmark`."""
    import quick

    with quick.few_prompts():
        yield
