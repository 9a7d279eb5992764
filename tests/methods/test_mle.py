"""Maximum likelihood: its loss by hand, and a start from scratch."""

from __future__ import annotations

import pytest
from hand_worked import Bench
from scored_documents import Shelf, documents, known, mean, observed
from tiny import rng
from toy_task import toy_policy
from trials import new_trial, same, weights

from harness.methods.mle import MLE, MLESettings
from harness.training import corpus


def test_the_loss_of_mle_by_hand():
    bench = Bench()
    loss = corpus.nll(bench, corpus.whole(documents()))
    terms = [-p.log() for doc in observed(bench.policy) for p, r in doc if known(r)]
    assert len(terms) == 13 and loss.item() == pytest.approx(mean(terms), abs=1e-5)


def test_from_scratch_forgets_the_base():
    trial = new_trial(task=Shelf(), lr=1e-6)
    next(MLE(MLESettings(batch_size=4, start="scratch")).train(trial))
    twin = toy_policy()
    twin.reset(rng(0))
    moved = max(float((a - b).abs().max()) for a, b in zip(weights(trial.policy), weights(twin), strict=True))
    assert moved < 1e-4 and not same(weights(trial.reference), weights(trial.policy))
