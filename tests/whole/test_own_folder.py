"""A user's folder may hold files of any name, and a user's machine may be set up in any way: commands work the same."""

import io
import json
import os
import subprocess
import sys
import warnings
from types import ModuleType

import fake_records
import pytest

from harness.cli import main
from harness.core import process, registry
from harness.core.process import cores
from harness.methods import METHODS
from harness.runs.progress import loading
from harness.runs.sweep import worker
from harness.runs.sweep.engines.contract import Terms
from harness.runs.sweep.engines.local import LocalEngine, LocalJob
from harness.runs.sweep.plan import Planned

OWN_NAMES = ("tasks", "methods")
ANY_NAMES = (*OWN_NAMES, "harness", "random", "types", "string", "statistics", "conftest", "settings", "errors", "worker")


@pytest.fixture
def theirs(tmp_path):
    """A folder with files of our names and of Python's, none of which may be imported by us."""

    def fill(names):
        for name in names:
            (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the {name} of the user was imported')\n")
        (tmp_path / "harness.toml").write_text("x = 1\n")
        return tmp_path

    return fill


def test_our_packages_are_found_where_the_folder_of_the_user_comes_first(theirs):
    code = (
        "import harness.cli.main, sys; sys.argv[1:] = ['list', 'methods']\n"
        "try: harness.cli.main.main()\n"
        "except SystemExit as e: assert not e.code\n"
        "from harness.core import registry\n"
        "import harness.core.hub, harness.methods\n"
        "print(len(registry.table('task')), len(harness.methods.METHODS))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=theirs(OWN_NAMES), env=with_us())
    assert done.returncode == 0, done.stderr
    assert "quark" in done.stdout and done.stdout.splitlines()[-1] == f"{len(registry.table('task'))} {len(METHODS)}"


def with_us(**more: str) -> dict[str, str]:
    """The environment, with this very package behind all that the user has."""
    path = [more.pop("PYTHONPATH", ""), str(process.ROOT)]
    return os.environ | more | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


@pytest.fixture
def cell(tmp_path):
    return Planned("no-such-method", "toxicity", 0, "micro", {}, {}, tmp_path / "out", tmp_path / "out" / "x", "x")


def test_a_cell_of_a_sweep_starts_in_a_folder_of_any_names(theirs, cell):
    command = LocalEngine(2, Terms(), []).command(cell)
    stdin, parent = os.pipe()  # a cell ends when the sweep is gone
    done = subprocess.run(command, capture_output=True, text=True, cwd=theirs(ANY_NAMES), stdin=stdin)
    os.close(stdin), os.close(parent)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: no method named 'no-such-method'"), (
        done.stderr
    )


def test_a_cell_can_import_what_the_sweep_can_and_its_record_shows_no_paths(tmp_path, monkeypatch, cell):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "neighbour.py").write_text("print('imported')\n")
    (tmp_path / "random.py").write_text("raise RuntimeError('not Python\\'s')\n")
    *python, start, told, paths = LocalEngine(2, Terms(), []).command(cell)
    seen = (
        start.replace("import harness.runs.sweep.worker", "import random, neighbour").rpartition("sys.exit")[0]
        + "print(sys.argv)"
    )
    done = subprocess.run([*python, seen, told, paths], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["imported", str(["-c", told])], done.stderr
    assert json.loads(told)["method"] == "no-such-method"


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_program_may_have_imported_its_own_module_of_our_name(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert registry.table("method") and registry.table("task")
    assert registry.load("task", "toxicity").__module__ == "harness.tasks.toxicity"


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("", 7),
        ("4,2", 4),
        (" 3 ", 3),
        ("x", 7),
        ("0", 7),
        ("-1", 7),
        ("1e3", 7),
        ("9" * 70, 7),
        ("002", 2),
        (",2", 7),
        ("٣", 7),
    ],
)
def test_threads_of_an_environment_that_says_anything(monkeypatch, told, found):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert process.threads(7) == found


