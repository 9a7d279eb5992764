"""What ships of the base policy's measurements: used where it belongs, nowhere else, and equal to what a run would compute."""

import json

import numpy as np
import pytest
import torch
from places import ROOT

from harness.core.settings import read_preset, resolve
from harness.core.types import Prompts, Rollout
from harness.measure import base_responses, kept
from harness.measure.base_responses import Cache
from harness.measure.evaluator import Evaluator, divergence
from harness.measure.kept import FULL, POINT, KeptEvaluation
from harness.runs import assemble, shipped
from harness.runs.progress import Progress
from harness.tasks.micro import world

TASKS = [name for name, table in read_preset("micro")["tasks"].items() if table["prompts"] == "micro"]
MEASURED = world.folder() / "measured"
WRITE = "what ships is of another version: write it again with `python -m harness.runs.shipped`"


def cell_of(task: str, out, *words: str):
    settings = resolve("micro", "base", task, list(words))
    return assemble.cell(settings, assemble.parts(settings, task), "base", task, 0, out)


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    return cell_of("toxicity", tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def evaluator(cell):
    return cell.make_evaluator(Progress(quiet=True))


@pytest.fixture
def nothing_computed(monkeypatch):
    for place, name in ((base_responses, "_score_prompt"), (Evaluator, "_evaluate")):
        monkeypatch.setattr(place, name, lambda *a, **k: pytest.fail(WRITE))


def by_tested_versions(scorers: dict) -> bool:
    """True if the scorers are ours, or of the packages with which the suite was last tested."""
    listed = (ROOT / "constraints" / "tested.txt").read_text().splitlines()
    pinned = {line.partition("==")[2] for line in listed}
    versions = [scorer["version"] for scorer in scorers.values() if not isinstance(scorer["version"], int)]
    return all(pinned.issuperset(v.values() if isinstance(v, dict) else [v]) for v in versions)


@pytest.mark.parametrize("task", ["toxicity", *(pytest.param(t, marks=pytest.mark.slow) for t in TASKS if t != "toxicity")])
@pytest.mark.usefixtures("nothing_computed")
def test_a_run_on_the_micro_world_computes_none_of_it(task, cell, tmp_path):
    said = []
    progress = Progress(quiet=True)
    progress.say = said.append
    of = cell if task == "toxicity" else cell_of(task, tmp_path)
    if not by_tested_versions(of.task.identity()["scorers"]):
        pytest.skip("scores of another version of a scorer's package are computed")
    assert of.make_evaluator(progress).base_evaluation().metrics["kl"].value == 0
    assert of.make_evaluator(progress, "validation").base_point().metrics["kl"].value == 0
    assert said == [] and not (of.out / ".cache").exists()


def places(value, path=()):
    """The places of all values of an identity."""
    if isinstance(value, dict) and value:
        return [place for key, inner in value.items() for place in places(inner, (*path, key))]
    return [path]


def changed(identity: dict, place: tuple) -> dict:
    copy = json.loads(json.dumps(identity))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "another"
    return copy


def test_of_another_model_task_data_scorer_or_decoding_none_is_read(evaluator):
    found = evaluator.kept
    assert found.read(True) is not None
    kinds = {place[0] for place in places(found.base)}
    assert {"model", "dtype", "task", "data", "scorers", "fluency", "decoding"} <= kinds
    for place in places(found.base):
        other = KeptEvaluation(found.cache, changed(found.base, place), found.settings, pytest.fail)
        assert other.read(True) is None, place


@pytest.mark.parametrize(
    ("setting", "full", "short"),
    [
        ({"samples": 5}, False, True), ({"paper_samples": 24}, False, True), ({"point_samples": 3}, True, False),
        ({"seed": 1}, False, False), ({"base_samples": 511}, False, False), ({"points": 3, "batch_size": 8}, True, True),
    ],
)  # fmt: skip
def test_of_other_settings_none_is_read(cell, tmp_path, setting, full, short):
    for split, kind, there in (("test", True, full), ("validation", False, short)):
        chosen = cell.settings.evaluation.model_copy(update={"split": split} | setting)
        measured = {"model": cell.identity["model"], "dtype": cell.identity["dtype"], **cell.task.identity()}
        read = KeptEvaluation(Cache(tmp_path, MEASURED), measured, chosen, pytest.fail).read(kind)
        assert (read is not None) == there


@pytest.mark.parametrize("version", ["EVALUATION_VERSION", "SAMPLER_VERSION"])
def test_of_another_version_none_is_read(evaluator, monkeypatch, version):
    monkeypatch.setattr(kept, version, 0)
    assert evaluator.kept.read(True) is None


def test_of_another_model_task_or_scorer_no_scores_are_read(cell, tmp_path):
    measured = {"model": cell.identity["model"], "dtype": cell.identity["dtype"], **cell.task.identity()}
    drawn = {"base": measured, "split": "test", "n": 512, "sampler": base_responses.SAMPLER_VERSION}
    key, cache = {"drawn": drawn, "scorers": measured["scorers"]}, Cache(tmp_path, MEASURED)
    assert cache.get("scores", key) is not None
    for place in places(key):
        assert cache.get("scores", changed(key, place)) is None, place


def test_the_scores_are_those_of_the_scorers(evaluator):
    base, task = evaluator.base, evaluator.task
    for x in (0, 57, 129):
        reward, judge = base_responses._score_prompt(task, base.prompts, x, base.responses[x, :64], base.response_mask[x, :64])
        assert (reward == base.reward[x, :64]).all() and (judge == base.judge[x, :64]).all()


def test_the_rows_are_of_the_base_policy_and_their_values_are_recomputed(evaluator):
    rows = [row for row in evaluator.base_evaluation().rows if row["prompt_id"] % 40 == 1]
    ids = torch.tensor([row["prompt_id"] for row in rows])
    width = max(len(row["tokens"]) for row in rows)
    response = torch.tensor([row["tokens"] + [0] * (width - len(row["tokens"])) for row in rows])
    mask = torch.arange(width) < torch.tensor([[len(row["tokens"])] for row in rows])
    rollout = Rollout(Prompts(*(x[ids] for x in evaluator.base.prompts.prompts)), response, mask)
    task = evaluator.task
    found = {"reward": task.reward(rollout), "judge": task.judge(rollout)}
    found["entropy"] = divergence(evaluator.reference, evaluator.reference, rollout).entropy
    found["nll"] = task.fluency.nll([row["prompt"] for row in rows], [[row["response"]] for row in rows])[0][:, 0]
    assert task.texts(rollout) == [row["response"] for row in rows]
    for name, values in found.items():
        np.testing.assert_allclose([row[name] for row in rows], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_metrics_are_means_of_the_rows(evaluator):
    found = evaluator.base_evaluation()
    assert found.metrics["entropy"].value == pytest.approx(np.mean([row["entropy"] for row in found.rows]), rel=1e-9)
    for name in ("reward", "judge"):  # of all base responses, of which the rows are others
        assert found.metrics[name].value == pytest.approx(np.mean(found.prompts[name]), rel=1e-9)
        assert found.metrics[name].value == pytest.approx(np.nanmean(getattr(evaluator.base, name)), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "full"), [("test", True), ("validation", False)])
def test_it_equals_a_new_measurement(cell, split, full):
    made = cell.make_evaluator(Progress(quiet=True), split)
    ships, made.kept = made.kept.read(full)[0], None
    again = made.base_evaluation() if full else made.base_point()
    same = [a["tokens"] == b["tokens"] for a, b in zip(ships.rows, again.rows, strict=True)]
    assert np.mean(same) > 0.98  # another order of additions can turn a draw
    assert ships.metrics.keys() == again.metrics.keys() and ships.prompts["id"] == again.prompts["id"]
    for name, metric in ships.metrics.items():
        new = again.metrics[name]
        assert (metric.value is None) == (new.value is None)
        if metric.value is not None:
            assert metric.value == pytest.approx(new.value, rel=1e-4, abs=1e-6 + 0.25 * (metric.stderr or 0.0)), name


def test_only_what_was_measured_is_written(tmp_path, monkeypatch):
    def measure(task, out):
        Cache(out / ".cache").put(FULL, {"task": task}, json=np.zeros(1))
        Cache(out / ".cache").put("responses", {"task": task}, responses=np.zeros(1))

    monkeypatch.setattr(shipped, "measure", measure)
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / f"{POINT}-old.npz").write_bytes(b"")
    shipped.ship(["a", "b"], folder)
    assert len(list(folder.glob(f"{FULL}-*.npz"))) == len(list(folder.iterdir())) == 2


