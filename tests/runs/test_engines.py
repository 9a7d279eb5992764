"""Engines of sweeps: the same policy and the same records wherever the cells run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy_cells
from toy_cells import content, finish, planned

from harness.core.errors import MissingPrerequisite, Unwritable
from harness.core.files import in_a_file_system
from harness.runs.sweep import launcher
from harness.runs.sweep.board import Board
from harness.runs.sweep.engines import choose, remote
from harness.runs.sweep.engines.contract import End, Terms, log_of
from harness.runs.sweep.engines.local import LocalEngine, gpus
from harness.runs.sweep.engines.remote import Carrier, Followed, Order, order
from harness.runs.sweep.launcher import Launcher, died
from harness.runs.sweep.plan import Planned

TERMS = Terms(lease=5.0)
SWEEP = ("sweep", "--methods", "base", "--tasks", "toxicity")


BEGIN = """
import os, pathlib, signal, sys, time
at = pathlib.Path(sys.argv[1])
at.mkdir(parents=True, exist_ok=True)
with (at / "tries").open("a") as file:
    file.write("x")
tries = len((at / "tries").read_text())
"""


class Script(LocalEngine):
    """Cells that are lines of Python, which know the folder `at` and the number of their `tries`."""

    def command(self, cell: Planned) -> list[str]:
        return [sys.executable, "-c", BEGIN + cell.settings["do"], str(cell.path)]


def script(out: Path, do: str, seed: int = 0) -> Planned:
    return Planned("stub", "toy", seed, "micro", {"do": do}, {}, out, out / f"s{seed}", "x")


def tries(cell: Planned) -> int:
    return len((cell.path / "tries").read_text())


DIES = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("do", "retries", "state", "times"),
    [
        (DIES, 0, "failed", 1),
        (DIES, 2, "failed", 3),
        ("sys.exit(1)", 2, "failed", 1),  # an error of its own comes again
        ("sys.exit(130)", 0, "interrupted", 1),  # preempted, its state is saved
        ("sys.exit(130)", 1, "interrupted", 2),
        (f"if tries < 3: {DIES}\nsys.exit(75 if tries < 5 else 1)", 2, "failed", 5),  # waiting for another is no attempt
    ],
)
def test_a_cell_whose_process_dies_is_tried_again_as_often_as_asked(tmp_path, monkeypatch, do, retries, state, times):
    monkeypatch.setattr(launcher, "RETRY", 0.0)
    cell = script(tmp_path, do)
    (result,) = finish(Script(1, TERMS, []), [cell], retries=retries)
    assert (result.state, tries(cell)) == (state, times)


def test_each_attempt_is_said_and_counts_for_its_cell_alone(tmp_path, capsys):
    cells = [script(tmp_path, DIES, seed) for seed in range(2)]
    results = Launcher(cells, Script(2, TERMS, []), Board(2), retries=1).run()
    assert [r.state for r in results] == ["failed"] * 2 and [tries(cell) for cell in cells] == [2, 2]
    said = capsys.readouterr().err
    assert said.count("tried again, 1 of 1") == 2 and "killed by SIGKILL; out of memory?" in said


def test_what_counts_as_the_death_of_a_process():
    assert all(map(died, (End(-9), End(-15), End(130), End(None, "the node is gone"))))
    assert not any(map(died, (End(0), End(1), End(3), End(4))))


@pytest.mark.parametrize(
    ("listed", "found"),
    [("", []), ("2,3", ["2", "3"]), ("GPU-1a, GPU-2b", ["GPU-1a", "GPU-2b"]), ("0,-1,1", ["0"]), ("-1", [])],
)
def test_the_gpus_are_those_that_the_user_leaves(monkeypatch, listed, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus() == found and LocalEngine(1, TERMS).devices == found


def test_without_a_restriction_all_gpus_are_there(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert gpus() == ["0", "1", "2"]


MEETS = """
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
here = at.parent / f"on-{gpu}-{os.getpid()}"
here.touch()
with (at.parent / "all").open("a") as file:
    file.write(gpu + "\\n")
while len((at.parent / "all").read_text().split()) < WORKERS:
    time.sleep(0.01)
