"""The rule by which a point of a run is deployed: by hand, in a run, and after a kill."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import quick
from killed import killed

from harness.core.errors import BadSetting, RunFailed
from harness.core.settings import resolve
from harness.core.types import Metric
from harness.measure.evaluator import Evaluator
from harness.policy.policy import Policy
from harness.runs import checkpoint_rule, session
from harness.runs.progress import Progress

pytestmark = pytest.mark.usefixtures("few_prompts", "one_thread")

RULED = {"evaluation__select": "best_validation", "evaluation__split": "test", "evaluation__paper_samples": 0}


def at(judge: float | None, kl: float | None, update: int = 0) -> checkpoint_rule.Point:
    return checkpoint_rule.point(
        checkpoint_rule.KEPT, update, 0.5, {"judge": Metric(judge, None, 4), "kl": Metric(kl, None, 4)}
    )


def chosen(name: str, *points: tuple[float | None, float | None]) -> int | None:
    """The number of the point that a rule ends with."""
    best: checkpoint_rule.Point | None = None
    for i, (judge, kl) in enumerate(points):
        candidate = at(judge, kl, i)
        best = candidate if checkpoint_rule.better(name, candidate, best) else best
    return None if best is None else best.update


def test_rules_by_hand():
    points = [(0.3, 0.0), (0.5, 0.2), (0.9, 0.8), (0.9, 0.7), (0.6, 0.4)]
    assert chosen("best_validation", *points) == 2  # of equal points the earlier
    assert chosen("kl<=0.7", *points) == 3 and chosen("kl<=.69", *points) == 4 and chosen("kl<=0.1", *points) == 0
    assert chosen("best_validation", (None, 0.1), (0.2, None)) == 1 and chosen("kl<=1", (None, 0.1), (0.2, None)) is None


@pytest.mark.parametrize("name", ["first", "kl<=", "kl<=-1", "kl<1", "kl<=x", "best"])
def test_rules_that_are_none(name):
    with pytest.raises(BadSetting, match=r"evaluation\.select"):
        resolve("micro", "quark", "toxicity", {"evaluation.select": name})
    assert resolve("micro", "quark", "toxicity", ["evaluation.select=kl<=5e-1"]).evaluation.select == "kl<=5e-1"


def test_the_rule_is_part_of_what_a_run_is_and_the_default_is_none(tmp_path):
    plain, ruled = quick.cell(tmp_path), quick.cell(tmp_path, evaluation__select="kl<=1")
    assert "select" not in plain.identity and "select" not in plain.identity["evaluation"]
    assert ruled.identity == plain.identity | {"select": "kl<=1"} and ruled.run_id != plain.run_id


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "trajectory.jsonl").read_text().splitlines()]


@pytest.fixture
def judged(monkeypatch):
    """Points with the judge's scores told beforehand, in the order in which they are measured."""

    def tell(*scores: float | None) -> None:
        left = list(scores)
        change_points(monkeypatch, lambda metrics: metrics["judge"]._replace(value=left.pop(0)))

    return tell


def change_points(monkeypatch, judge: Callable[[dict[str, Metric]], Metric]) -> None:
    """Give every point, that of the base policy at the start too, the judge's score that a function of its metrics names."""
    point, start = Evaluator.point, Evaluator.base_point

    def changed(found):
        return found._replace(metrics=found.metrics | {"judge": judge(found.metrics)})

    monkeypatch.setattr(Evaluator, "point", lambda self, policy: changed(point(self, policy)))
    monkeypatch.setattr(Evaluator, "base_point", lambda self: changed(start(self)))


def test_the_point_that_is_best_on_validation_is_deployed(tmp_path, judged, monkeypatch):
    """Of the start, updates 2 and 4 and the end, update 2 is told to be best: it is what is saved and measured."""
    cell = quick.cell(tmp_path, **RULED)
    judged(0.3, 0.9, 0.5, 0.6)
    summary, _ = session.run(cell)
    monkeypatch.undo()
    selection = summary.selection
    assert (selection.rule, selection.update, selection.points) == ("best_validation", 2, 4)
    assert selection.progress == pytest.approx(2 / 6) and selection.validation["judge"].value == 0.9
    found = rows(cell.path)
    assert [row["update"] for row in found] == [0, 2, 4, 6] and {row["split"] for row in found} == {"validation"}
    deployed = Policy.load(cell.path / "policy")
    again = cell.make_evaluator(Progress(quiet=True), "validation").point(deployed).metrics
    assert again["kl"].value == pytest.approx(found[1]["metrics"]["kl"]["value"], rel=1e-5)
    assert again["kl"].value != pytest.approx(found[3]["metrics"]["kl"]["value"], rel=1e-3)
    final = cell.make_evaluator(Progress(quiet=True)).final(deployed).metrics
    assert summary.final["kl"].value == pytest.approx(final["kl"].value, rel=1e-5)
    assert summary.cost["updates"] == 6 and not (cell.path / "checkpoints").exists()


