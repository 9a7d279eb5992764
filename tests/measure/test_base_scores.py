"""What is checked of the base policy's scores before anything is trained, and of every score that enters a measurement."""

import numpy as np
import pytest
import torch
import toy_task

from harness.core.errors import BadScorer, Degraded
from harness.core.settings import EvaluationSettings
from harness.measure import base_responses, evaluator
from harness.measure.base_responses import Cache

SETTINGS = EvaluationSettings(samples=2, base_samples=50, paper_samples=0)


class Task(toy_task.ToyTask):
    """The toy's task with another judge and, where it is told, another reward."""

    fluency, kinds = None, ("calm",)

    def __init__(self, judge, reward=lambda scores, rollout: scores):
        super().__init__()
        self._judge, self._reward = judge, reward

    def identity(self):
        return super().identity() | {"scorers": {}}

    def reward(self, rollout):
        return self._reward(super().reward(rollout), rollout)

    def judge(self, rollout):
        return self._judge(super().reward(rollout), rollout)


def known(task, cache: Cache, say=lambda _: None):
    return base_responses.known(task, toy_task.toy_policy(), {"toy": 1}, SETTINGS, cache, say)


def second_prompt(rollout) -> bool:
    return int(rollout.prompts.mask.sum(1)[0]) == 2


def silent_at_second(scores, rollout):
    return scores * np.nan if second_prompt(rollout) else scores


def every_other(parity):
    """No score for every other response to the second prompt."""

    def of(scores, rollout):
        if second_prompt(rollout):
            scores[torch.arange(len(scores)) % 2 == parity] = torch.nan
        return scores

    return of


@pytest.mark.parametrize(
    ("task", "who"),
    [(Task(silent_at_second), "judge"), (Task(every_other(0), every_other(1)), "reward and the judge together")],
    ids=["no judge", "never both"],
)
def test_a_judge_that_scores_no_base_response_to_a_prompt_is_said_before_training(task, who, tmp_path):
    with pytest.raises(Degraded, match=rf"the {who} could score no base response to 1 of 3 prompts \(prompt_id 1 is the first"):
        known(task, Cache(tmp_path))


def test_a_judge_that_fails_on_some_responses_of_a_prompt_is_enough(tmp_path):
    assert np.isnan(known(Task(every_other(0)), Cache(tmp_path)).judge).any()


@pytest.mark.parametrize("wrong", [7.46, -4.54, float("inf")])
@pytest.mark.parametrize("name", ["reward", "judge"])
def test_a_score_out_of_range_is_refused_wherever_it_enters(name, wrong, tmp_path):
    def off(scores, rollout):
        scores[-1] = wrong
        return scores

    honest = Task(lambda scores, rollout: scores)
    bad = Task(off) if name == "judge" else Task(lambda scores, rollout: scores, off)
    with pytest.raises(BadScorer, match=f"the task's {name} returned values from .* and values in"):
        known(bad, Cache(tmp_path))
    measured = evaluator.Evaluator(bad, toy_task.toy_policy(), known(honest, Cache(tmp_path)), SETTINGS, lambda _: None)
    bad.texts = lambda rollout: [str(row) for row in rollout.response.tolist()]
    with pytest.raises(BadScorer, match=f"the task's {name} returned"):
        measured.point(toy_task.toy_policy())
    if name == "judge":
        with pytest.raises(BadScorer, match="judge returned"):
            measured._responses(toy_task.toy_policy(), bad.decoding, torch.Generator(), 2)


def test_scores_of_another_shape_are_refused():
    with pytest.raises(BadScorer, match=r"returned shape \(2, 1\) for 2 responses; expected shape \(2,\)"):
        evaluator.scored("judge", torch.zeros(2, 1), 2)
    assert np.isnan(evaluator.scored("judge", torch.tensor([0.5, torch.nan]), 2)).tolist() == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"judge": np.full((3, 50), 7.46)},
        {"reward": np.full((3, 50), -1.0)},
        {"judge": np.full((3, 50), np.nan)},
        {"judge": np.ones((3, 49))},
        {"reward": np.full((3, 50), "good")},
        {"judge": None},
    ],
)
def test_kept_scores_of_base_responses_that_are_none_are_never_read_as_data(change, tmp_path):
    cache, task = Cache(tmp_path), Task(lambda scores, rollout: scores)
    whole = known(task, cache)
    assert (known(task, cache).judge == whole.judge).all()
    path = next(tmp_path.glob("scores-*"))
    arrays = {k: v for k, v in ({"reward": whole.reward, "judge": whole.judge} | change).items() if v is not None}
    np.savez_compressed(path, **arrays)
    said: list[str] = []
    again = known(task, cache, say=said.append)
    assert (again.judge == whole.judge).all() and (again.reward == whole.reward).all()
    assert any(f"the cached scores in {path}" in line and line.endswith("they are computed again") for line in said)
