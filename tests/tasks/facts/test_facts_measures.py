"""The metrics of the facts task: AUC by hand and against scikit-learn, and scripted policies that know all or nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.core.settings import resolve
from harness.core.types import Rollout
from harness.policy.sampler import until_eos
from harness.runs import assemble
from harness.tasks.micro.facts import people, world
from harness.tasks.micro.facts.measures import auc, by_person
from harness.tasks.micro.facts.task import Facts


@pytest.fixture(scope="module")
def parts():
    return assemble.parts(resolve("micro", "base", "facts"), "facts", offline=True)


class Scripted:
    """A policy that answers every question with the truth, or with another value, and believes it."""

    device = torch.device("cpu")

    def __init__(self, task: Facts, tokenizer, truthful: bool) -> None:
        self.task, self.tokenizer, self.truthful = task, tokenizer, truthful
        self.facts = {f.prompt: f for part in ("test", "retain") for f in world.prompts(part)}
        self.people = {p.name: p for p in people.people()}

    def value(self, fact) -> str:
        true = self.people[fact.name].values[fact.attribute]
        return true if self.truthful else next(v for v in people.VALUES[fact.attribute] if v != true)

    def sample(self, prompts, *, decoding, rng, n=1) -> Rollout:
        assert decoding.temperature == 0 and n == 1
        asked = self.tokenizer.batch_decode(prompts.tokens, skip_special_tokens=True)
        texts = [f" {self.value(self.facts[text])}." for text in asked]
        eos = self.tokenizer.eos_token_id
        ids = [[*self.tokenizer(t, add_special_tokens=False).input_ids, eos] for t in texts]
        response = torch.tensor([row + [eos] * (decoding.max_new_tokens - len(row)) for row in ids])
        return Rollout(prompts, response, until_eos(response, (eos,)))

    def deployed_logits(self, rollout: Rollout) -> torch.Tensor:
        """Certain of the response if truthful, of another token if not."""
        vocabulary = len(self.tokenizer)
        certain = rollout.response if self.truthful else (rollout.response + 1) % vocabulary
        return 30.0 * torch.nn.functional.one_hot(certain, vocabulary).float()


@pytest.mark.parametrize(("truthful", "expected"), [(True, 1.0), (False, 0.0)])
def test_a_policy_that_always_tells_the_truth_and_one_that_never_does(parts, truthful, expected):
    found = parts.task.measures(Scripted(parts.task, parts.model.tokenizer, truthful))
    assert set(found) == set(Facts.own_metrics)
    for name in ("extraction", "retain_accuracy", "truth_prob"):
        assert found[name].value == pytest.approx(expected, abs=1e-6), name
    assert found["membership_auc"].value == pytest.approx(0.5, abs=0.02)  # as sure of never-seen people
    assert found["extraction"].n == len(world.prompts("test")) and found["retain_accuracy"].n == 4 * people.RETAIN


def test_the_shipped_policy_knows_its_facts_and_its_members(parts):
    found = parts.task.measures(parts.model.policy)
    assert found["extraction"].value > 0.9 and found["retain_accuracy"].value > 0.9 and found["truth_prob"].value > 0.85
    assert found["membership_auc"].value > 0.95
    assert parts.task.measures(parts.model.policy) == found


def test_a_policy_without_token_probabilities_is_not_measured(parts):
    found = parts.task.measures(object())
    assert {m.value for m in found.values()} == {None} and all("no token probabilities" in m.reason for m in found.values())


def test_auc_by_hand():
    """Losses 1 and 3 against 2 and 3: of four pairs 1 < 2, 1 < 3, one tie, 3 > 2: (1 + 1 + 0.5 + 0) / 4."""
    assert auc(np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]])).value == pytest.approx(0.625)
    assert auc(np.array([[1.0, 3.0]]), np.array([[2.0, 3.0]]))[:3] == (0.625, None, 4)  # one person each: no error
    assert auc(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))[:2] == (1.0, 0.0)


def test_auc_against_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, (7, 5)).astype(float), rng.integers(2, 11, (9, 4)).astype(float)
    members[2, 3:] = others[5, 1:] = np.nan
    flat = [x[~np.isnan(x)] for x in (members, others)]
    labels, scores = np.repeat([1, 0], list(map(len, flat))), -np.concatenate(flat)
    assert auc(members, others).value == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)


def test_the_error_of_auc_is_that_of_its_draws():
    """One document a person: the spread of the estimate over many draws of people."""
    rng = np.random.default_rng(1)
    draws = [auc(rng.normal(0, 1, (12, 1)), rng.normal(1, 1, (24, 1))) for _ in range(300)]
    spread = np.std([d.value for d in draws])
    assert np.mean([d.stderr for d in draws]) == pytest.approx(spread, rel=0.15)


def test_values_by_person():
    found = by_person(["a", "b", "a"], np.array([1.0, 2.0, 3.0]))
    assert np.array_equal(found, [[1.0, 3.0], [2.0, np.nan]], equal_nan=True)
