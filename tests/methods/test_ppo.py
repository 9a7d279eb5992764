"""PPO: its first step against the exact gradient, its parts by hand, what it is charged, and how it resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import world
from exact_steps import BETA, DRAWS, agree
from trials import new_trial, resumed, same, weights

from harness.core.settings import preset_names, read_preset
from harness.methods.ppo import PPO, PPOSettings, Value, gae, policy_loss, shaped, value_loss, whiten
from harness.policy.policy import Policy
from harness.training.trial import Budget, Trial


class KnownValues(PPO):
    """PPO with its values from a table, by prompt and by what has been said."""

    def __init__(self, settings: PPOSettings, values: torch.Tensor) -> None:
        super().__init__(settings)
        self.table = values  # [X, 4, 125]

    def _values(self, trial, value, rollout, states=None):
        said = torch.zeros(len(rollout.response), dtype=torch.long)
        columns = []
        for t in range(world.STEPS):
            columns.append(self.table[torch.arange(len(said)) % len(world.PROMPTS), t, said])
            said = (said * world.VOCAB + rollout.response[:, t]) % 125
        return torch.stack(columns, 1).float()


def exact_values(moved: Policy, tables) -> torch.Tensor:
    """E[reward to come, KL's share included] after each beginning of a response, from the tables: -> [X, 4, 125]."""
    base, _, reward = tables
    log_pi = torch.tensor(world.log_probs(moved))
    values = torch.zeros(len(world.PROMPTS), world.STEPS, 125, dtype=torch.double)
    for t in range(world.STEPS):
        beginnings = [r[:t] for r in world.RESPONSES if len(r) > t]
        for said in set(beginnings):
            rows = [i for i, r in enumerate(world.RESPONSES) if r[:t] == said and len(r) > t]
            ours, theirs = log_pi[:, rows].logsumexp(1, keepdim=True), base[:, rows].logsumexp(1, keepdim=True)
            to_come = reward[rows] - BETA * ((log_pi[:, rows] - base[:, rows]) - (ours - theirs))
            number = sum(token * world.VOCAB**k for k, token in enumerate(reversed(said)))
            values[:, t, number] = ((log_pi[:, rows] - ours).exp() * to_come).sum(1)
    return values


@pytest.mark.parametrize("known", ["the exact values, lambda 0", "any values, lambda 1"])
def test_the_first_step_of_ppo_is_the_gradient_of_its_objective(known, moved, tables):
    """Whitening changes its length only. With lambda between 0 and 1 values that are wrong bias it: that is GAE."""
    lam = float(known[-1])
    rng = torch.Generator().manual_seed(2)
    values = torch.rand(len(world.PROMPTS), world.STEPS, 125, generator=rng) if lam else exact_values(moved, tables)
    settings = PPOSettings(kl_coef=BETA, gae_lambda=lam, explore_prompts=DRAWS, minibatches=1, value_coef=0)
    cosine, _ = agree(f"ppo, {known}", KnownValues(settings, values), "regularised reward", moved, tables)
    assert cosine >= 0.99


def test_the_returns_and_the_kl_of_a_rollout(moved, tables):
    """With lambda 1 a return is the reward to come, whatever the values; read in parts, some responses ending early."""
    values = torch.rand(len(world.PROMPTS), world.STEPS, 125, generator=torch.Generator().manual_seed(2))
    ppo = KnownValues(PPOSettings(gae_lambda=1.0, explore_prompts=64, minibatches=4), values)
    task = world.WorldTask(world.rewards())
    trial = Trial(moved.copy(), world.policy().requires_grad_(False), task, seed=0, budget=Budget(updates=9))
    experience, facts = ppo._explore(trial, Value(8, None), BETA)
    x, response = np.arange(64) % len(world.PROMPTS), world.index(experience["response"])
    log_ratio = world.log_probs(moved)[x, response] - tables[0].numpy()[x, response]
    assert facts["kl"] == pytest.approx(log_ratio.mean(), abs=1e-5) and experience["response_mask"].sum() < 64 * 4
    whole = world.rewards()[response] - BETA * log_ratio
    torch.testing.assert_close(experience["returns"][:, 0], torch.tensor(whole).float(), atol=1e-5, rtol=0)


def test_the_score_sits_on_the_last_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = shaped(torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0, 0.0], [1.0, 2.0, 4.0]]), mask, 0.1)
    assert got.flatten().tolist() == pytest.approx([-0.05, 1.1, 0.0, -0.1, -0.2, 1.6])


