"""The online methods: exact gradients and optima in a world where each response can be listed, and PPO against TRL's.

`pytest -s` prints the figures. The comparison with TRL's own PPO trainer needs its last release that has one,
    pip install --no-deps --target FOLDER trl==1.12.0
in the folder named by the variable TRL_112, or in `.trl112` at the root of the repository; it is skipped elsewhere.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from places import FIXTURES, ROOT
from pydantic import ValidationError
from tiny import tiny_gpt2
from torch.nn.functional import cosine_similarity
from toy_task import ToyTask
from trials import new_trial, resumed, same, weights

from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout
from harness.methods import gdc, reinforce
from harness.methods.gdc import GDC, GDCSettings
from harness.methods.ppo import PPO, PPOSettings, Value, gae, policy_loss, shaped, value_loss, whiten
from harness.methods.random_reward import RandomReward, RandomRewardSettings
from harness.methods.reinforce import Reinforce, ReinforceSettings
from harness.policy.policy import Policy
from harness.training.trial import Budget, OptimizerSettings, Trial

DIVERGENCES = ("forward_kl", "reverse_kl", "total_variation", "jensen_shannon")


# exact gradients ------------------------------------------------------------------------------------------------------

BETA, DRAWS = 0.3, 8192


class Probe(Trial):
    """A trial that keeps the gradient instead of taking the step."""

    def update(self, loss):
        loss.backward()


@pytest.fixture(scope="module")
def moved():
    """A policy some way from the base, at which gradients are taken: neither a start nor an optimum."""
    return world.perturbed(world.policy(), 0.1, seed=1)


@pytest.fixture(scope="module")
def tables():
    """log pi0, the posterior and the rewards: [X, N], [X, N], [N]."""
    base, reward = world.log_probs(world.policy()), world.rewards()
    return torch.tensor(base), torch.tensor(world.tilted(base, reward, 1 / BETA)), torch.tensor(reward)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def objective(name: str, log_pi: torch.Tensor, tables) -> torch.Tensor:
    """What the method says it makes small, over all responses to all prompts."""
    base, target, reward = tables
    if name == "regularised reward":
        return BETA * kl(log_pi, base) - (log_pi.exp() @ reward).mean()
    middle = ((log_pi.exp() + target.exp()) / 2).log()
    return {
        "forward_kl": kl(target, log_pi),
        "reverse_kl": kl(log_pi, target),
        "total_variation": (log_pi.exp() - target.exp()).abs().sum(1).mean() / 2,
        "jensen_shannon": (kl(log_pi, middle) + kl(target, middle)) / 2,
    }[name]


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.double().flatten() for p in policy.parameters()])


def exact(name: str, moved: Policy, tables) -> torch.Tensor:
    twin = moved.copy().requires_grad_(True).double()
    objective(name, world.log_probs_of(twin.model), tables).backward()
    return gradient(twin)


def expected(method, moved: Policy) -> torch.Tensor:
    """The first step of a method, on so many responses that it is as good as its mean."""
    policy = moved.copy().requires_grad_(True)
    reference = world.policy().requires_grad_(False)
    trial = Probe(policy, reference, world.WorldTask(world.rewards()), seed=0, budget=Budget(updates=9), lr=1e-3)
    next(method.train(trial))
    return gradient(policy)


def agree(what: str, method, name: str, moved: Policy, tables) -> tuple[float, float]:
    """Cosine and ratio of lengths between the expected step and the exact gradient."""
    ours, truth = expected(method, moved), exact(name, moved, tables)
    cosine, ratio = cosine_similarity(ours, truth, dim=0).item(), (ours.norm() / truth.norm()).item()
    print(f"\n{what}: cosine {cosine:.5f}, length {ratio:.3f} of the exact gradient's")
    return cosine, ratio


def test_the_step_of_reinforce_is_the_gradient_of_its_objective(moved, tables):
    method = Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=DRAWS))
    cosine, ratio = agree("reinforce", method, "regularised reward", moved, tables)
    assert cosine >= 0.99 and ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_step_of_gdc_is_the_gradient_of_its_divergence(divergence, moved, tables):
    method = GDC(GDCSettings(divergence=divergence, kl_coef=BETA, samples=128, batch_size=DRAWS))
    cosine, ratio = agree(f"gdc, {divergence}", method, divergence, moved, tables)
    assert cosine >= 0.99 and ratio == pytest.approx(1, abs=0.15)  # Z is estimated: a bias of order 1/128


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


def test_the_step_of_random_reward_is_the_kl_s_alone(moved, tables):
    """Noise adds nothing to the mean step; without the KL only noise is left, shorter by the root of the batch."""
    method = RandomReward(RandomRewardSettings(kl_coef=BETA, batch_size=DRAWS))
    silent = (tables[0], tables[1], torch.zeros_like(tables[2]))
    cosine, _ = agree("random_reward", method, "regularised reward", moved, silent)
    assert cosine >= 0.99
    noise = expected(RandomReward(RandomRewardSettings(kl_coef=0, batch_size=DRAWS)), moved).norm()
    assert noise < 0.1 * exact("regularised reward", moved, tables).norm()


# optima ---------------------------------------------------------------------------------------------------------------

MILD = np.array([1 - response.count(4) / 4 for response in world.RESPONSES])  # a reward that a small policy can follow


def trained(method, updates: int, reward=MILD, lr: float = 6e-3):
    """log-probabilities of base and policy after training: [X, N], [X, N]."""
    base = world.policy(width=16)
    policy, reference = base.copy(), base.frozen_copy()
    optimizer = OptimizerSettings(warmup_updates=5)
    trial = Trial(
        policy, reference, world.WorldTask(reward), seed=0, budget=Budget(updates=updates), lr=lr, optimizer=optimizer
    )
    for _ in method.train(trial):
        if trial.progress >= 1:
            break
    return world.log_probs(base), world.log_probs(policy)


PPO_STEADY = PPOSettings(kl_coef=BETA, kl_controller="fixed", explore_prompts=512, epochs=2, minibatches=2)
REGULARISED = {"reinforce": Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=256)), "ppo": PPO(PPO_STEADY)} | {
    f"gdc, {d}": GDC(GDCSettings(divergence=d, kl_coef=BETA, samples=16, batch_size=256)) for d in DIVERGENCES
}


LONG = [n if n == "gdc, total_variation" else pytest.param(n, marks=pytest.mark.slow) for n in REGULARISED]  # steps: above


@pytest.mark.parametrize("name", LONG)
def test_with_enough_steps_the_posterior_is_reached(name):
    base, policy = trained(REGULARISED[name], updates=100 if name.startswith("gdc") else 150)
    posterior = world.tilted(base, MILD, 1 / BETA)
    there, back, start = (
        x.mean() for x in (world.kl(policy, posterior), world.kl(posterior, policy), world.kl(base, posterior))
    )
    print(f"\n{name}: KL(policy || posterior) {there:.4f}, KL(posterior || policy) {back:.4f} nats; of the base {start:.3f}")
    assert start > 0.3 and there <= 0.02


def test_without_the_kl_reinforce_collapses():
    base, policy = trained(Reinforce(ReinforceSettings(kl_coef=0, batch_size=64)), 100, world.rewards(), lr=1e-2)
    before, after = world.entropy(base).mean(), world.entropy(policy).mean()
    gain = (world.expected(policy, world.rewards()) - world.expected(base, world.rewards())).mean()
    print(f"\nentropy {before:.3f} -> {after:.3f} nats, reward +{gain:.3f}")
    assert after < before / 10 and gain > 0.2


def test_random_reward_gains_nothing():
    """Beside what reinforce gains in the same number of updates of the same size."""
    base, policy = trained(RandomReward(RandomRewardSettings(kl_coef=BETA, batch_size=192)), updates=40)
    _, real = trained(Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=192)), updates=40)
    gains = [(world.expected(p, MILD) - world.expected(base, MILD)).mean() for p in (policy, real)]
    print(f"\nreward gained: random {gains[0]:+.4f}, reinforce {gains[1]:+.4f}")
    assert abs(gains[0]) < 0.1 * gains[1]


def test_random_reward_asks_no_scorer():
    trial = new_trial()
    next(RandomReward(RandomRewardSettings(batch_size=4)).train(trial))
    assert trial.cost.scorer_calls == 0 and trial.cost.updates == 1


def test_the_baselines_leave_the_response_itself_out():
    """Any baseline would pass the test of the mean step; this one is what keeps the noise down."""
    assert reinforce.against_the_others(torch.tensor([1.0, 2.0, 6.0])).tolist() == pytest.approx([-3, -1.5, 4.5])
    rows = gdc.against_the_others(torch.tensor([[1.0, 3.0], [0.0, 5.0]]))
    assert rows.flatten().tolist() == pytest.approx([-2, 2, -5, 5])


def test_gdc_asks_nothing_of_a_policy_at_its_target():
    """All weights of a prompt are then one: t is 1, whatever Z is."""
    log_w = torch.tensor([3.0, 3.0, -40.0, -40.0])
    assert gdc.log_t(log_w, 2).flatten().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert gdc.log_t(torch.tensor([0.0, 3.0]).log(), 2)[0, 1].item() == pytest.approx(-np.log(2))  # Z is 1.5, w is 3


# PPO by hand ----------------------------------------------------------------------------------------------------------


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
    used = [row["kl_coef"] for _, row in zip(range(3), adaptive.train(trial))]
    assert used == pytest.approx([0.15, 0.15 * 0.8, 0.15 * 0.8**2])


SMALL = {"explore_prompts": 8, "epochs": 2, "minibatches": 2}


def test_the_value_network_learns_the_returns():
    settings = PPOSettings(kl_controller="fixed", explore_prompts=64, epochs=4, minibatches=1, lr=1e-3, value_coef=1.0)
    trial = new_trial(updates=60)
    losses = [row["value_loss"] for _, row in zip(range(60), PPO(settings).train(trial))]
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
        return [row for _, row in zip(range(updates), PPO(PPOSettings(**SMALL, value_trunk=trunk)).train(trial))]

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
    for _ in zip(range(3), PPO(PPOSettings(**SMALL, value_trunk=trunk)).train(trial)):
        pass
    own = trial._kept["value"].trunk
    assert same(reference, weights(trial.reference)) and (own is None) == (trunk == "shared")
    assert own is None or not (same(weights(own), reference) or same(weights(own), weights(trial.policy)))


# what the scorer could not score, and settings ------------------------------------------------------------------------

ONLINE = {
    "reinforce": Reinforce(ReinforceSettings(batch_size=8)),
    "ppo": PPO(PPOSettings(**SMALL)),
    "gdc": GDC(GDCSettings(batch_size=8, samples=4)),
}


@pytest.mark.parametrize("name", ONLINE)
def test_unscored_responses_are_left_out(name):
    trial = new_trial(task=ToyTask(unscored=3))
    rows = [row for _, row in zip(range(3), ONLINE[name].train(trial))]
    assert all(np.isfinite(list(row.values())).all() for row in rows) and trial.unscored > 0


@pytest.mark.parametrize("name", ONLINE)
def test_a_scorer_that_scores_nothing(name):
    with pytest.raises(RunFailed, match="look at the scorer"):
        next(ONLINE[name].train(new_trial(task=ToyTask(unscored=8))))


def test_an_unscored_response_leaves_its_whole_prompt_out():
    trial = new_trial(task=ToyTask(unscored=5))
    rollout, reward = GDC(GDCSettings(batch_size=12, samples=4))._sample(trial)
    assert len(reward) == len(rollout.response) == 4 and not reward.isnan().any()


def test_a_batch_of_part_of_a_prompt():
    with pytest.raises(ValidationError, match="batch_size 10 should be a multiple of samples 4"):
        GDCSettings(batch_size=10, samples=4)


# against TRL's trainer ------------------------------------------------------------------------------------------------

FOLDER = Path(os.environ.get("TRL_112", ROOT / ".trl112"))
TRL_SETTINGS = PPOSettings(kl_coef=0.05, kl_controller="fixed", minibatches=1)  # the rest are TRL's defaults too


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    if not (FOLDER / "trl" / "experimental" / "ppo").is_dir():
        pytest.skip(f"no TRL 1.12 in {FOLDER}; see the top of this file")
    out = tmp_path_factory.mktemp("trl") / "record.pt"
    done = subprocess.run([sys.executable, FIXTURES / "trl_ppo.py", FOLDER, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = torch.load(out, weights_only=True)
    assert record["version"] == "1.12.0"
    return record["runs"]


def off(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    error = (ours - theirs).abs().max().item()
    print(f"\n{what}: off by {error:.1e} at most, of {theirs.abs().max().item():.3f}")
    return error


def as_network(weights: dict[str, torch.Tensor]) -> Value:
    """TRL's value model (a trunk and a score) in ours."""
    value = Value(16, tiny_gpt2())
    value.trunk.model.transformer.load_state_dict(
        {k.removeprefix("transformer."): v for k, v in weights.items() if "score" not in k}
    )
    value.head.load_state_dict({"weight": weights["score.weight"], "bias": torch.zeros(1)})
    return value


