"""The frontier against cases worked by hand; `test_truth.py` holds it against an enumerated world."""

import json
from math import comb, exp, inf, isnan, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from reward_laws import beta_law, coin_kl, coins
from scipy.integrate import quad
from scipy.optimize import brentq

from harness.core.errors import BadData, BadSetting, Degraded, EmptySelection
from harness.measure.frontier import ENOUGH_RESPONSES, best_of_n_kl, estimate

NAN = float("nan")


def scan(rewards, nats=None, goal=None):
    """R*(K) or K*(R) by brute force over a dense grid of lambda, one prompt after another."""
    lam = np.geomspace(1e-4, 3e3, 40_000)
    log_z = 0
    for row in rewards:
        row = row[~np.isnan(row)]
        log_z = log_z + lam * row.max() + np.log(np.exp(lam[:, None] * (row - row.max())).mean(1))
    log_z = log_z / len(rewards)
    return ((nats + log_z) / lam).min() if goal is None else (lam * goal - log_z).max()


@pytest.mark.parametrize("p", [0.03, 0.3, 0.75])
def test_a_binary_reward_costs_the_kl_between_two_coins(p):
    frontier = estimate(coins(round(100 * p)))
    for reward in (p, (p + 1) / 2, 0.99, 1.0):
        assert frontier.kl_at(reward)[0] == pytest.approx(coin_kl(reward, p), abs=1e-9)
        assert frontier.reward_at(coin_kl(reward, p))[0] == pytest.approx(reward, abs=1e-6)


def test_reward_saturates_at_minus_log_of_the_mass_at_the_maximum():
    frontier = estimate(coins(60))
    assert frontier.kl_at(1.0)[0] == pytest.approx(-log(0.6))
    assert frontier.reward_at(-log(0.6) - 1e-3)[0] < 1 - 1e-6
    assert frontier.reward_at(-log(0.6) + 1e-3)[0] == frontier.reward_at(50.0)[0] == 1.0
    assert frontier.reward[-1] == pytest.approx(1, abs=1e-4) and frontier.kl[-1] == pytest.approx(-log(0.6), abs=2e-3)


def test_nothing_is_gained_without_drift_and_no_drift_is_needed_for_less():
    frontier = estimate(coins(20, 60))
    assert frontier.base_reward == frontier.reward_at(0.0)[0] == frontier.reward_at(-1e-9)[0] == pytest.approx(0.4)
    assert frontier.kl_at(0.4)[0] == pytest.approx(0, abs=1e-12) and frontier.kl_at(0.1)[0] == 0.0
    assert frontier.kl_at(1.01) == (inf, None)


def test_a_graded_reward_by_quadrature():
    """Beta(1, 4): .423 / .552 / .683 by the tilt, where keeping only the best responses has .327 / .465 / .619."""
    law = beta_law(20_000)
    frontier = estimate(law[None])

    def moment(lam, k):
        return quad(lambda r: r**k * 4 * (1 - r) ** 3 * exp(lam * r), 0, 1)[0]

    for lam, best, kept in ((5.6738, 0.423, 0.327), (8.543, 0.5525, 0.465), (12.592, 0.6835, 0.619)):
        reward = moment(lam, 1) / moment(lam, 0)
        nats = lam * reward - log(moment(lam, 0))
        assert frontier.reward_at(nats)[0] == pytest.approx(reward, abs=3e-4) == pytest.approx(best, abs=1e-3)
        assert frontier.kl_at(reward)[0] == pytest.approx(nats, abs=2e-3)
        assert law[-round(exp(-nats) * 20_000) :].mean() == pytest.approx(kept, abs=1e-3)