def test_gae_by_hand():
    """Errors of the values 0.3, 0.4, 0.2 along the first row, 0.5 in the second; lambda 1/2."""
    rewards = torch.tensor([[0.1, 0.2, 1.0], [0.7, 9.0, 9.0]])
    values = torch.tensor([[0.4, 0.6, 0.8], [0.2, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    got = gae(rewards, values, mask, 0.5).flatten().tolist()
    assert got == pytest.approx([0.3 + 0.2 + 0.05, 0.4 + 0.1, 0.2, 0.5, 0, 0])


def test_clipping_by_hand():
    """Held where the step would go on, not where it would come back."""
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    assert policy_loss(ratio, advantage, 0.2).tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    values, old, returns = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    assert value_loss(values, old, returns, 0.2).tolist() == pytest.approx([0.32, 0.32, 0.405])


def test_whitening_counts_the_mask_only():
    x = torch.tensor([[1.0, 2.0, 99.0], [3.0, 6.0, -99.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    got = whiten(x, mask)
    assert got[mask].mean().item() == pytest.approx(0, abs=1e-6) and got[mask].std().item() == pytest.approx(1)
    assert (got[~mask] == 0).all() and got[0, 1] - got[0, 0] == pytest.approx(got[1, 0].item() - got[0, 1].item())


def test_the_adaptive_controller_by_hand():
    ppo = PPO(PPOSettings(kl_target=2.0, kl_horizon=1000, explore_prompts=100))
    got = [ppo._controlled(0.1, kl) for kl in (2.0, 2.2, 50.0, 0.0)]
    assert got == pytest.approx([0.1, 0.101, 0.102, 0.098])
    fixed = PPO(PPOSettings(kl_controller="fixed", kl_target=2.0))
    assert fixed._controlled(0.1, 50.0) == 0.1
    trial, adaptive = new_trial(), PPO(PPOSettings(kl_horizon=10, explore_prompts=10, epochs=1, minibatches=1))
    used = [row["kl_coef"] for _, row in zip(range(3), adaptive.train(trial), strict=False)]
    assert used == pytest.approx([0.15, 0.15 * 0.8, 0.15 * 0.8**2])


@pytest.mark.parametrize("horizon", [1, 10, 12, 64, 300])
def test_beta_moves_by_a_fifth_at_most_and_stays_above_zero(horizon):
    ppo = PPO(PPOSettings(kl_horizon=horizon, explore_prompts=64))
    share = min(1.0, 64 / horizon)
    assert ppo._controlled(0.15, 0.0) == pytest.approx(0.15 * (1 - 0.2 * share))
    assert ppo._controlled(0.15, 1e9) == pytest.approx(0.15 * (1 + 0.2 * share))
    beta = 0.15
    for kl in [0.0, -3.0] * 50:  # the estimate from samples may be negative
        beta = ppo._controlled(beta, kl)
    assert beta > 0


def test_the_bound_changes_no_published_setting():
    """It binds where a rollout is longer than the horizon: in no preset, for no task, and not at the defaults."""
    found = [{}]
    for name in preset_names():
        tables = read_preset(name)
        own = [t.get("methods", {}).get("ppo", {}) for t in tables["tasks"].values()]
        found += [tables.get("methods", {}).get("ppo", {}) | more for more in own]
    settings = [PPOSettings(**more) for more in found]
    assert len(settings) > 10 and all(s.explore_prompts <= s.kl_horizon for s in settings)


SMALL = {"explore_prompts": 8, "epochs": 2, "minibatches": 2}


def test_the_value_network_learns_the_returns():
    settings = PPOSettings(kl_controller="fixed", explore_prompts=64, epochs=4, minibatches=1, lr=1e-3, value_coef=1.0)
    trial = new_trial(updates=60)
    losses = [row["value_loss"] for _, row in zip(range(60), PPO(settings).train(trial), strict=False)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_all_that_ppo_uses_is_charged(trunk):
    """By hand: one rollout of 8 prompts, then one of its two updates; every response has 5 tokens."""
    trial = new_trial()
    reference = sum(p.numel() for p in trial.reference.parameters())
    network = 17 + (reference if trunk == "own" else 0)
    method = PPO(PPOSettings(**SMALL | {"epochs": 1}, value_trunk=trunk)).train(trial)
    next(method)
    once = trial.cost.forward_tokens, trial.cost.trained_tokens, trial.cost.beside_flops
    next(method)
    assert trial.cost.sampled_tokens == 40 and trial.cost.scorer_calls == 8 and trial.cost.updates == 2
    tokens = trial.cost.trained_tokens  # by now each response has been trained on once: prompts and 40
    prompts = tokens - 40
    passes = 1 if trunk == "own" else 2  # the reference's, and the policy's for its values
    assert once[0] == trial.cost.forward_tokens == prompts + passes * tokens
    assert trial.cost.beside_flops == 2 * tokens * network + 6 * tokens * network
    assert once[2] == 2 * tokens * network + 6 * once[1] * network
    counted = 2 * reference * (40 + trial.cost.forward_tokens) + 6 * reference * tokens
    assert trial.cost.flops == counted + trial.cost.beside_flops


@pytest.mark.parametrize("trunk", ["own", "shared"])
@pytest.mark.parametrize("at", [1, 4, 6])  # within a pass, between two rollouts, between two passes
def test_a_killed_ppo_goes_on_bit_for_bit(trunk, at, tmp_path):
    def run(trial: Trial, updates: int) -> list[dict[str, float]]:
        return [row for _, row in zip(range(updates), PPO(PPOSettings(**SMALL, value_trunk=trunk)).train(trial), strict=False)]

    whole, half = new_trial(updates=8), new_trial(updates=8)
    rows = run(whole, 8)
    assert run(half, at) == rows[:at]
    again = resumed(half, tmp_path)
    assert run(again, 8 - at) == rows[at:]
    assert same(weights(whole.policy), weights(again.policy)) and whole.cost == again.cost
    networks = [trial._kept["value"] for trial in (whole, again)]
    assert same(*(weights(network) for network in networks)) and networks[0].head.weight.abs().sum() > 0


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_the_value_network_s_trunk(trunk):
    trial = new_trial()
    reference = weights(trial.reference)
    for _ in zip(range(3), PPO(PPOSettings(**SMALL, value_trunk=trunk)).train(trial), strict=False):
        pass
    own = trial._kept["value"].trunk
    assert same(reference, weights(trial.reference)) and (own is None) == (trunk == "shared")
    assert own is None or not (same(weights(own), reference) or same(weights(own), weights(trial.policy)))
