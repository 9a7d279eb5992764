"""A run in several processes: the numbers of one, one writer, and an end that all of them reach together."""

import math
import os
import signal

import pytest
import quick
import torch
from safetensors.torch import load_file
from together import together

from harness.core.errors import BadSetting, Busy, Interrupted
from harness.measure import kept
from harness.measure.base_responses import Cache
from harness.policy.models import processes
from harness.records import write
from harness.records.read import read_manifest
from harness.runs import scorers, session

pytestmark = pytest.mark.usefixtures("few_prompts")
CLOSE = {"rel": 1e-4, "abs": 1e-4}


def values(summary) -> dict[str, float]:
    """The metrics; infinity where one has no value."""
    found = {f"{part}.{name}": m.value for part in ("base", "final") for name, m in getattr(summary, part).items()}
    return {name: math.inf if value is None else value for name, value in found.items()}


def same_numbers(a, b) -> None:
    assert values(a) == pytest.approx(values(b), **CLOSE)
    assert quick.without_clock(a)["cost"] == quick.without_clock(b)["cost"] and a.run_id == b.run_id


def note(monkeypatch, file, owner: type, name: str) -> str:
    """Each call of a method adds its name and the process that called it to a file."""
    whole = getattr(owner, name)

    def noting(*args, **kwargs):
        with file.open("a") as f:
            f.write(f"{owner.__name__}.{name} {processes.rank()}\n")
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, noting)
    return f"{owner.__name__}.{name}"


@pytest.fixture(scope="module")
def one(tmp_path_factory, few_prompts):
    """The run of one process."""
    return session.run(quick.cell(tmp_path_factory.mktemp("one")))[0]


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path, one, monkeypatch):
    used = [(write.RunStore, "open"), (write.RunStore, "append"), (kept.KeptEvaluation, "read"), (kept.KeptEvaluation, "write")]
    noted = [note(monkeypatch, tmp_path / "noted", *place) for place in (*used, (Cache, "get"))]
    cell = quick.cell(tmp_path)
    for summary, worked in together(2, lambda: session.run(cell)):
        same_numbers(summary, one)
        assert worked
    by = [line.split() for line in (tmp_path / "noted").read_text().splitlines()]
    assert {name for name, _ in by} == set(noted) and {rank for _, rank in by} == {"0"}  # one writer, one reader
    manifest = read_manifest(cell.path)
    assert manifest.status == "done" and manifest.run_id == one.run_id
    assert together(2, lambda: session.run(cell)[1]) == [False, False]  # finished before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "dpo", "conditional_pretraining"])
def test_other_methods_leave_the_numbers_and_weights_of_one_process(method, tmp_path):
    """But for biases of keys: no output depends on them, and of a gradient that is all rounding Adam makes whole steps."""
    if method == "dpo":
        pytest.importorskip("trl")
    cells = [quick.cell(tmp_path / name, method) for name in ("one", "two")]
    one = session.run(cells[0])[0]
    for summary in together(2, lambda: session.run(cells[1])[0]):
        same_numbers(summary, one)
    ours, theirs = (load_file(cell.path / "policy" / "model.safetensors") for cell in cells)
    for name in (name for name in ours if not name.endswith("c_attn.bias")):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_run_leaves_the_numbers_and_weights_of_one_process(tmp_path):
    """With an adapter, merged at the end, in micro-batches."""
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    method, asked = "dpo", {"model__lora__rank": 4, "model__lora__merge": True, "model__micro_batch": 3}
    asked |= {"budget__updates": 3, "evaluation__points": 0, "evaluation__paper_samples": 0}
    cell = quick.cell(tmp_path / "one", method, **asked)
    one = session.run(cell)[0]

    def sharded():
        found = quick.cell(tmp_path / "two", method, **asked, model__shard="full")
        assert found.run_id == cell.run_id  # it changes no number
        return session.run(found)[0]

    for summary in together(2, sharded):
        same_numbers(summary, one)
    (other,) = (tmp_path / "two").glob("*/*/*/*/policy")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (cell.path / "policy", other))
    assert ours.keys() == theirs.keys()
    for name in (name for name in ours if not name.endswith("c_attn.bias")):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_a_policy_is_not_sharded_by_one_process(tmp_path):
    with pytest.raises(BadSetting, match=r"model.shard=full divides .* there is one process; start with torchrun"):
        quick.cell(tmp_path, model__shard="full")


def test_a_record_says_how_many_processes_made_it(tmp_path):
    assert quick.cell(tmp_path).provenance.processes == 1
    assert together(2, lambda: quick.cell(tmp_path).provenance.processes) == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "then"), [("none", "full"), ("full", "alone")])
def test_a_signal_to_one_stops_all_and_any_number_goes_on(tmp_path, one, begun, then):
    """The signal reaches the process that does not write, after the third update; two whole policies, or a sharded one."""
    cell, whole = quick.cell(tmp_path), session.check_weights

    def run(shard):
        return session.run(quick.cell(tmp_path, model__shard=shard))[0]

    def interrupted():
        def checked(trial):
            if trial.cost.updates == 3 and processes.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            whole(trial)

        session.check_weights = checked  # of this process alone
        run(begun)

    found = together(2, interrupted)
    assert all(isinstance(e, Interrupted) for e in found)
    assert read_manifest(cell.path).status == "interrupted"
    assert [p.name for p in (cell.path / "checkpoints").glob("update-*")] == ["update-0000003"]
    found = [run("none")] if then == "alone" else together(2, lambda: run(then))
    for summary in found:
        same_numbers(summary, one)


def test_the_texts_of_a_corpus_are_scored_by_all_processes():
    """Of five texts three by the first and two by the second, and the first alone where it works alone."""

    class Lengths:
        def __init__(self) -> None:
            self.identity, self.calls = {"name": "lengths"}, []

        def score(self, prompts, responses):
            self.calls.append(len(responses))
            return [len(p + r) / 10 if r else float("nan") for p, r in zip(prompts, responses, strict=True)]

    def scored():
        scorer = scorers.divided(Lengths())
        found = scorer.score(["p"] * 5, ["a", "", "abc", "ab", "a"])
        with processes.alone():
            scorer.score(["p"], ["a"])
        return found, scorer.calls, scorer.identity

    found = together(2, scored)
    for scores, _, identity in found:
        assert scores == pytest.approx([0.2, math.nan, 0.4, 0.3, 0.2], nan_ok=True) and identity == {"name": "lengths"}
    assert [calls for _, calls, _ in found] == [[3, 1], [2, 1]]
    assert scorers.divided(one := Lengths()) is one


def test_a_folder_that_is_held_is_refused_by_all(tmp_path):
    cell = quick.cell(tmp_path)
    store = write.RunStore(cell.path)
    store.open()
    try:
        assert [type(e) for e in together(2, lambda: session.run(cell))] == [Busy, Busy]
    finally:
        store.close()


def test_an_error_of_one_is_in_the_record(tmp_path, monkeypatch):
    """The second process cannot score."""
    note(monkeypatch, tmp_path / "noted", write.RunStore, "write_manifest")
    cell = quick.cell(tmp_path)
    whole = cell.task.reward

    def reward(rollout):
        if processes.rank() == 1:
            raise OSError("no room\non the disk")
        return whole(rollout)

    cell.task.reward = reward
    first, second = together(2, lambda: session.run(cell))
    assert "process 1 of this run raised OSError: no room on the disk" in str(first) and isinstance(second, Exception)
    assert read_manifest(cell.path).status == "failed"
    assert (tmp_path / "noted").read_text() == "RunStore.write_manifest 0\n" * 2  # that it began, and how it ended