def test_threads_where_the_environment_says_nothing(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert process.threads(7) == 7


@pytest.mark.parametrize("told", ["", "4,2"])
def test_a_command_and_the_cells_of_a_sweep_begin_whatever_the_environment_says_of_threads(monkeypatch, cell, told):
    asked: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    loading("a command")
    assert asked == [process.threads(cores())]
    assert said_by(cell, "print(os.environ['OMP_NUM_THREADS'], file=sys.stderr)", at_most=7) == [told[:1] or "7"]


def said_by(cell, script: str, at_most: int = 1) -> list[str]:
    """What a cell with a script of its own says on its standard error."""
    running = LocalJob(cell, [sys.executable, "-S", "-c", f"import os, sys\n{script}"], at_most)
    running.process.wait(60)
    running.close()
    return list(running.lines)


def test_what_a_cell_says_is_read_whole_whatever_the_encoding_of_the_user_is(monkeypatch, cell):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert said_by(cell, "print('d\\xe9j\\xe0 \\U0001f600', file=sys.stderr)") == ["d\xe9j\xe0 \U0001f600"]


def test_a_stream_of_few_characters_shows_the_others_by_their_numbers(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "latin-1"))
    process.prepare()
    for stream in (sys.stdout, sys.stderr):
        print("déjà \u2019 \U0001f600 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue() == b"d\xe9j\xe0 \\u2019 \\U0001f600 \\udcff\n"


def test_the_command_line_and_a_cell_of_a_sweep_can_print_any_text(monkeypatch):
    def speaks(*_, **__):
        print("\u2019", file=sys.stderr, flush=True)
        return 0

    def heard(start) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
        monkeypatch.setattr(sys, "stderr", stream)
        start()
        return stream.buffer.getvalue()

    def by_hand() -> None:
        with pytest.raises(SystemExit):
            main.main()

    monkeypatch.setattr(sys, "argv", ["harness", "env"])
    monkeypatch.setattr(main, "app", speaks)
    monkeypatch.setattr(worker, "_watch_parent", lambda: None)
    monkeypatch.setattr(worker, "_run", speaks)
    told = dict.fromkeys(("method", "task", "preset", "seed", "overrides", "out", "offline"), "x")
    for start in (by_hand, lambda: worker.main(told)):
        assert heard(start) == b"\\u2019\n"


def test_closed_streams_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    process.prepare()


@pytest.mark.parametrize("category", process.PASSING)
def test_deprecations_of_libraries_are_not_shown_unless_asked_for(monkeypatch, category):
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        process.prepare()
        warnings.warn("goes in 5.40", category, stacklevel=1)
        with process.quiet():
            warnings.warn("goes in 5.40", category, stacklevel=1)
        warnings.warn("look at this", UserWarning, stacklevel=1)
        assert [str(w.message) for w in shown] == ["look at this"]
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        process.prepare()
        with process.quiet():
            warnings.warn("goes in 5.40", category, stacklevel=1)
        assert len(shown) == 1


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_bars_of_libraries_are_off_inside_and_as_before_outside():
    from transformers.utils import logging

    for before, switch in ((True, logging.enable_progress_bar), (False, logging.disable_progress_bar)):
        switch()
        with process.quiet():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() == before


def test_waiting_threads_do_not_spin_in_any_command():
    assert process.QUIET["OMP_WAIT_POLICY"] == "passive"


def test_words_that_are_not_utf_8_are_refused_before_anything_is_done(harness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ("run -m base -t toxicity --out \udcff", "report \udcff", "new method m --out \udcff"):
        code, out, err = harness(*words.split())
        assert (code, out) == (2, "") and err.startswith("error: expected arguments in UTF-8") and "\\udcff" in err
    code, out, err = harness("report", "a\0b")
    assert (code, out) == (2, "") and "'a\\x00b'" in err and "without null characters" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(28, "No space left on device", "/full/file"), "error: /full/file: No space left on device"),
        (OSError("the pipe is cold"), "error: the pipe is cold"),
        (PermissionError(13, "Permission denied"), "error: Permission denied"),
        (MemoryError(), "error: out of memory; reduce evaluation.batch_size"),
        (SystemExit(77), "error: code loaded by this command called sys.exit(77)"),
        (SystemExit(0), "error: code loaded by this command called sys.exit(0)"),
    ],
)
def test_what_a_machine_refuses_is_one_line(harness, monkeypatch, raised, said):
    def refused():
        raise raised

    monkeypatch.setattr("harness.cli.listing.environment", refused)
    code, out, err = harness("env")
    assert (code, out) == (1, "") and err.startswith(said) and len(err.splitlines()) == 1


def test_a_page_that_cannot_be_written_is_one_line(harness, tmp_path, monkeypatch):
    def refused(*_):
        (tmp_path / "file" / "page").mkdir(parents=True)

    (tmp_path / "file").write_text("")
    fake_records.write_run(tmp_path / "records", "quark", 0)
    monkeypatch.setattr("harness.report.build.build", refused)
    code, out, err = harness("report", tmp_path / "records", "-o", tmp_path / "file" / "page")
    assert (code, out) == (1, "")
    assert err == f"error: {tmp_path / 'file' / 'page'}: Not a directory; -v shows where\n"


def test_a_full_disk_behind_standard_output_is_one_line(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "argv", ["harness", "list", "tasks"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1 and "cannot write the result to standard output: No space left" in capsys.readouterr().err
