"""The base policy's evaluation is computed once for all runs that share it, and never read where it does not belong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import quick

from harness.core.settings import EvaluationSettings
from harness.measure.evaluator import Evaluator
from harness.measure.kept import FULL, KeptEvaluation
from harness.runs.progress import Progress

pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture
def measured(monkeypatch):
    """How often a full evaluation was computed."""
    calls, whole = [], Evaluator._measured_base
    monkeypatch.setattr(Evaluator, "_measured_base", lambda self, full: calls.append(self) or whole(self, full))
    return calls


def evaluator(out, said=None, **settings) -> Evaluator:
    made = quick.cell(out, **settings).make_evaluator(Progress(quiet=True))
    if said is not None:
        made.kept.say = said.append
    return made


def test_it_is_computed_once_and_comes_back_as_it_was(tmp_path, measured):
    first = evaluator(tmp_path)
    computed, again = first.base_evaluation(), evaluator(tmp_path).base_evaluation()
    assert len(measured) == 1
    assert again.metrics == computed.metrics and again.unscored_share == computed.unscored_share
    for name in ("rows", "prompts", "papers"):
        ours, theirs = getattr(again, name), getattr(computed, name)
        np.testing.assert_equal(json.loads(json.dumps(ours)), json.loads(json.dumps(theirs, default=lambda x: x.item())))


def test_another_evaluation_is_not_taken_for_it(tmp_path, measured):
    evaluator(tmp_path).base_evaluation()
    evaluator(tmp_path, **{"evaluation.samples": 3}).base_evaluation()
    assert len(measured) == 2
    evaluator(tmp_path, **{"evaluation.points": 7}).base_evaluation()  # of training, which does not change it
    assert len(measured) == 2


def test_it_is_the_same_for_every_seed(tmp_path, measured):
    one, two = (quick.cell(tmp_path, seed=seed).make_evaluator(Progress(quiet=True)) for seed in (0, 1))
    assert one.base_evaluation().metrics == two.base_evaluation().metrics and len(measured) == 1


@pytest.mark.parametrize("content", [b"no archive", b"no evaluation"])
def test_a_file_that_is_none_is_named_and_made_again(content, tmp_path, measured):
    first = evaluator(tmp_path)
    computed = first.base_evaluation()
    (path,) = (tmp_path / ".cache").glob(f"{FULL}-*.npz")
    if content == b"no archive":
        path.write_bytes(content)
    else:
        np.savez_compressed(path, json=np.frombuffer(b'{"evaluation": 3}', np.uint8))
    said: list[str] = []
    assert evaluator(tmp_path, said).base_evaluation().metrics == computed.metrics
    assert len(measured) == 2 and len(said) == 1
    assert str(tmp_path / ".cache") in said[0] and said[0].endswith("it is computed again")
    evaluator(tmp_path).base_evaluation()
    assert len(measured) == 2


def test_what_could_not_be_scored_is_tried_again(tmp_path):
    made = evaluator(tmp_path)
    kept = KeptEvaluation(made.kept.cache, {"of": "a test"}, EvaluationSettings(), print)
    found = made.final(made.reference)
    kept.write(True, found._replace(unscored_share=0.1), False)
    assert kept.read(True) is None
    kept.write(True, found, True)
    assert kept.read(True)[1] and kept.read(False) is None


def test_the_start_of_training_is_measured_once_too(tmp_path, measured):
    first = evaluator(tmp_path).base_point()
    assert evaluator(tmp_path).base_point().metrics == first.metrics and len(measured) == 1
    evaluator(tmp_path, **{"evaluation.samples": 3}).base_point()  # of the end of a run, which does not change it
    assert len(measured) == 1
    evaluator(tmp_path, **{"evaluation.point_samples": 2}).base_point()
    assert len(measured) == 2


def test_its_scores_are_those_of_all_base_responses(tmp_path):
    made = evaluator(tmp_path)
    for found in (made.base_point(), made.base_evaluation()):
        assert found.metrics["judge"].value == pytest.approx(np.nanmean(made.base.judge))
        assert found.metrics["reward"].value == pytest.approx(np.nanmean(made.base.reward))
