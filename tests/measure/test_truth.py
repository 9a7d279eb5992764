"""Every estimator against truth, in a world where each response can be listed.

An estimate is unbiased where the mean of 200 of them is within three standard errors of the exact value, and its
nominal 95% interval is honest where 90 to 98% of those intervals hold the exact value (a fair coverage of 95% has a
standard deviation of 1.5 points over 200 draws). A frontier of each of 200 draws takes long: without `-m long` there are
50, whose coverage has a standard deviation of 3.1 points, and the bounds are as many of those away.

The standard errors of the suite take the prompt as the unit: they say how the value would vary with other prompts of
the same kind. So each draw takes its prompts anew, independently and with replacement, from the finite set of the
world, and the exact value is the mean over that set. With the prompts held fixed the intervals would be too wide.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import world
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from harness.core.types import Decoding, Rollout
from harness.measure.frontier import Law, best_of_n_kl, estimate
from harness.measure.metrics import cluster_mean
from harness.policy.logprobs import entropy, kl, masked_sum, token_logprobs
from harness.policy.sampler import sample, until_eos

DRAWS, FEW, X, S = 200, 50, 64, 4
M = 300  # base responses a prompt: the bias of order 1/M is then well below the standard error


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return world.policy()


@pytest.fixture(scope="module")
def tuned(base):
    """Noise on the weights and a prefix of one control token, as Quark deploys its policy."""
    return world.perturbed(base, 0.05, seed=1, num_control=2)


@pytest.fixture(scope="module")
def exact(base):
    return world.log_probs(base)


@pytest.fixture(scope="module")
def rows():
    """The prompts of each draw: [DRAWS * X]."""
    return np.random.default_rng(1).integers(0, len(world.PROMPTS), DRAWS * X)


@pytest.fixture(scope="module")
def rollout(tuned, rows):
    """S responses of the tuned policy to each prompt of each draw, by the suite's own sampler."""
    decoding = Decoding(max_new_tokens=world.STEPS)
    return sample(tuned, world.prompts(rows), decoding=decoding, rng=torch.Generator().manual_seed(0), n=S, batch_size=16_384)


@pytest.fixture(scope="module")
def logits(tuned, rollout):
    with torch.no_grad():
        return tuned.deployed_logits(rollout)


@pytest.fixture(scope="module")
def base_logits(base, rollout):
    with torch.no_grad():
        return base.deployed_logits(rollout)


@pytest.fixture(scope="module")
def base_rewards(exact, rows):
    """Rewards of M base responses to each prompt of each draw, from the listed law: [DRAWS, X, M]."""
    return draw(exact, rows, M, seed=2, values=world.rewards()).reshape(DRAWS, X, M)


@pytest.fixture(scope="module", params=[FEW, pytest.param(DRAWS, marks=pytest.mark.long)])
def frontiers(request, base_rewards):
    """A frontier a draw, of the first draws or of all."""
    return [estimate(rewards) for rewards in base_rewards[: request.param]]


def draw(log_p, rows, n, seed, values):
    """values of n responses to each prompt, drawn from a listed law: [X, N] -> [len(rows), n]."""
    rng, out = np.random.default_rng(seed), np.zeros((len(rows), n))
    for x, cdf in enumerate(np.exp(log_p).cumsum(1)):
        mine = rows == x
        picks = np.searchsorted(cdf / cdf[-1], rng.random((mine.sum(), n)), side="right")
        out[mine] = values[x, picks] if values.ndim == 2 else values[picks]
    return out


COVERAGE = {DRAWS: (0.90, 0.98), FEW: (0.86, 1.0)}


def check(estimates, truth):
    """Unbiased, and honest about it: pairs of value and standard error, one a draw."""
    values, errors = np.array(estimates, dtype=float).T
    at_least, at_most = COVERAGE[len(values)]
    z = (values.mean() - truth) / (values.std(ddof=1) / len(values) ** 0.5)
    coverage = (abs(values - truth) <= student.ppf(0.975, X - 1) * errors).mean()
    print(f"truth {truth:.4f} mean {values.mean():.4f} z {z:+.2f} coverage {coverage:.3f} stderr {errors.mean():.4f}")
    assert abs(z) < 3, f"the mean {values.mean():.5f} is {z:+.1f} standard errors from {truth:.5f}"
    assert at_least <= coverage <= at_most, f"95% intervals hold the exact value in {coverage:.1%} of the draws"


def check_rows(per_row, truth):
    """The same for a number of each response: [DRAWS * X * S] -> cluster_mean of each draw."""
    check([cluster_mean(v)[:2] for v in np.asarray(per_row, dtype=float).reshape(DRAWS, X, S)], truth)


# the world itself


def test_the_world_lists_every_response_once(exact):
    assert len(world.RESPONSES) == len(set(world.RESPONSES)) == 1 + 4 + 16 + 64 + 256
    np.testing.assert_allclose(np.exp(exact).sum(1), 1, atol=1e-9)
    assert (np.exp(exact).max(1) > 0.1).all() and np.exp(exact).max() > 0.5  # 1/341 if it were uniform