def test_one_policy_is_kept_at_a_time(tmp_path, judged, monkeypatch):
    """Updates 2 and 4 are each the best so far; Ctrl-C at update 5, which nothing catches, leaves the second alone."""
    judged(0.3, 0.5, 0.9)
    update = session.Trial.update

    def pressed(trial, loss):
        if trial.cost.updates == 5:
            raise KeyboardInterrupt
        update(trial, loss)

    monkeypatch.setattr(session.Trial, "update", pressed)
    cell = quick.cell(tmp_path, **RULED)
    with pytest.raises(KeyboardInterrupt):
        session.run(cell)
    assert [p.name for p in (cell.path / "checkpoints").glob("kept-*")] == ["kept-0000004"]
    assert json.loads((cell.path / "manifest.json").read_text())["status"] == "interrupted"


def test_a_validation_point_above_the_frontier_is_noticed_too(tmp_path, monkeypatch):
    point = Evaluator.point

    def above(self, policy):
        self.above = True
        return point(self, policy)

    monkeypatch.setattr(Evaluator, "point", above)
    assert session.run(quick.cell(tmp_path, "base", **RULED))[0].frontier.above is True


def test_a_run_that_only_harms_deploys_the_start(tmp_path, judged):
    cell = quick.cell(tmp_path, **RULED)
    judged(0.9, 0.5, 0.4, None)
    summary, _ = session.run(cell)
    assert summary.selection.update == 0 and summary.final["kl"].value == 0


def test_a_method_without_points_deploys_its_end_or_says_why_not(tmp_path, judged):
    judged(0.3, 0.9, None, None)
    summary, _ = session.run(quick.cell(tmp_path / "a", "best_of_n", n=4, **RULED))
    assert summary.selection.points == 2 and summary.final["kl"].value > 0
    with pytest.raises(RunFailed, match="no point that the judge could score"):
        session.run(quick.cell(tmp_path / "b", "best_of_n", n=4, **RULED))


def test_a_policy_that_cannot_be_kept_says_so(tmp_path, judged, monkeypatch):
    judged(0.3, 0.9)
    unsaved = property(lambda trial: Unsaved(trial.policy), lambda trial, policy: None)
    monkeypatch.setattr(session.Trial, "deployed", unsaved, raising=False)
    with pytest.raises(RunFailed, match=r"no policy that can be kept on disk; set evaluation\.select=last"):
        session.run(quick.cell(tmp_path, **RULED))


class Unsaved:
    """A policy with everything but a way to disk."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __getattr__(self, name: str):
        if name == "save":
            raise AttributeError(name)
        return getattr(self._policy, name)


PLACES = [  # one after the other in one run; calls are counted from where it went on
    ("store", "keep_policy", 1),  # of update 2
    ("store", "append", 3),  # of update 4
    ("store", "save_checkpoint", 1),  # of update 4
    ("store", "append", 1),  # of the end
]


@pytest.fixture
def near(monkeypatch):
    """The judge likes best what has moved a little, and least what has not moved at all: an early point is chosen."""

    def score(metrics: dict[str, Metric]) -> Metric:
        kl = metrics["kl"].value
        return Metric(1 / (1 + kl) if kl else 0.0, None, 4)

    change_points(monkeypatch, score)


def test_killed_and_resumed_chooses_the_same(near, tmp_path):
    whole, resumed = (quick.cell(tmp_path / name, lr=1e-3, **RULED) for name in ("whole", "resumed"))
    summary, _ = session.run(whole)
    assert summary.selection.update == 2
    for place in PLACES:
        killed(place, lambda: session.run(resumed))
    again, worked = session.run(resumed)
    assert worked and quick.without_clock(again) == quick.without_clock(summary)
    assert quick.trajectory(resumed.path) == quick.trajectory(whole.path) and quick.weights(resumed.path) == quick.weights(
        whole.path
    )