(at.parent / f"seen-{os.getpid()}").write_text(str(len(list(at.parent.glob(f"on-{gpu}-*")))))
time.sleep(0.2)
here.unlink()
"""


@pytest.mark.parametrize(
    ("devices", "workers", "most", "said"),
    [
        (["4", "7"], 2, 1, "2 at once, each on a GPU of its own, of 2 GPUs"),
        (["4"], 2, 2, "2 at once, which share 1 GPU"),
        (["a", "b"], 3, 2, "3 at once, which share 2 GPUs"),
        ([], 2, 2, "2 at once"),
    ],
)
def test_each_worker_has_a_gpu_of_its_own_as_far_as_they_go(tmp_path, monkeypatch, devices, workers, most, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset")
    do = MEETS.replace("WORKERS", str(workers))
    engine = Script(workers, TERMS, devices)
    finish(engine, [script(tmp_path, do, seed) for seed in range(4)])
    used = (tmp_path / "all").read_text().split()
    assert set(used) == (set(devices) or {"unset"}) and engine.about == said
    assert max(int(p.read_text()) for p in tmp_path.glob("seen-*")) <= most


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("partition=gpu,gpus=1,time=2:00:00", {"partition": "gpu", "gpus": 1, "time": "2:00:00"}),
        ("mem_gb=16.5, account=a-b", {"mem_gb": 16.5, "account": "a-b"}),
        ("", {}),
    ],
)
def test_options_of_an_engine(text, found):
    assert choose.options("--slurm", text) == found


def test_the_address_of_a_cluster_may_stand_alone():
    assert choose.options("--ray", "auto") == {"address": "auto"}
    assert choose.options("--ray", "ray://head:10001") == {"address": "ray://head:10001"}
    assert choose.options("--ray", "address=auto,num_gpus=0.5") == {"address": "auto", "num_gpus": 0.5}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--engine", "slrum"], 2, "no engine named 'slrum'; did you mean 'slurm'?"),
        (["--slurm", "time=1:00:00"], 2, "--slurm is an option of --engine slurm; the engine is local"),
        (["--ray", "auto", "--engine", "slurm"], 2, "--ray is an option of --engine ray; the engine is slurm"),
        (["--engine", "slurm", "--slurm", "time"], 2, "--slurm takes KEY=VALUE,KEY=VALUE; found 'time'"),
        (["--engine", "slurm", "--slurm", "a b=1"], 2, "found 'a b=1'"),
        (["--out", "s3://bucket/results"], 2, "records need atomic renames and locks, which an object store does not have"),
        (["--lease", "0"], 2, "--lease"),
        (["--retries", "-1"], 2, "--retries"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "study"])
def test_an_engine_that_cannot_be_meant_is_one_line_before_anything_is_loaded(
    harness, tmp_path, monkeypatch, words, code, said, command
):
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text('methods = ["base"]\ntasks = ["toxicity"]\n')
    found, out, err = harness(*(SWEEP if command == "sweep" else ("study", "study.toml")), *words)
    assert (found, out) == (code, "") and said in err.splitlines()[-1] and len(err.splitlines()) == 1
    assert os.listdir() == ["study.toml"]


@pytest.mark.parametrize(("engine", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingPrerequisite, match=rf"--engine {engine} needs .*pip install 'unlearning-harness\[{engine}\]'"
    ) as found:
        choose.engine(engine, None, tmp_path, TERMS)
    assert found.value.exit_code == 3


@pytest.mark.parametrize("name", ["s3://a/b", "gs:/a", "memory://x", "hf://datasets/a"])
def test_object_stores_are_refused(name):
    with pytest.raises(Unwritable, match="choose a folder that the machines share"):
        in_a_file_system(Path(name))
    in_a_file_system(Path("a:b/s3"))


def test_an_order_is_carried_out_where_its_paths_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ordered = order(planned(Path("out"), 1), TERMS, Path("out/stop"), cores=3)
    assert (ordered.folder, ordered.log, ordered.stop) == (
        str(tmp_path),
        f"{log_of(planned(tmp_path / 'out', 1))}",
        f"{tmp_path}/out/stop",
    )
    says = "import os, sys\nprint('12 s  ' + os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'], "
    says += "file=sys.stderr)\nsys.exit(3)"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir("/")
    done = Carrier(Order("{}", str(tmp_path), "log", "stop", 3, 0, True, (sys.executable, "-c", says))).run()
    assert done == (3, [f"12 s  {tmp_path} 3 1"])


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print("  3 s  ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


def waiting(tmp_path: Path, **more: object) -> Order:
    paths = {"folder": str(tmp_path), "log": str(tmp_path / "log"), "stop": str(tmp_path / "stop")}
    return Order("{}", **paths, cores=1, command=(sys.executable, "-c", WAITS), **more)


def test_a_stop_reaches_a_cell_elsewhere_by_the_shared_folder_and_its_log_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "LOOK", 0.05)

    def stops() -> None:
        while "ready" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
            time.sleep(0.02)
        (tmp_path / "stop").touch()

    thread = threading.Thread(target=stops)
    thread.start()
    assert Carrier(waiting(tmp_path)).run() == (130, ["  3 s  ready"])
    thread.join()
    assert Carrier(waiting(tmp_path)).run() == (130, [])  # what has not begun does not begin


def test_a_cell_on_this_machine_stops_when_its_sweep_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert Carrier(waiting(tmp_path, owner=gone.pid)).run() == (130, [])
    assert remote._lives(os.getpid()) and remote._lives(1)


def test_a_carrier_that_is_interrupted_leaves_no_process(tmp_path, monkeypatch):
    carrier = Carrier(waiting(tmp_path))
    monkeypatch.setattr(carrier, "_write", lambda process: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        carrier.run()
    assert carrier.process.process.returncode in (130, -signal.SIGTERM)


class Elsewhere(Followed):
    """A job that never ends by itself."""

    ended: End | None = None

    def poll(self):
        return self.ended

    def cancel(self):
        self.ended = End(None, "cancelled")


def test_a_job_elsewhere_that_does_not_end_is_cancelled(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "GRACE", 0.01)
    job = Elsewhere(planned(tmp_path, 1))
    job.end()
    assert job.ended == End(None, "cancelled")
    job.ended = End(0)
    job.end()
    assert job.ended == End(0)


def test_a_job_elsewhere_shows_the_end_of_its_log(tmp_path):
    job = Elsewhere(planned(tmp_path, 1))
    assert job.last == "waiting" and list(job.lines) == [] and job.seconds < 60
    log_of(job.cell).parent.mkdir()
    log_of(job.cell).write_text("x" * 30_000 + "\n\n  12 s  45%  KL 0.1\n")
    assert job.last == "45%  KL 0.1" and len(job.lines) == 2


def test_the_same_records_by_one_worker_and_by_two(tmp_path):
    one, two = ([planned(tmp_path / name, seed) for seed in range(3)] for name in ("one", "two"))
    assert {r.state for r in [*finish(toy_cells.engine(1), one), *finish(toy_cells.engine(2), two)]} == {"done"}
    assert content(one) == content(two)
    assert json.loads((one[0].path / "manifest.json").read_text())["status"] == "done"


def test_a_folder_that_cannot_be_written_to_is_one_line(harness, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    code, out, err = harness("sweep", "--methods", "base", "--tasks", "toxicity", "--out", file)
    assert code == 2 and out == "" and err.splitlines()[-1].startswith(f"error: cannot write to {file}: ")
    assert "Traceback" not in err and file.read_text() == "kept"


LAST = 16  # files that a toy cell writes: the manifest twice, the trajectory at each update, the summary


@pytest.mark.parametrize("n", [pytest.param(n, marks=() if n in (9, LAST) else pytest.mark.slow) for n in range(1, LAST + 1)])
def test_a_disk_that_is_full_from_any_write_on_fails_the_cell_in_one_line_and_the_same_sweep_goes_on(tmp_path, monkeypatch, n):
    cells = [planned(tmp_path, 0)]
    monkeypatch.setenv("TOYS_FULL", str(n))
    (first,) = finish(toy_cells.engine(1), cells, retries=3)
    assert first.state == ("done" if n == LAST else "failed")
    if n < LAST:
        assert (
            "No space left on device; fix this and run the same command to resume (log " in first.why and "\n" not in first.why
        )
        assert toy_cells.diary(tmp_path)[-1][2] == "began" and len(toy_cells.diary(tmp_path)) == 1  # not retried
    monkeypatch.delenv("TOYS_FULL")
    assert [r.state for r in finish(toy_cells.engine(1), cells)] == ["done"]
    rows = [json.loads(row)["update"] for row in (cells[0].path / "trajectory.jsonl").read_text().splitlines()]
    assert rows == list(range(toy_cells.UPDATES))


def test_a_folder_removed_in_mid_run_fails_the_cell_in_one_line_and_the_same_sweep_starts_it_again(tmp_path):
    cells = [planned(tmp_path, 0, pause=0.2)]  # two seconds in which the folder is taken away, on a busy machine too

    def removes() -> None:
        while not (cells[0].path / "trajectory.jsonl").exists():
            time.sleep(0.01)
        cells[0].path.rename(tmp_path / "elsewhere")

    thread = threading.Thread(target=removes)
    thread.start()
    (first,) = finish(toy_cells.engine(1), cells)
    thread.join()
    assert first.state == "failed" and "was removed during the run; run the same command to start it again" in first.why
    assert [r.state for r in finish(toy_cells.engine(1), cells)] == ["done"]
