"""Best of n from base responses: its reward and its drift, by hand and by listing every draw."""

from itertools import product
from math import log

import numpy as np
import pytest
from reward_laws import beta_law, coin_kl, coins

from harness.measure.frontier import best_of_n_kl, estimate

NAN = float("nan")


def test_best_of_n_of_a_coin():
    """Against P(any of n succeeds), and 0.45 nats where the usual bound says 1.84."""
    (point,) = estimate(coins(64, 128, m=200)).best_of_n([16])
    wins = [1 - 0.68**16, 1 - 0.36**16]
    assert point.reward == pytest.approx(np.mean(wins))
    assert point.kl == pytest.approx((coin_kl(wins[0], 0.32) + coin_kl(wins[1], 0.64)) / 2)
    assert point.reward_stderr == pytest.approx(np.std(wins, ddof=1) / 2**0.5)
    assert best_of_n_kl(coins(128, m=200), 16)[0] == pytest.approx(-log(0.64), abs=1e-4)


def test_best_of_n_by_listing_every_draw():
    """Three draws of [0, 0, .5, 1, 1]: the law of the best, a tie shared evenly, response by response."""
    rewards, law = [0.0, 0.0, 0.5, 1.0, 1.0], np.zeros(5)
    for draw in product(range(5), repeat=3):
        best = [i for i in draw if rewards[i] == max(rewards[j] for j in draw)]
        for i in best:
            law[i] += 1 / 125 / len(best)
    assert best_of_n_kl(np.array([rewards]), 3)[0] == pytest.approx((law * np.log(5 * law)).sum())
    (point,) = estimate(np.array([rewards * 6])).best_of_n([3])
    assert point.reward == pytest.approx(law @ rewards) and point.kl == pytest.approx((law * np.log(5 * law)).sum())


def test_best_of_n_of_distinct_rewards_meets_the_usual_bound():
    for n in (1, 4, 64):
        assert best_of_n_kl(beta_law(20_000)[None], n)[0] == pytest.approx(log(n) - (n - 1) / n, abs=0.01)


def test_best_of_n_stops_where_a_handful_of_responses_decide():
    rewards = np.random.default_rng(4).random((3, 85))
    assert [p.n for p in estimate(rewards).best_of_n([1, 2, 4, 8, 16])] == [1, 2, 4, 8]
    rewards[0, :10] = NAN
    assert [p.n for p in estimate(rewards).best_of_n([1, 2, 4, 8, 16])] == [1, 2, 4]


def test_best_of_n_lies_below_the_frontier():
    frontier = estimate(np.random.default_rng(5).beta(1, 4, (10, 400)))
    for point in frontier.best_of_n([2, 8, 32]):
        assert point.reward < frontier.reward_at(point.kl)[0]