def test_prompts_share_one_lambda():
    lam, rates = 2.5, (0.1, 0.7)
    tilted = [p * exp(lam) / (1 - p + p * exp(lam)) for p in rates]
    nats = np.mean([coin_kl(q, p) for q, p in zip(tilted, rates, strict=True)])
    frontier = estimate(coins(10, 70))
    assert frontier.reward_at(nats)[0] == pytest.approx(np.mean(tilted), abs=1e-9)
    assert frontier.kl_at(np.mean(tilted))[0] == pytest.approx(nats, abs=1e-9)
    apart = brentq(lambda q: coin_kl(q, 0.1) - nats, 0.1, 1)  # and 1 for the other, which cannot use so much
    assert -log(0.7) < nats and frontier.reward_at(nats)[0] > (apart + 1) / 2 + 0.01


def test_prompts_are_never_pooled():
    """A prompt that always fails and one that never does: no policy can do better, though the pool holds good responses."""
    frontier = estimate(coins(0, 100))
    assert frontier.reward_at(3.0)[0] == 0.5
    assert frontier.kl_at(0.6)[0] == inf
    rng = np.random.default_rng(0)
    rewards = (rng.random((30, 400)) < rng.beta(0.5, 0.5, (30, 1))).astype(float)
    assert estimate(rewards.reshape(1, -1)).reward_at(0.2)[0] > estimate(rewards).reward_at(0.2)[0] + 0.05


def test_equal_rewards_leave_nothing_to_gain():
    frontier = estimate(np.full((3, 60), 0.3))
    assert frontier.reward_at(2.0)[0] == pytest.approx(0.3)
    assert frontier.kl_at(0.3)[0] == pytest.approx(0, abs=1e-12) and frontier.kl_at(0.31)[0] == inf
    assert frontier.kl.max() == pytest.approx(0, abs=1e-12)
    assert_allclose(best_of_n_kl(np.full((3, 60), 0.3), 8), 0)
    assert_finite(frontier.record())


def test_an_unscored_response_is_left_out():
    whole, ragged = [[0.0, 1.0, 1.0], [0.2, 0.2, 0.9]], [[NAN, 0.0, 1.0, 1.0], [0.2, 0.2, NAN, 0.9]]
    a, b = estimate(np.array(whole)), estimate(np.array(ragged))
    assert_allclose(a.reward, b.reward)
    assert_allclose(a.log_z, b.log_z, atol=1e-12)
    uneven = estimate(np.array([[0.0, 1.0, NAN, NAN], [1.0, 0.0, 0.0, 0.0]]))
    assert uneven.base_reward == pytest.approx((0.5 + 0.25) / 2)
    assert uneven.kl_at(1.0)[0] == pytest.approx((log(2) + log(4)) / 2)
    assert uneven.record()["n_samples"] == 6 and uneven.record()["n_unscored"] == 2
    assert_allclose(best_of_n_kl(np.array(ragged), 2), best_of_n_kl(np.array(whole), 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 30), st.floats(0.02, 2.0))
def test_any_rewards_agree_with_a_brute_force_over_lambda(seed, x, m, nats):
    rng = np.random.default_rng(seed)
    rewards = rng.choice([rng.random((x, m)), rng.integers(0, 3, (x, m)) / 2])
    rewards[:, 1:][rng.random((x, m - 1)) < 0.1] = NAN
    frontier = estimate(rewards)
    reward = frontier.reward_at(nats)[0]
    assert reward == pytest.approx(scan(rewards, nats=nats), abs=1e-3)
    assert frontier.base_reward - 1e-12 <= reward <= frontier.upper(nats) + 1e-9 <= 1 + 1e-9
    middle = (frontier.base_reward + reward) / 2
    assert frontier.kl_at(middle)[0] == pytest.approx(scan(rewards, goal=middle), abs=1e-3)


