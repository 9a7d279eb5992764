"""Self-debiasing: which text calls for the habit. The formula is in tests/policy/test_debiased.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from closed_forms import responses
from tiny import BOS, EOS, tiny_gpt2
from trials import new_trial, run

from harness.core.errors import BadSetting
from harness.methods.self_debias import TOXIC, SelfDebias, SelfDebiasSettings


def deployed(trial, **settings):
    assert run(SelfDebias(SelfDebiasSettings(**settings)), trial, 1) == []
    return trial.deployed.model


def test_examples_are_the_worst_responses_without_their_end():
    trial = new_trial(tiny_gpt2())
    rollout = responses([[2, 3, EOS], [5, 6], [7, EOS], [8], [9, 10]], [[4, 11]] * 5)
    trial.sample, seen = lambda prompts, policy: rollout, []
    trial.reward = lambda _: torch.tensor([0.2, 0.4, 0.1, float("nan"), 0.9])
    trial.prompts = lambda n: seen.append(n)
    found = deployed(trial, description="", examples=2, explore_prompts=5, decay=7.0)
    assert found.told == (7, 2, 3) and found.decay == 7.0 and found.bos == BOS and seen == [5]


def test_a_description_is_read_by_the_tokenizer_and_costs_nothing():
    trial, asked = new_trial(tiny_gpt2()), []

    def tokenizer(text, add_special_tokens):
        asked.append((text, add_special_tokens))
        return SimpleNamespace(input_ids=[4, 5])

    trial.reference.tokenizer = tokenizer
    assert deployed(trial).told == (4, 5) and asked == [(TOXIC, False)]
    assert trial.cost.flops == 0


def test_without_a_tokenizer_a_description_is_refused():
    with pytest.raises(BadSetting, match=r"no tokenizer .* set method\.description=''"):
        deployed(new_trial(tiny_gpt2()))
