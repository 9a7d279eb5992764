"""Sweeps: which cells there are, what happens to each, and that nothing runs twice or is left behind.

Most cells here are small programs that end in every way a cell can end; two are real.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import quick
from places import ROOT

from harness.cli import sweep as command
from harness.core.errors import BadSetting, EmptySelection, Interrupted, MissingPrerequisite, UnknownName
from harness.core.settings import flat, overrides, parse_grid
from harness.records.read import read_run
from harness.runs.sweep import board, launcher
from harness.runs.sweep import plan as sweep
from harness.runs.sweep.board import Board, duration
from harness.runs.sweep.engines import local, process
from harness.runs.sweep.engines.contract import Terms
from harness.runs.sweep.engines.local import LocalEngine
from harness.runs.sweep.launcher import Launcher, exit_code
from harness.runs.sweep.plan import Planned, Result, Sweep, choices, plan, told

STUB = """
import json, os, pathlib, signal, sys, time
path, do = pathlib.Path(sys.argv[1]), sys.argv[2]
path.mkdir(parents=True, exist_ok=True)

def finish(status="done"):
    with (path / "ran").open("a") as f:
        f.write(os.environ["OMP_NUM_THREADS"] + "\\n")
    told = {"schema_version": 1, "run_id": "stub", "status": status}
    cell = {"preset": "micro", "task": "toy", "method": "stub", "seed": 0, "identity": {}}
    (path / "manifest.json").write_text(json.dumps(told | cell))
    (path / "trajectory.jsonl").touch()
    (path / "summary.json").write_text(json.dumps(told | {"base": {}, "final": {}, "frontier": None, "cost": {}}))

print("  12 s  at work", file=sys.stderr, flush=True)
if do == "done":
    finish()
elif do == "degraded":
    finish("degraded")
    sys.exit(4)
elif do == "fail":
    print("error: the moon is full", file=sys.stderr)
    sys.exit(1)
elif do == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif do == "silent":
    sys.exit(3)
elif do == "nothing":
    sys.exit(0)
elif do == "meet":  # ends only where another cell is at work at the same time
    (path / "here").touch()
    while len(list(path.parent.glob("*/here"))) < 2:
        time.sleep(0.01)
    finish()
elif do == "alone":
    (path / "here").touch()
    assert len(list(path.parent.glob("*/here"))) == 1
    assert os.getsid(0) == os.getpid()  # Ctrl-C at the terminal reaches the sweep alone
    time.sleep(0.1)
    (path / "here").unlink()
    finish()
elif do == "busy":
    if not (path / "tried").exists():
        (path / "tried").touch()
        sys.exit(75)
    finish()