def test_errors_take_the_prompt_as_the_unit():
    rewards = np.random.default_rng(1).random((6, 80)) ** np.arange(1, 7)[:, None]
    frontier = estimate(rewards)
    i = 30
    lam = frontier.lam[i]
    log_z = np.log(np.exp(lam * rewards).mean(1))
    error = log_z.std(ddof=1) / 6**0.5
    assert frontier.log_z[i] == pytest.approx(log_z.mean())
    assert frontier.kl_at(frontier.reward[i])[1] == pytest.approx(error, rel=1e-4)
    assert frontier.reward_at(frontier.kl[i])[1] == pytest.approx(error / lam, rel=1e-4)
    assert frontier.kl_stderr[i] == pytest.approx(error) and frontier.reward_stderr[i] == pytest.approx(error / lam)
    base_error = rewards.mean(1).std(ddof=1) / 6**0.5
    assert frontier.reward_at(0.0)[1] == pytest.approx(base_error) == frontier.reward_stderr[0]
    assert estimate(rewards[:1]).reward_at(0.3)[1] is None


def test_the_curve_rises_and_bends():
    frontier = estimate(np.random.default_rng(2).beta(0.5, 1, (20, 200)))
    assert frontier.lam[0] == 0 and frontier.kl[0] == 0
    assert (np.diff(frontier.kl) > -1e-12).all() and (np.diff(frontier.reward) > -1e-12).all()
    slope = np.diff(frontier.reward[:-5]) / np.diff(frontier.kl[:-5])
    assert (np.diff(slope) < 1e-6).all()


# the upper bound


def test_upper_is_the_frontier_with_one_more_response_of_reward_one():
    rewards = np.array([[0.0, 0.4, 0.4], [0.1, 0.2, 0.9]])
    bound, one_more = estimate(rewards), estimate(np.hstack([rewards, [[1.0], [1.0]]]))
    for nats in (0.0, 0.1, 0.7, 5.0):
        assert bound.upper(nats) == pytest.approx(one_more.reward_at(nats)[0])
    uneven = estimate(np.array([[0.0, 0.4, NAN], [0.1, 0.2, 0.9]]))
    assert uneven.upper(0.0) == pytest.approx(((0.4 + 1) / 3 + 2.2 / 4) / 2)


@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("lam", [0.5, 4.0, 15.0])
def test_upper_holds_in_expectation_over_the_draws(m, lam):
    """E log Z of the law with one more response is at least the true log Z, for every coin and every number of draws."""
    for p in (0.001, 0.05, 0.5, 0.95):
        c = exp(lam) - 1
        chances = [comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m + 1)]
        expected = sum(chance * log(1 + c * (k + 1) / (m + 1)) for k, chance in enumerate(chances))
        assert expected >= log(1 + c * p) - 1e-12


def test_upper_is_tighter_than_what_the_mean_reward_alone_gives():
    rewards = np.random.default_rng(3).beta(1, 4, (10, 300))
    frontier, p = estimate(rewards), (rewards.sum(1) + 1) / 301
    lam = np.geomspace(0.01, 100, 4000)
    from_mean = (np.log(1 - p[:, None] + p[:, None] * np.exp(lam)).mean(0) + 0.5) / lam
    assert frontier.reward_at(0.5)[0] < frontier.upper(0.5) < from_mean.min() - 0.1


# where the curve can be trusted


def test_solid_while_fifty_responses_carry_the_weight():
    """Coins of different prompts, so that the error bar is wide: the weight ends on the ones."""
    rates = np.linspace(0.4, 0.6, 21)
    assert estimate(coins(*(rates * 300), m=300)).solid.all()
    few = estimate(coins(*(rates * 90), m=90))
    assert few.solid[0] and not few.solid[-1]
    last = few.kl[few.solid][-1]
    # the frailest prompt but one in twenty: exp(entropy) = 50 of 90 where its KL is log(90 / 50)
    assert 0.3 < last < log(90 / ENOUGH_RESPONSES)
    assert not estimate(coins(*(rates * 49), m=49)).solid.any()


def test_not_solid_where_one_response_carries_much_weight():
    """One good response among 600: at 5 percent of the weight the effective sample is still above 400."""
    rewards = np.linspace(0, 0.5, 40)[:, None] + np.tile([0.5] + [0.0] * 599, (40, 1))  # prompts differ: a wide error bar
    frontier = estimate(rewards)
    limit = 2 * log(0.05 * 599 / 0.95)
    assert limit / 1.3 < frontier.lam[frontier.solid][-1] <= limit < frontier.lam[~frontier.solid][0] < 1.3 * limit


