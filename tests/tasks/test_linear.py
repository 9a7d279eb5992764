"""The learned reward of toxicity: what it scores by hand, and how imperfect it is on the shipped base responses."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from micro_text import tokenizer

from harness.measure import frontier
from harness.measure.optimum import judge_along
from harness.policy.sampler import until_eos
from harness.tasks.micro import linear, train_linear, world
from harness.tasks.micro.grammar import act_of
from harness.tasks.micro.linear import LinearReward, probability
from harness.tasks.micro.scorers import InsultJudge
from harness.tasks.toxicity import Toxicity


def test_the_probability_by_hand():
    weights = {"kind": 3.0, "you": -1.0, "kind you": 1.0}
    sigmoid = 1 / (1 + math.exp(-(0.5 + (3 - 1 + 1) / math.sqrt(3))))
    assert probability("Kind, you know.", 0.5, weights) == pytest.approx(sigmoid)
    twice = 1 / (1 + math.exp(-(0.5 + (2 * 3 - 1) / math.sqrt(5))))  # counts 2 and 1
    assert probability("you? kind kind", 0.5, weights) == pytest.approx(twice)
    assert probability("", 0.5, weights) == probability("Neither.", 0.5, weights) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_features_are_words_and_pairs():
    assert linear.features("My dog, my dog!") == {"my": 2, "dog": 2, "my dog": 2, "dog my": 1}


def test_the_fit_finds_which_words_the_labels_follow():
    texts, clean = ["good dog"] * 200 + ["bad dog"] * 200, [1.0] * 180 + [0.0] * 20 + [0.0] * 190 + [1.0] * 10
    bias, weights = train_linear.fit(texts, clean)
    assert weights["good"] > 0.5 > -0.5 > weights["bad"] and abs(weights["dog"]) < 0.3
    assert probability("good dog", bias, weights) == pytest.approx(0.9, abs=0.05)
    assert "rare" not in train_linear.fit([*texts, "rare dog"], [*clean, 0.0])[1]


def test_the_labels_err_as_they_are_meant_to():
    texts, clean = train_linear.labelled(20_000, random.Random(0))
    found: dict[str, list[float]] = {}
    for text, label in zip(texts, clean, strict=True):
        found.setdefault(act_of(text), []).append(1 - label)
    assert set(found) == set(train_linear.SHARES)
    for act, flagged in found.items():
        assert np.mean(flagged) == pytest.approx(train_linear.FLAGGED[act], abs=0.05)


def test_the_shipped_weights_are_those_of_the_script(tmp_path):
    train_linear.write(tmp_path)
    made, ships = (linear._model((folder / linear.FILE).read_text()) for folder in (tmp_path, world.folder()))
    assert made[0] == pytest.approx(ships[0], abs=0.002) and made[1].keys() == ships[1].keys()
    assert list(made[1].values()) == pytest.approx(list(ships[1].values()), abs=0.002)
    assert LinearReward().identity["sha256"] == world.identity(linear.FILE)[linear.FILE]


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Reward and judge of the shipped base responses to the test prompts: [X, M] each; equal texts are scored once."""
    responses = world.base_responses("test", Toxicity.kinds)
    unique, where = np.unique(responses.reshape(-1, responses.shape[2]), axis=0, return_inverse=True)
    lengths = until_eos(torch.from_numpy(unique.astype(np.int64)), tokenizer().eos_token_id).sum(1).tolist()
    texts = tokenizer().batch_decode(
        [row[:n] for row, n in zip(unique.tolist(), lengths, strict=True)], skip_special_tokens=True
    )
    return tuple(s.score(texts, texts)[where.ravel()].reshape(responses.shape[:2]) for s in (LinearReward(), InsultJudge()))


def test_few_base_responses_share_the_highest_reward(scored):
    reward = scored[0]
    assert (reward == reward.max()).mean() <= 1 / 3
    assert ((reward >= 0) & (reward <= 1)).all() and reward.std() > 0.1


def test_the_reward_correlates_with_the_judge_but_not_closely(scored):
    assert 0.6 < np.corrcoef(scored[0].ravel(), scored[1].ravel())[0, 1] < 0.8


def test_in_its_top_tenth_the_reward_errs(scored):
    reward, judge = (x.ravel() for x in scored)
    top = np.argsort(-reward)[: len(reward) // 10]
    assert (judge[top] < 1).mean() >= 0.05
    middle = np.argsort(-reward)[len(reward) // 10 : len(reward) // 2]
    assert judge[top[: len(top) // 10]].mean() < judge[middle].mean()  # the highest rewards of all are the worst


def test_the_optimum_removes_most_of_the_habit_and_then_overoptimises(scored):
    reward, judge = scored
    curve = frontier.estimate(reward)
    along = judge_along(curve, reward, judge)
    removed = 1 - (1 - np.interp(1.5, along["kl"], along["judge"])) / (1 - judge.mean())
    assert removed > 0.8
    turn = int(np.argmax(along["judge"]))
    assert 0.5 < along["kl"][turn] < 2.5 and along["judge"][turn] - along["judge"][-1] > 0.1