elif do in ("wait", "deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if do == "deaf" else lambda *_: sys.exit(130))
    (path / "pid").write_text(str(os.getpid()))
    time.sleep(60)
elif do == "lock":
    sys.path.insert(0, sys.argv[3])
    from harness.records.write import RunStore
    from harness.core.errors import Busy
    store = RunStore(path)
    try:
        store.open()
    except Busy:
        sys.exit(75)
    if not (path / "summary.json").exists():
        time.sleep(0.2)
        finish()
"""


class Here(LocalEngine):
    def command(self, cell):
        return [sys.executable, "-c", STUB, str(cell.path), cell.settings["do"], str(ROOT)]


def Stubs(cells: list[Planned], workers: int, board: Board, devices: tuple[str, ...] = (), **more: Any) -> Launcher:
    return Launcher(cells, Here(workers, Terms(), devices), board, **more)


def stub(out: Path, do: str, seed: int = 0) -> Planned:
    return Planned("stub", "toy", seed, "micro", {"do": do}, {"do": do}, out, out / "toy" / f"{do}-s{seed}", do)


def launch(out: Path, *dos: str, workers: int = 3) -> dict[str, Result]:
    cells = [stub(out, do, i) for i, do in enumerate(dos)]
    results = Stubs(cells, workers, Board(len(cells), quiet=True)).run()
    assert len(results) == len(cells)
    return {r.cell.path.name: r for r in results}


def test_every_end_that_a_cell_can_have(tmp_path):
    found = launch(tmp_path, "done", "degraded", "fail", "die", "silent", "nothing", "done")
    assert {name: r.state for name, r in found.items()} == {
        "done-s0": "done", "degraded-s1": "degraded", "fail-s2": "failed", "die-s3": "failed", "silent-s4": "failed",
        "nothing-s5": "failed", "done-s6": "done",
    }  # fmt: skip
    assert found["fail-s2"].why.startswith("the moon is full (log ")
    assert "SIGKILL; out of memory?" in found["die-s3"].why
    log = tmp_path / ".logs" / "toy-stub-fail-s2.txt"
    assert log.read_text() == "  12 s  at work\nerror: the moon is full\n"
    assert exit_code(list(found.values())) == 1


def test_exit_codes(tmp_path):
    def of(*states):
        return exit_code([Result(stub(tmp_path, "done"), state) for state in states])

    assert of("done", "done") == 0 and of("done", "degraded") == 4 and of("degraded", "failed") == 1
    assert of("failed", "interrupted", "not run") == 130


def test_the_same_sweep_again_runs_what_is_missing(tmp_path):
    first = launch(tmp_path, "done", "fail")
    assert first["fail-s1"].state == "failed"
    cells = [stub(tmp_path, "done", 0), stub(tmp_path, "fail", 1)._replace(settings={"do": "done"})]
    results = {r.cell.seed: r for r in Stubs(cells, 1, Board(2, quiet=True)).run()}
    assert results[0].seconds is None and results[1].seconds is not None
    assert [r.state for r in results.values()] == ["done", "done"]
    assert (tmp_path / "toy" / "done-s0" / "ran").read_text().count("\n") == 1
    assert not list((tmp_path / ".logs").iterdir())


def test_as_many_cells_at_once_as_there_are_workers(tmp_path):
    assert launch(tmp_path, "meet", "meet", workers=2)["meet-s1"].state == "done"
    assert {r.state for r in launch(tmp_path / "b", "alone", "alone", "alone", workers=1).values()} == {"done"}


@pytest.mark.parametrize(("mine", "workers", "threads"), [(None, 3, "2"), (None, 9, "1"), ("1", 2, "1"), ("99", 2, "4")])
def test_the_cores_are_divided(tmp_path, monkeypatch, mine, workers, threads):
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if mine:
        monkeypatch.setenv("OMP_NUM_THREADS", mine)
    launch(tmp_path, "done", workers=workers)
    assert (tmp_path / "toy" / "done-s0" / "ran").read_text() == f"{threads}\n"


def test_a_cell_that_another_process_holds_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "RETRY", 0.2)
    results = Stubs([stub(tmp_path, "busy")], 1, Board(1)).run()
    assert [r.state for r in results] == ["done"] and (tmp_path / "toy" / "busy-s0" / "tried").exists()
    assert "another process is at work on stub" in capsys.readouterr().err


def test_two_sweeps_on_one_folder_run_no_cell_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "RETRY", 0.3)
    cells = [stub(tmp_path, "lock", seed) for seed in range(3)]
    sweeps = [Stubs(cells, 2, Board(3, quiet=True)) for _ in range(2)]
    threads = [threading.Thread(target=s.run) for s in sweeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(r.state for r in s.results) for s in sweeps] == [["done"] * 3] * 2
    assert [(c.path / "ran").read_text().count("\n") for c in cells] == [1, 1, 1]


def signal_when(ready, *signals: int) -> threading.Thread:
    """Send this process signals, one after the other, once something is true."""

    def body():
        for number in signals:
            deadline = time.monotonic() + 60
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_children_and_leaves_the_rest(tmp_path, number):
    cells = [stub(tmp_path, "wait", seed) for seed in range(3)]
    pids = [c.path / "pid" for c in cells[:2]]
    asker = signal_when(lambda: all(p.exists() and p.read_text() for p in pids), number)
    before = signal.getsignal(signal.SIGINT)  # a shell in the background has it ignored
    results = Stubs(cells, 2, Board(3, quiet=True)).run()
    asker.join()
    assert sorted(r.state for r in results) == ["interrupted", "interrupted", "not run"] and exit_code(results) == 130
    assert not any(alive(int(p.read_text())) for p in pids)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_child_that_does_not_listen_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 0.3)
    cell = stub(tmp_path, "deaf")
    pid = cell.path / "pid"
    asker = signal_when(lambda: pid.exists() and pid.read_text(), signal.SIGINT, signal.SIGINT)
    with pytest.raises(Interrupted):
        Stubs([cell], 1, Board(1, quiet=True)).run()
    asker.join()
    assert not alive(int(pid.read_text()))


ORPHAN = """
import signal, sys, threading, time
from harness.runs.sweep import worker

def stop(*_):
    print("stopping", file=sys.stderr, flush=True)
    sys.exit(130)

signal.signal(signal.SIGTERM, stop)
threading.Thread(target=worker._watch_parent, daemon=True).start()
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_a_cell_stops_in_order_when_the_sweep_that_started_it_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr.readline() == b"ready\n"
    child.stderr.close()  # what it says goes nowhere, and must not fail it
    child.stdin.close()
    assert child.wait(30) == 130


def test_each_result_is_handed_on_once_when_it_is_known(tmp_path):
    cells, seen = [stub(tmp_path, "done"), stub(tmp_path, "fail")], []
    results = Stubs(cells, 1, Board(2, quiet=True), each=seen.append).run()
    assert seen == results and {r.state for r in seen} == {"done", "failed"}


def test_a_sweep_draws_each_cell_that_it_has_run_and_none_that_was_done(tmp_path, monkeypatch):
    drawn, cell = [], stub(tmp_path, "done")
    monkeypatch.setattr("harness.cli.sweep.draw", drawn.append)
    for result in (Result(cell, "done", seconds=1.0), Result(cell, "done"), Result(cell, "failed", "x", 1.0)):
        command._draw_new(result)
    assert drawn == [cell.path]


def test_the_board(tmp_path, monkeypatch, capsys):
    shown, cell = Board(5), stub(tmp_path, "done")
    assert shown.lines([], [], 5, 2) == ["0/5 cells"]
    shown.finished(Result(cell, "done", seconds=60.0))
    shown.finished(Result(cell, "failed", "no luck", 1.0))
    shown.finished(Result(cell, "done"))
    shown.finished(Result(cell, "interrupted"))
    said = capsys.readouterr().err
    assert 'stub do="done" seed 0: done in 60 s' in said and "failed: no luck" in said and "resumable" in said
    running = type("Running", (), {"cell": cell, "last": "45%  KL 0.1", "seconds": 20.0})()
    head, line = shown.lines([Result(cell, "failed")], [running], 2, 2)
    assert head == "1/5 cells, 1 failed, about 80 s left"  # (2 * 60 + 40) / 2
    assert line == '  stub do="done" seed 0: 45%  KL 0.1 (20 s)'
    assert [duration(s) for s in (99.0, 120.0, 7200.0)] == ["99 s", "2 min", "2.0 h"]
    monkeypatch.setattr(board, "PLAIN_EVERY", 0.0)
    shown.show([], [running], 2, 2)
    assert "0/5 cells, about 80 s left; stub" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    shown.show([], [running], 2, 2)
    shown.say("a line")
    shown.stop()
    assert "45%" in sys.stderr.getvalue() and "a line" in sys.stderr.getvalue()


def spec(**told) -> Sweep:
    return Sweep(**({"methods": ["quark", "best-of-n", "base"], "tasks": ["toxicity"]} | told))


def test_a_setting_goes_to_the_methods_that_have_it():
    found = {c.method: c.settings for c in choices(spec(set={"lr": 0.1, "best-of-n.n": 3, "evaluation.points": 2}))}
    assert found == {
        "quark": {"lr": 0.1, "evaluation.points": 2},
        "best_of_n": {"n": 3, "evaluation.points": 2},
        "base": {"evaluation.points": 2},
    }


def test_a_grid_is_every_combination_of_the_settings_that_a_method_has():
    found = list(choices(spec(grid={"kl_coef": [0.1, 0.3], "n": [2, 4, 8], "quark.lr": [1e-4, 1e-3]}, set={"lr": 1.0})))
    points = [(c.settings["kl_coef"], c.settings["lr"]) for c in found if c.method == "quark"]
    assert points == [(0.1, 1e-4), (0.1, 1e-3), (0.3, 1e-4), (0.3, 1e-3)]
    assert [c.point for c in found if c.method == "best_of_n"] == [{"n": 2}, {"n": 4}, {"n": 8}]
    assert [c.settings for c in found if c.method == "base"] == [{}]


def test_a_file_says_the_same_as_flags(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'methods = ["base", "quark"]\ntasks = ["toxicity"]\nseeds = [0, 2]\n[evaluation]\nsplit = "validation"\n'
        "[set]\nquark.lr = 1e-4\nbudget.updates = 6\n[grid]\nkl_coef = [0.1, 0.3]\n"
    )
    settings = ["evaluation.split=validation", "quark.lr=1e-4", "budget.updates=6"]
    by_file = told(path, None, None, None, None, [], [])
    by_flags = told(None, "base, quark", "toxicity", "0,2", None, settings, ["kl_coef=0.1,0.3"])
    assert by_file.seeds == [0, 2] and by_flags == by_file.model_copy(update={"seeds": "0,2"})
    both = told(path, "quark", None, "5", None, ["quark.lr=1"], ["kl_coef=7"])
    assert (both.methods, both.seeds, both.set["quark.lr"], both.grid) == (["quark"], "5", 1, {"kl_coef": [7]})


def test_a_flag_that_leaves_a_method_out_leaves_its_settings_out(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'methods = ["best-of-n", "./mine.py", "quark"]\ntasks = ["toxicity"]\n[set]\nbest_of_n.n = 4\nmethod.mine.lr = 1.0\n'
        "kl_coef = 0.5\n[grid]\nmine.beta = [1, 2]\nquark.lr = [1e-4, 1e-3]\n"
    )
    narrowed = told(path, "quark", None, None, None, [], [])
    assert (narrowed.set, narrowed.grid) == ({"kl_coef": 0.5}, {"quark.lr": [1e-4, 1e-3]})
    with pytest.raises(UnknownName, match="no method or section of this sweep named 'best_of_n'"):  # a flag's own is meant
        list(choices(told(path, "quark", None, None, None, ["best_of_n.n=2"], [])))
    path.write_text('methods = "quark"\ntasks = ["toxicity"]\n')
    assert told(path, "quark", None, None, None, [], []).methods == ["quark"]


def test_values_come_back_as_they_were_said():
    settings = {"a": "validation", "b": True, "c": 1e-05, "d": 3, "e": ["x", 1], "f": 'a "word"'}
    assert dict(map(sweep.parse_override, overrides(settings))) == settings
    assert parse_grid("variant=paper,code") == ("variant", ["paper", "code"])
    assert parse_grid("betas=[0.9, 0.99],[0.5, 0.9]") == ("betas", [[0.9, 0.99], [0.5, 0.9]])
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (None, MissingPrerequisite, "cannot read the sweep file"),
        ("methods = [", BadSetting, "is not TOML"),
        ("set = 3", BadSetting, r"table of settings, \[set\]; found 3"),
        ("metods = ['quark']", BadSetting, "did you mean 'methods'"),
        ("[grid]\nkl_coef = 0.1", BadSetting, "expected a list, .*; found 0.1"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path, text, error, said):
    path = tmp_path / "sweep.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=said):
        told(path, None, None, None, None, [], [])


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"methods": []}, EmptySelection, "found 0 methods"),
        ({"tasks": []}, EmptySelection, "0 tasks"),
        ({"methods": ["quakr"]}, UnknownName, "did you mean 'quark'"),
        ({"tasks": ["toxcity"]}, UnknownName, "did you mean 'toxicity'"),
        ({"grid": {"kl_coef": []}}, EmptySelection, "no value for 'kl_coef'"),
        ({"grid": {"kl_coeff": [1]}}, UnknownName, "did you mean 'kl_coef'"),
        ({"set": {"unlikelihood.lr": 1}}, UnknownName, "no method or section of this sweep named 'unlikelihood'"),
        ({"set": {"quark.alpha": 1}}, UnknownName, "no setting of quark named 'alpha'"),
    ],
)
def test_a_sweep_that_cannot_be_meant(more, error, said):
    with pytest.raises(error, match=said):
        list(choices(spec(**more)))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--grid", "kl_coef"], 2, "--grid takes key=v1,v2"),
        (["--set", "kl_coef=-1"], 2, "greater than or equal to 0"),
        (["--set", "evaluation.point=1"], 2, "did you mean 'points'"),
        (["--seeds", "3-1"], 2, "names no seed"),
        (["--workers", "0"], 2, "workers"),
        (["--set", "task.prompts=nowhere.jsonl"], 3, "cannot read the prompts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(harness, tmp_path, words, code, said):
    found, out, err = harness("sweep", "--methods", "quark,base", "--tasks", "toxicity", "--out", tmp_path, *words)
    assert (found, out) == (code, "") and said in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_plan_is_of_the_cells_that_run_would_run(tmp_path):
    settings = dict(map(sweep.parse_override, quick.overrides("quark")))
    cells = plan(spec(methods=["quark"], set=settings, grid={"kl_coef": [0.3, 0.3]}), [0, 1], tmp_path)
    assert [c.path for c in cells] == [quick.cell(tmp_path, "quark", seed, kl_coef=0.3).path for seed in (0, 1)]
    assert [c.state() for c in cells] == ["missing", "missing"]
    cells[0].path.mkdir(parents=True)
    begun = {"schema_version": 1, "run_id": cells[0].run_id, "status": "interrupted", "preset": "micro", "task": "toxicity"}
    (cells[0].path / "manifest.json").write_text(json.dumps(begun | {"method": "quark", "seed": 0, "identity": {}}))
    (cells[1].path).mkdir()
    (cells[1].path / "summary.json").write_text("{")
    assert [sweep.state_of(c) for c in cells] == ["to resume", "corrupt"]


@pytest.mark.slow
def test_a_real_cell_interrupted_finished_and_left_alone(harness, tmp_path):
    settings = quick.overrides("quark", budget__updates=20, explore_every=10, evaluation__paper_samples=0)
    words = ["sweep", "--methods", "quark", "--tasks", "toxicity", "--out", tmp_path]
    words += [word for item in settings for word in ("--set", item)]
    code, out, _ = harness(*words, "--dry-run", "--json")
    (cell,) = json.loads(out)["cells"]
    assert code == 0 and cell["state"] == "missing" and not list(tmp_path.iterdir())

    path = tmp_path / cell["run_dir"]
    rows = path / "trajectory.jsonl"
    asker = signal_when(lambda: rows.exists() and rows.stat().st_size, signal.SIGINT)
    code, out, err = harness(*words, "--json")
    asker.join()
    assert code == 130 and json.loads(out)["cells"][0]["state"] == "interrupted"
    assert "the same command goes on" in err.splitlines()[-1]
    assert read_run(path).manifest.status == "interrupted"

    code, out, err = harness(*words)
    assert code == 0 and "1 cell: 1 done" in err and "| quark |" in out and "validation prompts" in out
    assert read_run(path).summary.cost["updates"] == 20
    stamp = rows.stat().st_mtime_ns
    code, out, err = harness(*words, "--dry-run")
    assert code == 0 and out.startswith("done  toxicity  quark seed 0  ") and rows.stat().st_mtime_ns == stamp
