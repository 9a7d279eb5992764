"""Quark: its loss by hand in both variants."""

from __future__ import annotations

import pytest
import torch
from hand_worked import Bench, batch, picked, rows
from pydantic import ValidationError
from tiny import rng

from harness.methods import quark as module
from harness.methods.quark import Quark, QuarkSettings


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_loss_of_quark_by_hand(variant):
    bench = Bench()
    tokens = bench.policy.control_tokens(3, rng())
    quark = Quark(QuarkSettings(variant=variant, num_quantiles=3, kl_coef=0.3, entropy_coef=0.2))
    token = tokens[torch.tensor([0, 2, 1])]
    quark._learn(bench, batch(), token)
    ours, theirs = rows(bench.policy, batch(), token), rows(bench.reference, batch())
    total = 0.0
    for p, q, y in zip(ours, theirs, picked(ours, batch()), strict=True):
        forward, backward = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
        extra = 0.3 * forward if variant == "paper" else 0.3 * backward + 0.2 * (p * p.log()).sum(-1)
        total = total + (-y.log() + extra).sum()
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)


def test_quark_with_the_unlikelihood_of_previous_tokens_by_hand():
    """In the row 2, 3, 1 the candidates are none, {2}, {2, 3}; the token itself is none."""
    bench = Bench()
    token = bench.policy.control_tokens(3, rng())[torch.tensor([0, 2, 1])]
    settings = {"num_quantiles": 3, "kl_coef": 0.0, "unlikelihood_coef": 0.7}
    Quark(QuarkSettings(**settings))._learn(bench, batch(), token)
    ours, total = rows(bench.policy, batch(), token), 0.0
    candidates = [[[], [2], [2, 3]], [[], [4]], [[], [10], [10, 11]]]
    for p, y, earlier in zip(ours, picked(ours, batch()), candidates, strict=True):
        total = total - y.log().sum() - 0.7 * sum((1 - p[t, c]).log() for t, row in enumerate(earlier) for c in row)
    assert bench.loss.item() == pytest.approx(float(total.detach()) / 8, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"num_quantiles": 1}, {"lr": 0}, {"kl_coef": -0.1}, {"variant": "both"}, {"beta": 1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValidationError):
        QuarkSettings(**wrong)


def test_every_departure_from_the_release_is_declared_at_the_top():
    said = " ".join((module.__doc__ or "").split())
    assert "the release bans EOS for the first 3 tokens" in said
    assert "NLL and entropy include the position of the reward token" in said
