"""`evaluation.probes`: a run is probed after its final evaluation, by the same command as often as that takes."""

from __future__ import annotations

import json
import shutil

import pytest
import quick

from harness.core.settings import resolve
from harness.records.read import probes, read_run, settings_of
from harness.records.verify import verify
from harness.runs import assemble
from harness.runs.finished import probe as module
from harness.runs.finished.probe import probe_cell, unprobed
from harness.runs.progress import Progress
from harness.runs.session import run
from harness.runs.sweep.plan import Sweep, plan

TWO = ["short", "decode"]
SHORT = """
from harness.api import Reading, Settings


class Short:
    version, Settings, unit, number = 1, Settings, "nothing", "worst"

    def __init__(self, settings):
        self.settings = settings

    def run(self, probed):
        yield Reading(1, probed.measure(probed.policy, 2))
"""


@pytest.fixture
def short(tmp_path):
    """The file of a probe that takes a moment."""
    (tmp_path / "short.py").write_text(SHORT)
    return str(tmp_path / "short.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("unprobed")
    with quick.few_prompts():
        cell = quick.cell(out, budget__updates=2, evaluation__points=0)
        run(cell)
    return out, cell


def words(out, *more: str) -> list[str]:
    small = [word for word in quick.flags(budget__updates=2, evaluation__points=0)]
    return ["run", "--method", "quark", "--task", "toxicity", *small, *more, "--out", str(out), "--json"]


def test_a_finished_run_gets_the_probes_that_it_lacks_and_keeps_its_id_and_its_numbers(finished, tmp_path, short, harness):
    out, path = tmp_path / "results", finished[1].path
    shutil.copytree(finished[0], out)
    path = out / path.relative_to(finished[0])
    before, own = (path / "summary.json").read_bytes(), ["--set", f"evaluation.probes=[{short},no_prefix]"]
    with quick.few_prompts():
        code, said, err = harness(*words(out, *own))
        assert code == 0 and json.loads(said)["run_id"] == finished[1].run_id, err
        assert "already done" in err and "probing the final policy: short" in err and "short, 1 nothing: judge" in err
        kept = probes(read_run(path))
        assert [result.probe for result in kept] == ["short", "no_prefix"] and (path / "summary.json").read_bytes() == before
        code, _, err = harness(*words(out, *own))
        assert code == 0 and "probing" not in err and probes(read_run(path)) == kept
        # what `harness probe` finds by the same name, and is not run again
        code, said, err = harness("probe", str(path), "--probe", short, "--out", str(out), "--json")
    assert code == 0 and json.loads(said)["probes"][str(path)] == [kept[0].plain()] and "probing" not in err
    assert not [check for check in verify(read_run(path)) if check.held is False]


def test_the_settings_of_a_record_name_its_probes_and_its_identity_does_not(finished, tmp_path, short):
    with quick.few_prompts():
        cell = quick.cell(tmp_path, "base", evaluation__points=0, evaluation__probes=f"[{short}]")
        assert cell.run_id == quick.cell(tmp_path, "base", evaluation__points=0).run_id and cell.probes == (short,)
        summary, _ = run(cell)
        probe_cell(cell, Progress(quiet=True))
    found = read_run(cell.path)
    assert settings_of(found)["evaluation"]["probes"] == ["short"] and summary.cost["sampled_tokens"] == 0
    assert "probes" not in found.manifest.identity["evaluation"] and len(probes(found)) == 1
    assert not [check for check in verify(found) if check.held is False]


def test_a_run_and_harness_probe_read_the_same(tmp_path, harness, short):
    """To the last digit, and under another seed of the run's own draws."""
    with quick.few_prompts():
        cells = [quick.cell(tmp_path / name, "base", 3, evaluation__points=0, evaluation__probes=short) for name in "ab"]
        for cell in cells:
            run(cell)
        (mine,) = probe_cell(cells[0], Progress(quiet=True))
        code, said, err = harness("probe", str(cells[1].path), "--probe", short, "--out", str(cells[1].out), "--json")
    assert code == 0, err
    (theirs,) = json.loads(said)["probes"].values()
    assert [reading["metrics"] for reading in theirs[0]["readings"]] == [r.plain()["metrics"] for r in mine.readings]


def test_a_kill_in_mid_probe_loses_that_probe_alone(finished, tmp_path, short, monkeypatch):
    out, cell = tmp_path / "results", finished[1]
    shutil.copytree(finished[0], out)
    with quick.few_prompts():
        told = {"budget__updates": 2, "evaluation__points": 0}
        cell = quick.cell(out, **told, evaluation__probes=f"{short},no_prefix")
        whole = module.Bench.readings

        def killed(self, probe):
            if probe.name == "no_prefix":
                raise KeyboardInterrupt
            return whole(self, probe)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module.Bench, "readings", killed)
            probe_cell(cell, Progress(quiet=True))
        assert [r.probe for r in probes(read_run(cell.path))] == ["short"] and unprobed(cell.path, cell.probes)
        asked_for = quick.settings(**told) | {"evaluation.probes": [short, "no_prefix"]}
        (planned_cell,) = plan(Sweep(methods=["quark"], tasks=["toxicity"], set=asked_for), [0], out)
        assert planned_cell.path == cell.path and planned_cell.state() == "to resume"
        assert planned_cell._replace(probes=()).state() == "done"
        probe_cell(cell, Progress(quiet=True))
        assert planned_cell.state() == "done" and not unprobed(cell.path, cell.probes)


def test_a_method_without_a_policy_of_its_own_is_not_probed_and_it_is_said(tmp_path, capsys, short):
    with quick.few_prompts():
        cell = quick.cell(tmp_path, "best_of_n", evaluation__points=0, evaluation__probes=short)
        run(cell)
        assert probe_cell(cell, Progress()) == [] and not unprobed(cell.path, cell.probes)
    assert "not probed: the method deploys no policy of its own" in capsys.readouterr().err


def test_several_processes_are_not_probed(finished, monkeypatch, capsys, short):
    monkeypatch.setattr(module.processes, "size", lambda: 2)
    monkeypatch.setattr(module.processes, "first", lambda do: do())
    cell = finished[1]
    cell.probes = (short,)
    assert probe_cell(cell, Progress()) == [] and "harness probe" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_an_unknown_probe_is_refused_before_anything_is_loaded(command, harness, monkeypatch, tmp_path):
    def never(*of, **more):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(assemble, "parts", never)
    method = {"run": ("--method", "base", "--task"), "sweep": ("--methods", "base", "--tasks")}[command]
    code, _, err = harness(command, *method, "toxicity", "--set", "evaluation.probes=[quantise]", "--out", str(tmp_path))
    assert code == 2 and "did you mean 'quantize'" in err, err


@pytest.mark.parametrize("given", ["[a,b]", "a, b", ["a", "b"]])
def test_names_of_probes_as_a_list_or_as_text(given):
    assert resolve("micro", "base", "toxicity", {"evaluation.probes": given}).evaluation.probes == ["a", "b"]