def as_policy(weights: dict[str, torch.Tensor]) -> Policy:
    policy = tiny_gpt2()
    policy.model.load_state_dict(weights)
    return policy


def test_a_whole_rollout_as_trl_computes_it(trl):
    """Responses of full length: both put the score on the last token. Our own models read the same tokens."""
    run = trl["None"]
    tokens, context, scores = (run["reward"][1][k] for k in ("tokens", "context", "last"))
    prompts = Prompts(tokens[:, :context], tokens[:, :context] != 12)
    response = tokens[:, context:]
    rollout = Rollout(prompts, response, torch.ones_like(response, dtype=torch.bool), run["logprobs"][0])
    steps = [w for w in run["forward"] if w is not None]
    trial = SimpleNamespace(
        policy=as_policy(steps[0]["policy"]), reference=tiny_gpt2(seed=1), charge=lambda *_: None,
        prompts=lambda n: None, sample=lambda prompts: None, scored=lambda *_, **__: (rollout, scores),
    )  # fmt: skip
    ppo = PPO(TRL_SETTINGS)
    experience, _ = ppo._explore(trial, as_network(steps[0]["value"]), 0.05)
    assert off("whitened advantages", experience["advantage"], run["whiten"][0]["whitened"]) < 1e-6
    for epoch, step in enumerate(steps):
        trial.policy, trial.update = as_policy(step["policy"]), lambda loss: None
        got = ppo._learn(trial, as_network(step["value"]), experience)
        value_cost, policy_cost = run["mean"][3 + 4 * epoch] / 2, run["mean"][5 + 4 * epoch]
        assert off(f"policy loss, epoch {epoch + 1}", torch.tensor(got["policy_loss"]), policy_cost) < 1e-6
        assert off(f"value loss, epoch {epoch + 1}", torch.tensor(got["value_loss"]), value_cost) < 1e-6