def test_not_solid_where_fewer_than_twenty_carry_half_of_the_weight():
    """Fifteen good responses among 3,000: none has .05 of the weight until they have three quarters of it together."""
    rewards = np.linspace(0, 0.5, 40)[:, None] + np.tile([0.5] * 15 + [0.0] * 2985, (40, 1))
    frontier = estimate(rewards)
    limit = 2 * log(2985 / 15)
    assert limit / 1.3 < frontier.lam[frontier.solid][-1] <= limit
    assert frontier.lam[~frontier.solid][0] < 2 * log(3 * 2985 / 15)


def test_not_solid_where_half_of_the_responses_tell_another_story():
    """Alike prompts: the error bar is small, and the bias of log Z shows in it before any prompt's weights run out."""
    alike = np.random.default_rng(6).random((1000, 150))
    unlike = alike / 2 + np.linspace(0, 0.5, 1000)[:, None]
    ends = [f.kl[f.solid][-1] for f in (estimate(alike / 2), estimate(unlike))]
    assert 0.1 < ends[0] < 0.75 * ends[1]


def test_a_few_frail_prompts_do_not_end_the_curve():
    sound, frail = np.linspace(120, 180, 96), [4.0] * 4
    assert estimate(coins(*sound, *frail, m=300)).solid.all()
    assert not estimate(coins(*sound, *frail * 2, m=300)).solid.all()


def test_the_solid_part_is_right_where_the_naive_curve_ends_far_too_low():
    """A rare tail: 512 responses hold little of what a large lambda asks for."""
    truth = estimate(0.45 * beta_law(100_000, 0.05, 1.6)[None])
    rng = np.random.default_rng(7)
    frontier = estimate(0.45 * rng.beta(0.05, 1.6, (60, 512)))
    for kl, reward, error in zip(
        *(x[frontier.solid][1:] for x in (frontier.kl, frontier.reward, frontier.reward_stderr)), strict=True
    ):
        assert truth.reward_at(kl)[0] == pytest.approx(reward, abs=4 * error)
    assert frontier.solid.sum() > 10
    deep = np.searchsorted(frontier.kl, 4.5)
    assert frontier.reward[deep] < truth.reward_at(frontier.kl[deep])[0] - 4 * frontier.reward_stderr[deep]
    assert not frontier.solid[deep] and frontier.upper(frontier.kl[deep]) > truth.reward_at(frontier.kl[deep])[0]


# placing a policy


def test_the_base_policy_has_no_excess_and_no_efficiency():
    rewards = coins(20, 60)
    placement = estimate(rewards).place(rewards.mean(1), np.zeros(2))
    assert (placement.excess_kl.value, placement.regret.value) == pytest.approx((0, 0), abs=1e-12)
    assert placement.efficiency.value is None and "undefined" in placement.efficiency.reason
    assert not placement.above


def test_a_policy_by_hand():
    """Two coins, all the drift spent on the second; errors from the paired terms at the shared lambda."""
    rates, reward, kl = np.array([0.2, 0.5]), np.array([0.2, 0.9]), np.array([0.1, 0.8])
    placement = estimate(coins(20, 50)).place(reward, kl)

    def mean_reward(lam):
        return (rates * exp(lam) / (1 - rates + rates * exp(lam))).mean()

    by_reward = brentq(lambda s: mean_reward(s) - 0.55, 0, 20)
    log_z = np.log(1 - rates + rates * exp(by_reward))
    needed = by_reward * reward - log_z
    assert placement.excess_kl.value == pytest.approx(0.45 - needed.mean())
    assert placement.excess_kl.stderr == pytest.approx((kl - needed).std(ddof=1) / 2**0.5, rel=1e-4)
    assert placement.efficiency.value == pytest.approx(needed.mean() / 0.45)
    residual = (needed - needed.mean() / 0.45 * kl) / 0.45
    assert placement.efficiency.stderr == pytest.approx(residual.std(ddof=1) / 2**0.5, rel=1e-4)

    lam = np.linspace(0.5, 6, 200_000)
    bound = (0.45 + np.log(1 - rates[:, None] + rates[:, None] * np.exp(lam)).mean(0)) / lam
    by_kl = lam[bound.argmin()]
    terms = (kl + np.log(1 - rates + rates * exp(by_kl))) / by_kl - reward
    assert placement.regret.value == pytest.approx(bound.min() - 0.55)
    assert placement.regret.stderr == pytest.approx(terms.std(ddof=1) / 2**0.5, rel=1e-3)
    assert (placement.excess_kl.n, placement.excess_kl.n_unscored) == (2, 0)


