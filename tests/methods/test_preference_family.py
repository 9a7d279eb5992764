"""What the methods that compare responses have in common: costs, resuming, settings, responses without a score."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import half_quarter, responses
from pydantic import ValidationError
from tiny import tiny_gpt2
from toy_task import Indifferent, SameLength, ToyTask, toy_policy
from trials import make_quick, pair_trial, run

from harness.core.errors import RunFailed
from harness.methods.dpo import DPO, DPOSettings
from harness.methods.gradient_ascent import GradientAscent
from harness.methods.grpo import GRPO, GRPOSettings
from harness.methods.kto import KTO, KTOSettings
from harness.methods.npo import NPO, NPOSettings
from harness.methods.rloo import RLOO, RLOOSettings
from harness.policy.policy import Policy
from harness.training import trl_bridge as ours

BY_TRL = [DPO, KTO, RLOO, GRPO]

ALL = [*BY_TRL, NPO, GradientAscent]


@pytest.mark.parametrize("method", ALL)
def test_unscored_responses_are_left_out_without_a_word(method, caplog):
    """TRL would say of each batch that the reward functions returned None."""
    trial = pair_trial(task=ToyTask(unscored=2))
    caplog.clear()
    assert all(math.isfinite(v) for row in run(make_quick(method), trial, 3) for v in row.values())
    assert trial.unscored == 4 and not caplog.records


@pytest.mark.parametrize("clip", [0.2, 0.4])
@pytest.mark.parametrize("method, old", [(RLOO, "old_logps"), (GRPO, "old_per_token_logps")])
def test_the_ratio_is_clipped_where_it_would_gain(method, old, clip):
    """One token each, rho = 1.5: the better response counts 1 + clip, the worse one 1.5."""
    settings = {"kl_coef": 0.0, "clip": clip, "group_size": 2, "batch_size": 2, "explore_every": 2}
    form = {"scale": "none"} if method is GRPO else {}
    trainer = method(method.Settings(**settings, **form))._trainer(pair_trial(*half_quarter()))
    batch = ours.score(trainer, responses([[2], [3]], [[4], [4]]), torch.tensor([1.0, 0.0]))
    advantage = 1.0 if method is RLOO else 0.5
    value, _ = ours.loss(trainer, batch | {old: batch[old] - math.log(1.5)})
    assert value.item() == pytest.approx(advantage * (1.5 - (1 + clip)) / 2, abs=1e-6)


@pytest.mark.parametrize("method", [DPO, KTO])
def test_rewards_that_are_all_alike_teach_nothing(method):
    with pytest.raises(RunFailed, match="raise explore_prompts"):
        run(make_quick(method), pair_trial(task=Indifferent()), 1)


def test_a_later_exploration_may_find_nothing_new():
    """A policy that has learned the task makes ties only: the older pairs serve."""
    for method in (DPO, KTO):
        trial = pair_trial(task=ToyTask())
        train = make_quick(method).train(trial)
        next(train)
        trial._task = Indifferent()
        rows = [next(train) for _ in range(4)]
        assert rows[-1]["ties"] > rows[0]["ties"]


COSTS = {
    # 16 prompts of 2, two responses of 5 each; 8 sequences of 7 through the policy and through the reference
    (DPO, ()): {"sampled": 160, "forward": 32 + 56, "trained": 56, "scorer": 32},
    # 16 responses; 4 sequences: the policy, again mismatched, and the reference on both
    (KTO, ()): {"sampled": 80, "forward": 32 + 3 * 28, "trained": 28, "scorer": 16},
    # 4 prompts, 16 responses: old log-probabilities and the reference once, then the update
    (RLOO, ()): {"sampled": 80, "forward": 8 + 2 * 112, "trained": 112, "scorer": 16},
    (RLOO, (("kl_coef", 0.0),)): {"sampled": 80, "forward": 8 + 112, "trained": 112, "scorer": 16},
    (GRPO, ()): {"sampled": 80, "forward": 8 + 2 * 112, "trained": 112, "scorer": 16},
    # TRL takes the update's own log-probabilities for the old ones where there is one update a rollout
    (GRPO, (("explore_every", 1),)): {"sampled": 80, "forward": 8 + 112, "trained": 112, "scorer": 16},
    # 2 to forget and 2 to retain; NPO asks the reference of both
    (NPO, ()): {"sampled": 80, "forward": 32 + 28, "trained": 28, "scorer": 16},
    (GradientAscent, ()): {"sampled": 80, "forward": 32 + 14, "trained": 28, "scorer": 16},
}


@pytest.mark.parametrize("method, more", COSTS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_one_update_is_charged_in_full(method, more):
    trial = pair_trial(task=SameLength())
    run(make_quick(method, **dict(more)), trial, 1)
    c, hand = trial.cost, COSTS[method, more]
    assert (c.sampled_tokens, c.forward_tokens, c.trained_tokens) == (hand["sampled"], hand["forward"], hand["trained"])
    assert (c.scorer_calls, c.updates) == (hand["scorer"], 1)


@pytest.mark.parametrize("method", ALL)
def test_a_killed_run_goes_on_bit_for_bit(method, tmp_path):
    torch.manual_seed(1)
    whole, half = pair_trial(), pair_trial()
    rows = run(make_quick(method), whole, 5)
    torch.manual_seed(2)
    assert run(make_quick(method), half, 3) == rows[:3]  # in the middle of a rollout
    half.policy.save(tmp_path / "policy")
    torch.save(half.state_dict(), tmp_path / "trial.pt")
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    again = pair_trial(Policy.load(tmp_path / "policy"), toy_policy(), seed=5, state=state)
    assert run(make_quick(method), again, 2) == rows[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True))
    assert whole.cost == again.cost and torch.equal(whole.rng.get_state(), again.rng.get_state())


@pytest.mark.parametrize("method", ALL)
def test_the_reference_stays_and_the_policy_moves(method):
    trial = pair_trial()
    run(make_quick(method), trial, 2)
    start = list(toy_policy().parameters())
    assert all(torch.equal(a, b) for a, b in zip(trial.reference.parameters(), start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(trial.policy.parameters(), start, strict=True) if b.numel() > 200)


@pytest.mark.parametrize("settings", [RLOOSettings, GRPOSettings])
def test_a_rollout_is_whole_groups(settings):
    with pytest.raises(ValidationError, match="batch_size 10 should be a multiple of group_size 4"):
        settings(group_size=4, batch_size=10)


@pytest.mark.parametrize(
    "settings, wrong",
    [
        (KTOSettings, {"batch_size": 5}),
        (DPOSettings, {"responses": 1}),
        (DPOSettings, {"kl_coef": 0}),
        (NPOSettings, {"beta": 0}),
    ],
)
def test_settings_out_of_range(settings, wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)


EACH = [
    *[(DPO, k, v) for k, v in {"variant": "ipo", "kl_coef": 0.7, "responses": 3, "explore_prompts": 9}.items()],
    *[(KTO, k, v) for k, v in {"kl_coef": 0.7, "desirable_weight": 3.0, "undesirable_weight": 3.0}.items()],
    *[(RLOO, k, v) for k, v in {"kl_coef": 0.7, "group_size": 2, "explore_every": 1}.items()],
    *[(GRPO, k, v) for k, v in {"kl_coef": 0.7, "group_size": 2, "loss_type": "grpo", "scale": "none"}.items()],
    *[(NPO, k, v) for k, v in {"beta": 0.7, "kl_coef": 0.1, "num_quantiles": 2}.items()],
    *[(GradientAscent, k, v) for k, v in {"kl_coef": 0.1, "num_quantiles": 2}.items()],
]


@pytest.mark.parametrize("method, key, value", EACH, ids=lambda x: getattr(x, "__name__", str(x)))
def test_each_setting_counts(method, key, value):
    rows = [run(make_quick(method, **more), pair_trial(tiny_gpt2(), lr=1e-2), 4) for more in ({}, {}, {key: value})]
    assert rows[0] == rows[1] != rows[2]