def test_the_policy_gives_each_response_its_probability(tuned):
    """Left-padded batches, prefix and mask, against one plain forward pass a prompt."""
    response = torch.tensor([[*r, *[world.EOS] * (world.STEPS - len(r))] for r in world.RESPONSES])
    table = world.log_probs(tuned)
    for x in range(len(world.PROMPTS)):
        prompts = world.prompts(np.full(len(response), x))
        rollout = sample_like(tuned, prompts, response)
        logprobs = masked_sum(token_logprobs(tuned.deployed_logits(rollout), response), rollout.response_mask)
        np.testing.assert_allclose(logprobs.detach(), table[x], atol=2e-4)


def sample_like(policy, prompts, response):
    return Rollout(prompts, response, until_eos(response, policy.eos))


# what is measured on a policy's own responses


def test_the_sampler_draws_from_the_policy(tuned, rollout, rows):
    """Frequencies of all 341 responses to each prompt, by a chi-square whose cells hold at least 5."""
    table, drawn = np.exp(world.log_probs(tuned)), world.index(rollout.response)
    for x in range(len(world.PROMPTS)):
        mine = drawn[np.repeat(rows, S) == x]
        counts, expected = np.bincount(mine, minlength=341), table[x] * len(mine)
        rare = expected < 5
        counts, expected = (np.append(v[~rare], v[rare].sum()) for v in (counts, expected))
        chi2, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
        assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_kl(logits, base_logits, tuned, exact, rollout):
    """Rao-Blackwell: the exact KL of each step, summed along sampled responses up to and including EOS."""
    rows = masked_sum(kl(logits, base_logits), rollout.response_mask)
    assert (rows >= 0).all()
    check_rows(rows, world.kl(world.log_probs(tuned), exact).mean())


def test_kl_by_single_samples(base_logits, tuned, exact, rollout):
    ratio = rollout.logprobs - token_logprobs(base_logits, rollout.response)
    check_rows(masked_sum(ratio, rollout.response_mask), world.kl(world.log_probs(tuned), exact).mean())


def test_entropy(logits, tuned, rollout):
    check_rows(masked_sum(entropy(logits), rollout.response_mask), world.entropy(world.log_probs(tuned)).mean())


def test_reward(tuned, rollout):
    truth = world.expected(world.log_probs(tuned), world.rewards()).mean()
    check_rows(world.rewards()[world.index(rollout.response)], truth)


# the frontier from base responses


def test_frontier_estimates(exact, base_rewards, frontiers):
    """R*(K), K*(R) and best-of-n from M responses to each of X prompts."""
    reward = world.rewards()
    for nats in (0.2, 0.9):
        check([f.reward_at(nats) for f in frontiers], world.frontier_reward(exact, reward, nats))
    for goal in (0.6, 0.85):
        check([f.kl_at(goal) for f in frontiers], world.frontier_kl(exact, reward, goal))
    points = [f.best_of_n([4])[0] for f in frontiers]
    best = world.best_of_n(exact, reward, 4)
    check([(p.reward, p.reward_stderr) for p in points], world.expected(best, reward).mean())
    nats = [best_of_n_kl(r, 4) for r in base_rewards[: len(frontiers)]]
    check([cluster_mean(v)[:2] for v in nats], world.kl(best, exact).mean())
    assert points[0].kl == pytest.approx(nats[0].mean())
    assert np.mean([f.reward_at(0.9)[0] < f.upper(0.9) for f in frontiers]) == 1


def test_a_placement_is_right_about_its_error(exact, rows, frontiers):
    """A policy that has left the frontier: its excess, regret and efficiency, paired by prompt with the base responses."""
    reward, noise = world.rewards(), np.random.default_rng(2).normal(0, 0.5, exact.shape)
    policy = world.tilted(exact + noise, reward, 2.0)
    drift, gained = world.kl(policy, exact).mean(), world.expected(policy, reward).mean()
    needed = world.frontier_kl(exact, reward, gained)
    n = 100
    table = np.stack([np.broadcast_to(reward, exact.shape), policy - exact], -1)
    mine = rows[: len(frontiers) * X]
    both = [draw(policy, mine, n, seed=3, values=table[..., i]).mean(1).reshape(-1, X) for i in range(2)]
    placed = [frontier.place(reward, kl) for frontier, reward, kl in zip(frontiers, *both, strict=True)]
    check([p.excess_kl[:2] for p in placed], drift - needed)
    check([p.efficiency[:2] for p in placed], needed / drift)
    check([p.regret[:2] for p in placed], world.frontier_reward(exact, reward, drift) - gained)
    assert not any(p.above for p in placed)