def test_drift_that_gains_nothing_is_all_excess():
    placement = estimate(coins(20, 60, 70)).place(np.array([0.1, 0.5, 0.6]), np.array([0.3, 0.6, 0.9]))
    assert placement.efficiency.value == 0 and placement.excess_kl.value == pytest.approx(0.6)


def test_pairing_prompts_shrinks_the_error():
    """A tilted policy follows its prompts' base rewards, so most of the spread over prompts cancels."""
    rng = np.random.default_rng(8)
    rates = rng.beta(2, 2, 40)
    rewards = (rng.random((40, 300)) < rates[:, None]).astype(float)
    tilted = rates * exp(2) / (1 - rates + rates * exp(2))
    kl = np.array([coin_kl(q, p) for q, p in zip(tilted, rates, strict=True)])
    paired, shuffled = (estimate(rewards[order]).place(tilted, kl) for order in (np.arange(40), rng.permutation(40)))
    assert paired.efficiency.value == pytest.approx(1, abs=0.1) and not paired.above
    assert paired.excess_kl.stderr < shuffled.excess_kl.stderr / 3
    assert paired.regret.stderr < shuffled.regret.stderr / 3


def test_a_policy_beyond_the_optimum_is_above():
    """A tilted policy that reports half of its KL, and one that reports more reward than it has."""
    rates = np.linspace(0.2, 0.6, 25)
    tilted = rates * exp(2) / (1 - rates + rates * exp(2))
    kl = np.array([coin_kl(q, p) for q, p in zip(tilted, rates, strict=True)])
    frontier = estimate(coins(*(rates * 600), m=600))
    assert not frontier.place(tilted, kl).above
    assert frontier.place(tilted, kl / 2).above
    assert frontier.place(tilted + 0.1, kl).above
    assert frontier.place(tilted, kl / 2).efficiency.value == 1  # the true share cannot be more


def test_a_reward_that_no_base_response_had_is_placed_against_the_bound():
    rates = np.array([0.0, 0.3, 0.6])
    frontier = estimate(coins(0, 60, 120, m=200))
    placement = frontier.place(np.ones(3), np.array([6.0, 1.5, 1.0]))
    needed = -np.log((rates * 200 + 1) / 201)
    assert placement.excess_kl.value == pytest.approx((8.5 - needed.sum()) / 3, abs=1e-6)
    assert placement.efficiency.value == pytest.approx(needed.sum() / 8.5, abs=1e-6)
    assert placement.efficiency.reason == "above every reward of the base responses: a lower bound"
    assert "an upper bound" in placement.excess_kl.reason and not placement.solid and not placement.above


def test_a_placement_says_where_the_frontier_is_not_known():
    """A binary reward stays known after saturation; a graded one does not, at the KL of the policy, then at its reward."""
    rates = np.linspace(100, 200, 30)
    binary = estimate(coins(*rates, m=300)).place(np.full(30, 0.9), np.full(30, 4.0))
    assert binary.solid is True and binary.above is False  # Python's own, for a record
    assert binary.excess_kl.reason is None and binary.regret.reason is None
    graded = estimate(np.random.default_rng(9).random((30, 300)) * np.linspace(0.5, 1, 30)[:, None])
    near, far = graded.place(np.full(30, 0.45), np.full(30, 4.0)), graded.place(np.full(30, 0.7), np.full(30, 4.0))
    assert not near.solid and near.excess_kl.reason is None and "solid" in near.regret.reason
    assert not far.solid and "solid" in far.excess_kl.reason and "solid" in far.efficiency.reason


