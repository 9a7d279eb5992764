"""A run from start to record: what is written, what is resumed, what stops it."""

import hashlib
import json
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import quick
from killed import killed

from harness.core.errors import Busy, CorruptRecord, Interrupted, NotFinite, Unwritable
from harness.records.read import prompt_scores, read_run, scalars
from harness.records.write import RunStore
from harness.runs import session

pytestmark = pytest.mark.usefixtures("few_prompts", "one_thread")

PROMPTS = 11  # of the thinned validation split
PLACES = {  # one after the other in one run; calls are counted from where it went on
    "before the first checkpoint": ("trial", "update", 1),
    "between a row and its checkpoint": ("store", "append", 3),
    "during training": ("trial", "update", 3),  # the fifth of the run
    "after the final row": ("store", "append", 1),
    "between the samples and the summary": ("store", "finish", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    cell, saved = quick.cell(tmp_path_factory.mktemp("whole")), []
    with pytest.MonkeyPatch.context() as patch:
        count_checkpoints(patch, saved)
        summary, worked = session.run(cell)
    assert worked and len(saved) == 3  # one a point
    return cell, summary


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """A finished run without training."""
    cell = quick.cell(tmp_path_factory.mktemp("based"), "base")
    return cell, session.run(cell)[0]


def count_checkpoints(patch: pytest.MonkeyPatch, saved: list) -> None:
    save = RunStore.save_checkpoint
    patch.setattr(RunStore, "save_checkpoint", lambda self, *a: (saved.append(1), save(self, *a)))


def test_the_record_of_a_run(whole):
    cell, summary = whole
    run = read_run(cell.path)
    assert run.manifest.status == "done" and run.summary == summary
    assert run.manifest.identity == json.loads(json.dumps(cell.identity))
    assert run.manifest.knob == "kl_coef" and run.manifest.knob in run.manifest.identity["method"]["settings"]
    assert [row.update for row in run.trajectory] == [0, 2, 4, 6]
    assert summary.cost["updates"] == 6
    assert summary.base["kl"].value == 0.0 and summary.final["kl"].value > 0
    names = {"reward", "judge", "kl", "kl_per_token", "efficiency", "excess_kl", "regret", "ppl", "entropy", "unique", "length"}
    names |= {"distinct_1", "distinct_2", "distinct_3", "rep_2", "rep_3", "rep_4", "forward_kl", "clean_nll", "self_bleu"}
    names |= {"max_toxicity", "toxicity_prob", "grammatical", "eos_rate", "modal_mass", "kl_log_ratio"}
    assert names <= set(summary.final)
    assert all({"value", "stderr", "n", "n_unscored"} <= set(m.plain()) for m in summary.final.values())
    samples = pd.read_parquet(cell.path / "samples" / "final.parquet")
    assert len(samples) == PROMPTS * 2
    assert samples.reward.mean() == pytest.approx(summary.final["reward"].value)
    assert samples.kl.mean() == pytest.approx(summary.final["kl"].value)
    assert not (cell.path / "checkpoints").exists()


def test_the_scores_of_each_prompt_are_those_of_its_samples(whole):
    cell, summary = whole
    found, samples = prompt_scores(cell.path), pd.read_parquet(cell.path / "samples" / "final.parquet")
    by_prompt = samples.groupby("prompt_id")
    for name in ("reward", "judge", "kl"):
        assert found.values[name] == pytest.approx(by_prompt[name].mean().tolist(), rel=1e-5, abs=1e-9)
        assert np.mean(found.values[name]) == pytest.approx(summary.final[name].value, rel=1e-5)
    assert found.kind == by_prompt.kind.first().tolist() and found.n_scored == [2] * PROMPTS and found.split == "validation"
    assert found.id[0] == hashlib.sha256(samples.prompt[0].encode()).hexdigest()[:8] and len(set(found.id)) == PROMPTS
    texts = by_prompt.response.apply(list).tolist()
    nll, tokens = cell.task.fluency.nll(by_prompt.prompt.first().tolist(), texts)
    assert found.values["nll_per_token"] == pytest.approx([sum(n) / sum(t) for n, t in zip(nll, tokens, strict=True)], rel=1e-4)
    assert (cell.path / "prompts.json").stat().st_size < 6000  # 100 bytes a prompt


def test_the_same_command_again_does_nothing(whole):
    cell, summary = whole
    before = {p: p.stat().st_mtime_ns for p in cell.path.rglob("*") if p.is_file() and p.name != ".lock"}
    again, worked = session.run(cell)
    assert again == summary and not worked
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_killed_at_every_place_and_resumed_is_uninterrupted(whole, tmp_path):
    cell, summary = whole
    known = {"before the first checkpoint": [], "between a row and its checkpoint": [2], "during training": [4]}
    resumed = quick.cell(tmp_path)
    for name, place in PLACES.items():
        killed(place, lambda: session.run(resumed))
        assert not (resumed.path / "summary.json").exists(), name
        assert updates_kept(resumed.path) == known.get(name, [6]), name
    assert resumed.run_id == cell.run_id
    again, worked = session.run(resumed)
    assert worked and quick.trajectory(resumed.path) == quick.trajectory(cell.path)
    assert quick.weights(resumed.path) == quick.weights(cell.path)
    for name in ("prompts.json", "scalars.jsonl"):
        assert (resumed.path / name).read_bytes() == (cell.path / name).read_bytes()
    assert [row.update for row in scalars(read_run(cell.path))] == [1, 2, 3, 4, 5, 6]
    assert quick.without_clock(again) == quick.without_clock(summary)


def updates_kept(path: Path) -> list[int]:
    return [int(found.name.rsplit("-", 1)[-1]) for found in RunStore(path).checkpoints()]


def test_another_seed_is_another_run(whole, tmp_path):
    other = quick.cell(tmp_path, seed=1)
    assert other.run_id != whole[0].run_id
    session.run(other)
    assert quick.weights(other.path) != quick.weights(whole[0].path)


def test_fresh_forgets(based):
    cell, _ = based
    (cell.path / "mine.txt").write_text("old")
    _, worked = session.run(cell, fresh=True)
    assert worked and not (cell.path / "mine.txt").exists()


def test_an_interrupted_run_says_so_and_goes_on(whole, tmp_path, monkeypatch):
    cell, update = quick.cell(tmp_path), session.Trial.update

    def interrupted(trial, loss):
        update(trial, loss)
        if trial.cost.updates == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session.Trial, "update", interrupted)
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        session.run(cell)
    assert stopped.value.exit_code == 130
    manifest = read_run(cell.path).manifest
    assert manifest.status == "interrupted"
    monkeypatch.undo()
    (cell.path / "manifest.json").write_text(json.dumps(manifest.plain() | {"started_at": "2020-01-01T00:00:00+00:00"}))
    load = RunStore.load_state
    monkeypatch.setattr(RunStore, "load_state", lambda *a: load(*a) | {"seconds": 1e6})
    again, _ = session.run(cell)
    assert again.cost["seconds"] > 1e6  # the time before the interruption is part of what the run took
    assert read_run(cell.path).manifest.started_at.startswith("2020")
    assert quick.trajectory(cell.path) == quick.trajectory(whole[0].path)
    assert quick.weights(cell.path) == quick.weights(whole[0].path)


def test_long_runs_are_kept_by_the_clock_too(tmp_path, monkeypatch):
    """Three points make three checkpoints, as `whole` has; with no patience at all each of the six updates makes one."""
    saved: list = []
    count_checkpoints(monkeypatch, saved)
    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", -1.0)
    session.run(quick.cell(tmp_path, evaluation__paper_samples=0))
    assert len(saved) == 6


def test_measuring_costs_a_method_nothing(based):
    cost = based[1].cost
    assert cost["flops"] == cost["forward_tokens"] == cost["sampled_tokens"] == cost["scorer_calls"] == 0


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(Interrupted, match="at once"), session.interruptible() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def body():
        with session.interruptible() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_loss_that_is_no_number_fails_the_run(tmp_path, monkeypatch):
    cell, update = quick.cell(tmp_path), session.Trial.update
    monkeypatch.setattr(session.Trial, "update", lambda trial, loss: update(trial, loss * float("nan")))
    with pytest.raises(NotFinite, match=r"the loss of update 1 is nan; .*smaller lr"):
        session.run(cell)
    manifest = read_run(cell.path).manifest
    assert manifest.status == "failed" and manifest.error.type == "NotFinite"
    assert not (cell.path / "summary.json").exists()


class Failing:
    """A scorer that cannot score every third response."""

    def __init__(self, scorer):
        self.scorer, self.identity = scorer, scorer.identity | {"failing": True}

    def score(self, prompts, responses):
        scores = self.scorer.score(prompts, responses)
        scores[::3] = float("nan")
        return scores


def test_responses_that_cannot_be_scored_are_counted_and_degrade_the_run(tmp_path):
    cell = quick.cell(tmp_path, "base")
    cell.task._judge = Failing(cell.task._judge)
    summary, _ = session.run(cell)
    judge = summary.final["judge"]
    assert summary.status == "degraded" and read_run(cell.path).manifest.status == "degraded"
    assert judge.n_unscored == 8 and judge.n == 14
    samples = pd.read_parquet(cell.path / "samples" / "final.parquet")
    assert samples.judge.isna().sum() == 8
    by_prompt = prompt_scores(cell.path)
    assert sum(by_prompt.n_scored) == 14
    means = samples.groupby("prompt_id").judge.mean()  # NaN where neither of two responses could be scored
    assert [v is None for v in by_prompt.values["judge"]] == means.isna().tolist()
    assert judge.value == pytest.approx(samples.groupby("prompt_id").judge.mean().mean())


def test_two_processes_do_not_share_a_run(tmp_path):
    first, second = RunStore(tmp_path / "run"), RunStore(tmp_path / "run")
    first.open()
    with pytest.raises(Busy, match="another process"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="--out"):
        RunStore(tmp_path / "file" / "run").open()


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not strict JSON"), ("[]", "no schema_version"), ('{"schema_version": 99}', "install a newer one")]
)
def test_a_manifest_that_cannot_be_read(tmp_path, text, said):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptRecord, match=f"{said}.*--fresh"):
        RunStore(tmp_path).manifest()


def test_a_checkpoint_that_cannot_be_read(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"broken")
    with pytest.raises(CorruptRecord, match="--fresh"):
        RunStore(tmp_path).load_state(tmp_path)


def test_a_trajectory_shorter_than_its_checkpoint_knows(tmp_path):
    (tmp_path / "trajectory.jsonl").write_text("{}\n")
    with pytest.raises(CorruptRecord, match="1 rows, its checkpoint knows 2"):
        RunStore(tmp_path).rewind(2)
