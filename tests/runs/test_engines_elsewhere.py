"""Slurm by submitit's local executor, and Ray on this machine: the same records and the same ends as by the local engine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_cells
from toy_cells import content, diary, elsewhere, finish, planned

from harness.core.errors import BadSetting, MissingPrerequisite, RunFailed
from harness.runs.sweep.engines.contract import End, Terms

TERMS = Terms(lease=5.0)


@pytest.fixture(scope="module")
def submitit():
    return pytest.importorskip("submitit")


@pytest.fixture
def slurm(submitit, tmp_path):
    """An engine of submitit on this machine, with toy cells."""
    from harness.runs.sweep.engines.slurm import SlurmEngine

    return lambda workers=2, **options: elsewhere(SlurmEngine, {"cluster": "local", **options}, tmp_path, workers, TERMS)


@pytest.mark.slow
def test_submitit_leaves_the_records_that_the_local_engine_leaves(slurm, tmp_path):
    there, here = ([planned(tmp_path / name, seed) for seed in range(3)] for name in ("there", "here"))
    engine = slurm()
    assert {r.state for r in [*finish(engine, there), *finish(toy_cells.engine(2), here)]} == {"done"}
    assert content(there) == content(here)
    assert not engine._stop.exists() and not list((tmp_path / "there" / ".logs").glob("*.txt"))


@pytest.mark.slow
def test_a_preempted_job_stops_with_its_state_saved_and_goes_on(slurm, tmp_path):
    cell = planned(tmp_path, 0, pause=0.3)
    engine = slurm(1)
    (job,) = engine.submit([cell])
    rows = cell.path / "trajectory.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(_task_of(job.job.job_id), signal.SIGUSR2)  # as Slurm does before it takes the node away
    while (end := job.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert end == End(0)
    assert [what for _, _, what in diary(tmp_path)] == ["began", "began", "ended"]
    finish(toy_cells.engine(1), [whole := planned(tmp_path / "whole", 0)])
    assert content([cell]) == content([whole])


def _task_of(controller: str) -> int:
    """The process of submitit's that carries out a job of a controller."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if path.read_text().rpartition(")")[2].split()[1] == controller:
                    return int(path.parent.name)
            except OSError:  # gone by now
                continue
        time.sleep(0.05)
    raise AssertionError("no task")


@pytest.mark.slow
def test_a_job_whose_process_is_killed_is_lost_and_tried_again(slurm, tmp_path):
    cell, killed = planned(tmp_path, 0, pause=0.1), []

    def kill(engine_submit):
        def submit(cells):
            jobs = engine_submit(cells)
            if not killed:
                killed.append(_task_of(jobs[0].job.job_id))
                os.kill(killed[0], signal.SIGKILL)
            return jobs

        return submit

    engine = slurm(1)
    engine.submit = kill(engine.submit)
    (result,) = finish(engine, [cell], retries=1)
    assert result.state == "done" and killed


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cluster": "local", "tasks": 3}, BadSetting, r"--slurm: .*Unknown argument 'tasks' for executor 'slurm'"),
        ({"cluster": "local", "nodes": 2}, BadSetting, "LocalExecutor can use only one node"),
        ({"cluster": "local", "mem_gb": "much"}, BadSetting, "mem_gb.* expected type"),
        ({"cluster": "moon"}, BadSetting, r"--slurm: .*moon"),
        ({"partition": "gpu"}, BadSetting, "needs the time limit of a job"),
        ({"time": "1:00:00"}, MissingPrerequisite, "try --slurm cluster=local"),
    ],
)
def test_what_submitit_refuses_is_one_line(submitit, tmp_path, monkeypatch, options, error, said):
    from harness.runs.sweep.engines.slurm import SlurmEngine

    monkeypatch.setenv("PATH", "/nowhere")  # without Slurm
    with pytest.raises(error, match=said) as found:
        SlurmEngine(options, tmp_path, None, TERMS)
    assert "\n" not in str(found.value)


def test_options_of_slurm_are_passed_on(submitit, tmp_path, monkeypatch):
    from harness.runs.sweep.engines import slurm

    found = slurm._parameters({"partition": "a", "gpus": 1, "time": "2:00:00", "mem_gb": 8}, 4, local=False)
    assert found == {
        "slurm_partition": "a", "gpus_per_node": 1, "slurm_time": "2:00:00", "mem_gb": 8, "slurm_array_parallelism": 4,
    }  # fmt: skip
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "srun").symlink_to("sbatch")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    engine = slurm.SlurmEngine({"partition": "a", "gpus": 1, "time": "2:00:00"}, tmp_path, None, TERMS)
    assert engine.room(7) == 1000 and engine.about == "jobs of submitit, cluster slurm"
    text = engine._executor._executor._make_submission_file_text("run", "x")
    for line in ("--partition=a", "--gpus-per-node=1", "--time=2:00:00", "--signal=USR2@90"):
        assert line in text
    with pytest.raises(RunFailed, match="Slurm took no job: "):  # this sbatch says nothing of a job
        engine.submit([planned(tmp_path, 0)])


def test_a_job_that_ends_without_a_result_is_lost_once_it_cannot_be_late(tmp_path, monkeypatch):
    from harness.runs.sweep.engines import slurm

    monkeypatch.setattr(slurm, "VISIBLE", 0.05)
    done, cancelled = [False], []
    job = SimpleNamespace(
        paths=SimpleNamespace(result_pickle=tmp_path / "result"), done=lambda: done[0], job_id="7_1", state="NODE_FAIL",
        cancel=lambda check: cancelled.append(check), exception=lambda: RuntimeError("trace\n\nValueError: no such thing\n"),
    )  # fmt: skip
    one = slurm.SlurmJob(planned(tmp_path, 0), job, tmp_path / "new" / "stop")
    assert one.poll() is None
    done[0] = True
    assert one.poll() is None  # it may be late
    time.sleep(0.1)
    assert one.poll() == End(None, "job 7_1 ended without a result, state NODE_FAIL")
    (tmp_path / "result").touch()
    assert one.poll() == End(None, "job 7_1 failed: ValueError: no such thing")
    one.ask_to_stop()
    assert (tmp_path / "new" / "stop").exists() and not cancelled
    one.ask_to_stop()
    assert cancelled == [False]


@pytest.fixture
def ray(tmp_path):
    pytest.importorskip("ray")
    from harness.runs.sweep.engines.ray_tasks import RayEngine

    return lambda workers=2, **options: elsewhere(RayEngine, options, tmp_path, workers, TERMS)


@pytest.mark.slow
def test_ray_leaves_the_records_that_the_local_engine_leaves(ray, tmp_path):
    import ray as library

    there, here = ([planned(tmp_path / name, seed) for seed in range(3)] for name in ("there", "here"))
    assert {r.state for r in [*finish(ray(), there), *finish(toy_cells.engine(2), here)]} == {"done"}
    assert content(there) == content(here) and not library.is_initialized()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_gpu": 1}, BadSetting, "--ray has no option 'num_gpu'; it takes address, num_cpus, num_gpus"),
        ({"address": "127.0.0.1:1"}, MissingPrerequisite, "no cluster of Ray at 127.0.0.1:1: .*refused"),
        ({"address": "ray://127.0.0.1:1"}, MissingPrerequisite, "no cluster of Ray at ray://127.0.0.1:1"),
    ],
)
def test_what_ray_refuses_is_one_line(ray, options, error, said):
    with pytest.raises(error, match=said) as found:
        ray(**options)
    assert "\n" not in str(found.value)
