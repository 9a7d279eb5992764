"""Advantage-weighted regression: its loss by hand, and its value head."""

from __future__ import annotations

import math

import pytest
import torch
from hand_worked import Bench
from scored_documents import NAN, WHOLE, Shelf, documents, known, mean, observed
from tiny import rng
from trials import new_trial

from harness.methods.awr import AWR, AWRSettings, ValueHead
from harness.training import corpus


def test_the_loss_of_awr_by_hand():
    bench, head = Bench(), ValueHead(16)
    with torch.no_grad():
        head.weight.copy_(torch.randn(16, generator=rng()))
    awr = AWR(AWRSettings(alpha=0.3, beta=0.5, max_weight=1.5))
    loss, scalars = awr._loss(bench, corpus.whole(documents()), head)
    costs, errors, cut = [], [], 0
    for (tokens, _), doc in zip(WHOLE, observed(bench.policy), strict=True):
        hidden = bench.policy.model.transformer(input_ids=torch.tensor([[0, *tokens]])).last_hidden_state[0]
        for t, (p, r) in enumerate(doc):
            value = 1 / (1 + torch.exp(-(hidden[t] @ head.weight)))
            if r is not None and known(r):
                weight = math.exp((r - value.item()) / 0.5)
                cut += weight > 1.5
                costs.append(-p.log() * min(weight, 1.5))
                errors.append((r - value) ** 2)
            elif r is None:
                costs.append(-p.log())
    by_hand = 0.3 * sum(costs) / len(costs) + 0.7 * sum(errors) / len(errors)
    assert 0 < cut < len(errors) == bench.charged
    assert loss.item() == pytest.approx(float(by_hand.detach()), abs=1e-5)
    assert scalars["value_error"] == pytest.approx(mean(errors), abs=1e-5)
    names = [bench.policy.model.transformer.wte.weight, head.weight]
    for ours, theirs in zip(
        torch.autograd.grad(loss, names, retain_graph=True), torch.autograd.grad(by_hand, names), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)  # the weight has no gradient, the value's error has


def test_awr_without_a_score_learns_the_text_only():
    nothing = corpus.whole(documents()._replace(reward=documents().reward * NAN))
    bench = Bench()
    loss, scalars = AWR(AWRSettings(alpha=0.5))._loss(bench, nothing, ValueHead(16))
    assert loss.item() == pytest.approx(0.5 * scalars["cost"]) and math.isfinite(loss.item())
    terms = [-p.log() for doc in observed(bench.policy) for p, r in doc if r is None]
    assert scalars["cost"] == pytest.approx(mean(terms), abs=1e-5)


def test_the_value_of_awr_is_learned_and_charged_beside_the_policy():
    trial = new_trial(task=Shelf(), updates=4)
    for _ in zip(range(2), AWR(AWRSettings(batch_size=8)).train(trial), strict=False):
        pass
    head = trial.state_dict()["kept"]["head"]["weight"]
    assert head.shape == (16,) and (head != 0).all()
    assert 0 < trial.cost.beside_flops < 2 * 6 * 16 * trial.cost.document_tokens and trial.cost.beside_flops % (6 * 16) == 0
    with pytest.raises(ValueError, match="before the first update"):
        trial.train_also(ValueHead(16))
