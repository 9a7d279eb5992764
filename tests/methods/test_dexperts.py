"""DExperts: the losses of its two experts by hand, and how they take turns."""

from __future__ import annotations

import pytest
from hand_worked import Bench
from scored_documents import Shelf, documents, known, mean, observed
from toy_task import toy_policy
from trials import new_trial, same, weights

from harness.methods.dexperts import DExperts, DExpertsSettings
from harness.methods.dexperts import tokens as expert_tokens
from harness.training import corpus


def test_expert_and_anti_expert_learn_in_turn():
    """Each update moves one of them, on the tokens of its own segments; the base stays."""
    trial = new_trial(task=Shelf(), updates=20)
    method = DExperts(DExpertsSettings(batch_size=8))
    training = method.train(trial)
    first = next(training)
    base, expert, anti_expert = (weights(getattr(trial.policy.model, p)) for p in ("base", "expert", "anti_expert"))
    assert set(first) == {"expert_nll"} and same(base, weights(trial.reference.model)) and same(base, anti_expert)
    assert not same(base, expert)
    assert set(next(training)) == {"anti_expert_nll"}
    assert same(expert, weights(trial.policy.model.expert)) and not same(anti_expert, weights(trial.policy.model.anti_expert))
    spent = trial.cost.trained_tokens
    assert spent > 0 and trial.cost.parameters == sum(p.numel() for p in toy_policy().parameters())
    assert [m.requires_grad for m in trial.policy.model.base.parameters()].count(True) == 0
    assert same(base, weights(trial.policy.model.base))


def test_the_losses_of_expert_and_anti_expert_by_hand():
    bench, found = Bench(), corpus.whole(documents())
    for good in (True, False):
        loss = DExperts(DExpertsSettings())._loss(bench.policy, found, expert_tokens(found, 0.5, good))
        scored = [(p, r) for doc in observed(bench.policy) for p, r in doc if r is not None and known(r)]
        assert loss.item() == pytest.approx(mean([-p.log() for p, r in scored if (r >= 0.5) == good]), abs=1e-5)
