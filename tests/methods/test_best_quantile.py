"""Best quantile: its loss by hand."""

from __future__ import annotations

import pytest
from hand_worked import Bench, batch, picked, rows

from harness.methods.best_quantile import BestQuantile, BestQuantileSettings


def test_the_loss_of_best_quantile_by_hand():
    bench = Bench()
    BestQuantile(BestQuantileSettings(kl_coef=0.3))._learn(bench, batch())
    ours, theirs = rows(bench.policy, batch()), rows(bench.reference, batch())
    terms = [
        (-y.log() + 0.3 * (q * (q / p).log()).sum(-1)).sum()
        for p, q, y in zip(ours, theirs, picked(ours, batch()), strict=True)
    ]
    assert bench.loss.item() == pytest.approx(float(sum(terms).detach()) / 8, abs=1e-5)