def test_a_prompt_without_a_measurement_is_left_out_of_both_sides():
    rewards = coins(10, 30, 50, 70)
    whole = estimate(rewards[[0, 1, 3]]).place(np.array([0.3, 0.5, 0.9]), np.array([0.2, 0.3, 0.4]))
    holed = estimate(rewards).place(np.array([0.3, 0.5, NAN, 0.9]), np.array([0.2, 0.3, 0.1, 0.4]))
    assert holed.excess_kl.value == pytest.approx(whole.excess_kl.value)
    assert holed.regret.stderr == pytest.approx(whole.regret.stderr)
    assert (holed.excess_kl.n, holed.excess_kl.n_unscored) == (3, 1)
    nothing = estimate(rewards).place(np.full(4, NAN), np.ones(4))
    assert nothing.excess_kl.value is None and nothing.excess_kl.n_unscored == 4 and not nothing.above


def test_one_prompt_has_no_error_and_is_never_above():
    placement = estimate(coins(30)).place(np.array([0.9]), np.array([0.01]))
    assert placement.excess_kl.value < -0.5 and placement.excess_kl.stderr is None and not placement.above


# records and errors


def assert_finite(record):
    json.dumps(record, allow_nan=False)


def test_the_record_is_plain_and_draws_the_frontier():
    rewards = np.random.default_rng(10).beta(2, 2, (12, 170))
    frontier = estimate(rewards)
    record = frontier.record()
    assert_finite(record)
    assert (record["n_prompts"], record["n_samples"]) == (12, 12 * 170)
    assert record["base_reward"] == pytest.approx(rewards.mean())
    assert 20 < len(record["curve"]) <= 60
    point = record["curve"][25]
    assert set(point) == {"lambda", "kl", "reward", "reward_stderr", "kl_stderr", "solid"}
    assert (point["reward"], point["reward_stderr"]) == pytest.approx(frontier.reward_at(point["kl"]))
    assert record["curve"][0]["solid"] is True and record["curve"][-1]["solid"] is False
    for bound in record["upper"][1:-1:10]:
        assert frontier.upper(bound["kl"]) == pytest.approx(bound["reward"], abs=1e-6)
    assert record["upper"][-1]["reward"] == pytest.approx(1, abs=1e-3)
    assert [p["n"] for p in record["best_of_n"]] == [1, 2, 4, 8, 16]
    assert set(record["best_of_n"][0]) == {"n", "kl", "reward", "reward_stderr"}


def test_the_record_of_one_prompt_says_null_for_its_errors():
    record = estimate(coins(30)).record()
    assert_finite(record)
    assert record["curve"][5]["reward_stderr"] is None and not any(p["solid"] for p in record["curve"])
    assert all(isnan(x) for x in estimate(coins(30)).reward_stderr)


@pytest.mark.parametrize("bad", [1.2, -0.1, inf])
def test_a_reward_out_of_range_is_refused(bad):
    rewards = np.array([[0.1, 0.2], [0.3, bad]])
    with pytest.raises(BadData, match=r"\[0, 1\]; found .* for prompt 1"):
        estimate(rewards)
    with pytest.raises(BadData):
        best_of_n_kl(rewards, 2)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(EmptySelection, match=r"shape \(0, 4\)"):
        estimate(np.zeros((0, 4)))
    with pytest.raises(Degraded, match="prompt 1"):
        estimate(np.array([[0.1, NAN], [NAN, NAN]]))
    with pytest.raises(BadSetting, match="found 0"):
        estimate(coins(30)).best_of_n([0])
    with pytest.raises(ValueError, match=r"each of 2 prompts; found \(3,\)"):
        estimate(coins(30, 40)).place(np.zeros(3), np.zeros(3))
