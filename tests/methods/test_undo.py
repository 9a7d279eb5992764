"""UNDO: the noise as its formula, the distillation loss by hand, and the teacher of a resumed run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from closed_forms import half_quarter, responses
from tiny import tiny_gpt2
from trials import new_trial, pair_trial, resumed, run, same, weights

from harness.core.errors import BadSetting
from harness.methods.undo import UNDO, UNDOSettings, noise

QUICK = dict(UNDO.quick)


def test_noise_lies_between_the_weights_and_those_of_a_fresh_model():
    policy, fresh = tiny_gpt2(), tiny_gpt2()
    fresh.reset(torch.Generator().manual_seed(7))
    start = [w.clone() for w in weights(policy)]
    noise(policy, 0.3, torch.Generator().manual_seed(7))
    assert not same(start, weights(fresh))
    for w, old, drawn in zip(weights(policy), start, weights(fresh), strict=True):
        torch.testing.assert_close(w, 0.7 * old + 0.3 * drawn)


def test_the_distillation_loss_is_the_kl_of_the_teacher_to_the_student():
    """A uniform teacher and a student of another distribution, each the same at every position."""
    student, teacher = half_quarter()
    trial, seen = pair_trial(student, teacher), []
    rollout = responses([[9, 8, 7], [5]])
    trial.update = lambda loss: seen.append(loss.item())
    trial.sample = lambda prompts, policy: rollout if policy is teacher else None
    trial.prompts = lambda n: None
    UNDO(UNDOSettings())._distil(trial, teacher)
    p, q = (x.logits(rollout)[0, 0].softmax(-1) for x in (teacher, student))
    assert seen == [pytest.approx((p * (p / q).log()).sum().item(), abs=1e-5)] and seen[0] > 0.01


def test_alpha_0_stays_at_the_suppressed_policy():
    """The student is its teacher, so the loss is 0 from the first step of the second phase on."""
    rows = run(UNDO(UNDOSettings(**QUICK | {"alpha": 0.0, "suppress": 0.5})), new_trial(updates=4), 4)
    assert ["cost" in row for row in rows] == [True, True, False, False]
    assert rows[2]["distillation"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("first", [2, 5])
def test_a_run_killed_in_either_phase_goes_on_as_it_would_have(tmp_path, first):
    method = UNDO(UNDOSettings(**QUICK | {"alpha": 0.5, "suppress": 0.5}))
    whole, cut = (new_trial(updates=8) for _ in range(2))
    rows = run(method, whole, 7)
    run(method, cut, first)
    again = resumed(cut, tmp_path)
    assert run(method, again, 7 - first) == rows[first:] and same(weights(again.policy), weights(whole.policy))


def test_an_adapter_is_refused():
    trial = SimpleNamespace(policy=SimpleNamespace(setup=SimpleNamespace(lora=object())))
    with pytest.raises(BadSetting, match=r"set model.lora.rank=0"):
        next(UNDO(UNDOSettings()).train(trial))