def test_the_sampled_law_of_best_of_n(exact):
    """Best of 3 by drawing, with ties broken at random: its KL is the closed form, and that is below the usual bound."""
    reward, rng = world.rewards(), np.random.default_rng(4)
    best = world.best_of_n(exact, reward, 3)
    np.testing.assert_allclose(np.exp(best).sum(1), 1)
    picks = rng.choice(341, size=(200_000, 3), p=np.exp(exact[0]))
    keys = reward[picks] + rng.random(picks.shape) * 1e-3
    frequency = np.bincount(picks[np.arange(len(picks)), keys.argmax(1)], minlength=341) / len(picks)
    np.testing.assert_allclose(frequency, np.exp(best[0]), atol=4e-3)
    repeats = np.round(np.exp(exact) * 200_000).astype(int)
    closed = [best_of_n_kl(np.repeat(reward, r)[None], 3)[0] for r in repeats]
    np.testing.assert_allclose(closed, world.kl(best, exact), atol=2e-3)
    assert (world.kl(best, exact) < np.log(3) - 2 / 3).all()


# no policy is above the frontier


@pytest.fixture(scope="module")
def policies(base, exact):
    """Log-probabilities of the base policy, tilts, networks with noise, best-of-n, and tables pushed about at random."""
    reward, rng = world.rewards(), np.random.default_rng(5)
    tilts = [world.tilted(exact, reward, lam) for lam in np.geomspace(0.1, 20, 12)]
    networks = [world.log_probs(world.perturbed(base, scale, seed)) for scale in (0.01, 0.03, 0.1) for seed in range(3)]
    pushed = [
        world.tilted(exact + rng.normal(0, s, exact.shape), reward, lam) for s in (0.02, 0.3) for lam in (0, 0.5, 2, 8, 30)
    ]
    uneven = [world.tilted(exact, reward, rng.gamma(1, 4, (len(exact), 1))) for _ in range(5)]
    best = [world.best_of_n(exact, reward, n) for n in (2, 8)]
    return {"tilted": tilts, "other": [exact, *networks, *pushed, *uneven, *best]}


@pytest.fixture(scope="module")
def drawn(exact):
    """A frontier from 3,000 base responses to each prompt."""
    return estimate(draw(exact, np.arange(len(exact)), 3000, seed=6, values=world.rewards()))


def measures(policy, exact):
    return world.expected(policy, world.rewards()), world.kl(policy, exact)


def test_the_exact_frontier_is_that_of_the_tilted_policies(exact, policies, drawn):
    """On the listed law itself, without sampling: zero excess for a tilt, and for the others the KL to the nearest one."""
    reward = world.rewards()
    frontier = replace(drawn, law=Law(np.tile(reward, (len(exact), 1)), exact))
    for nats in (0.05, 0.5, 1.5):
        assert frontier.reward_at(nats)[0] == pytest.approx(world.frontier_reward(exact, reward, nats), abs=1e-8)
    for goal in (0.55, 0.8, 0.95):
        assert frontier.kl_at(goal)[0] == pytest.approx(world.frontier_kl(exact, reward, goal), abs=1e-8)
    for policy in policies["tilted"]:
        placement = frontier.place(*measures(policy, exact))
        assert (placement.excess_kl.value, placement.regret.value) == pytest.approx((0, 0), abs=1e-8)
        assert placement.efficiency.value == pytest.approx(1, abs=1e-6) and not placement.above
    for policy in policies["other"]:
        placement = frontier.place(*measures(policy, exact))
        nearest = minimize_scalar(
            lambda lam, policy=policy: world.kl(policy, world.tilted(exact, reward, lam)).mean(),
            bounds=(0, 100),
            method="bounded",
            options={"xatol": 1e-9},
        ).fun
        assert placement.excess_kl.value == pytest.approx(nearest, abs=1e-6)
        assert placement.excess_kl.value > -1e-9 and placement.regret.value > -1e-9 and not placement.above


def test_no_policy_is_above_the_estimated_frontier(exact, policies, drawn):
    for policy in policies["tilted"]:
        placement = drawn.place(*measures(policy, exact))
        assert abs(placement.excess_kl.value) < 4 * placement.excess_kl.stderr + 1e-4 and not placement.above
        assert placement.efficiency.value > 0.9
    for policy in policies["other"]:
        placement = drawn.place(*measures(policy, exact))
        assert not placement.above
        assert placement.excess_kl.value > -4 * placement.excess_kl.stderr - 1e-4


def test_few_base_responses_raise_no_false_alarm(exact, policies):
    """From 20 responses to each prompt the curve itself is far too low for a large lambda; the bound is not."""
    rows = np.tile(np.arange(len(exact)), 25)
    below = alarms = 0
    for seed, policy in enumerate(policies["tilted"][7:] * 6):
        placement = estimate(draw(exact, rows, 20, 100 + seed, world.rewards())).place(
            *(v[rows] for v in measures(policy, exact))
        )
        below += placement.excess_kl.value < -3 * placement.excess_kl.stderr
        alarms += placement.above
    assert below > 10 and alarms == 0


def test_a_wrong_measurement_is_above(exact, policies, drawn):
    """What the alarm is for: a KL that leaves out part of the drift, a reward that reads the wrong responses."""
    reward, nats = measures(policies["tilted"][8], exact)
    assert drawn.place(reward, nats * 0.7).above
    assert drawn.place(reward + 0.1, nats).above