def test_what_ships_is_packed_and_read_as_before(tmp_path):
    arrays = {"reward": np.arange(6000.0) % 7 / 7, "judge": np.zeros((3, 2))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    shipped.pack(tmp_path / "a.npz", tmp_path / "b.npz")
    assert (tmp_path / "b.npz").stat().st_size < (tmp_path / "a.npz").stat().st_size
    with np.load(tmp_path / "b.npz") as read:
        assert {name: read[name].tolist() for name in read.files} == {n: a.tolist() for n, a in arrays.items()}


def test_what_is_written_is_listed_with_its_hash_and_what_was_there_is_not_read(tmp_path, monkeypatch):
    old = tmp_path / "measured" / f"{FULL}-old.npz"
    old.parent.mkdir()
    old.write_bytes(b"")

    def measure(task, out):
        assert not old.exists() and not any("measured" in name for name in listed())
        Cache(out / ".cache").put(FULL, {"task": task}, json=np.zeros(1))

    def listed():
        return json.loads((tmp_path / "world.json").read_text())["sha256"]

    monkeypatch.setattr(world, "folder", lambda: tmp_path)
    monkeypatch.setattr(shipped, "measure", measure)
    shipped.main()
    written = [f"measured/{path.name}" for path in sorted(old.parent.iterdir())]
    assert len(written) == len(TASKS) and list(listed()) == written
    assert world.verified("measured", tmp_path) == old.parent


def test_both_evaluations_of_a_task_are_measured(tmp_path, monkeypatch):
    made = []

    class Measuring:
        def __init__(self, progress, split=None):
            self.split = split

        def base_evaluation(self):
            made.append((FULL, self.split))

        def base_point(self):
            made.append((POINT, self.split))

    monkeypatch.setattr(assemble, "parts", lambda settings, task, out: task)
    monkeypatch.setattr(assemble, "cell", lambda *a: type("Cell", (), {"make_evaluator": staticmethod(Measuring)}))
    shipped.measure("toxicity", tmp_path)
    assert made == [(FULL, None), (POINT, "validation")]