def test_responses_that_end_as_trl_computes_them(trl):
    """TRL puts the score one position behind EOS and gives that position a value: our functions on its masks."""
    run = trl["eos"]
    trained = run["whiten"][0]["mask"]
    length = trained.sum(1, keepdim=True)
    assert int((length < 5).sum()) > 3
    valued = torch.arange(5) <= length
    log_ratio = (run["logprobs"][0] - run["logprobs"][1]).masked_fill(~trained, 0)
    context = run["reward"][0]["context"]
    values = run["reward"][0]["all"][:, context - 1 : -1, 0]
    rewards = shaped(run["reward"][1]["last"], log_ratio, valued, 0.05)
    advantage = gae(rewards, values, valued, 0.95)
    assert off("advantages", advantage * trained, run["whiten"][0]["advantage"] * trained) < 1e-6
    assert off("whitened", whiten(advantage, trained), run["whiten"][0]["whitened"] * trained) < 1e-6


def test_the_comparison_would_see_a_difference(trl):
    """The two stops differ in what they measure, and the weights move: neither comparison is one of constants."""
    steps = [w for w in trl["None"]["forward"] if w is not None]
    assert len(steps) == 3 and not torch.equal(steps[0]["value"]["score.weight"], steps[2]["value"]["score.weight"])
    assert trl["None"]["mean"][6 + 4] > 0.05 and trl["None"]["mean"][4 + 4] > 0.05  # shares that were clipped
