"""Numbers along a curve, by hand: between points, beyond the last, the least KL, the area, and their errors."""

from math import inf

import numpy as np
import pytest

from harness.analysis.curves.along import Line, Scores, line
from harness.analysis.curves.linear import difference
from harness.analysis.stats import crossed_interval


def scores(kl: list[float], score: list[float], *, prompts: int = 0, seed: int = 0) -> Scores:
    """Seeds with these means, and terms of prompts about them."""
    rng, n = np.random.default_rng(seed), len(kl)
    tables: list = [None, None]
    if prompts:
        noise = rng.normal(0, 1, (2, n, prompts))
        noise -= noise.mean(2, keepdims=True)
        tables = [np.array(kl)[:, None] + 0.01 * noise[0], np.array(score)[:, None] + noise[1]]
    return Scores(np.array(kl), np.array(score), *tables, np.full(n, 0.01), np.full(n, 1.0))


def straight(*points: tuple[float, float], base: float = 0.0) -> Line:
    """A line through points of two equal seeds each."""
    return line(base, None, [scores([kl, kl], [score, score]) for kl, score in points], 1.0)


RISES = straight((0.2, 40.0), (0.6, 80.0), (1.2, 90.0))


def test_a_score_is_read_on_the_straight_line_from_the_base_through_the_means():
    assert [RISES.at(kl).value for kl in (0.0, 0.1, 0.2, 0.4, 1.2)] == pytest.approx([0, 20, 40, 60, 90])


def test_beyond_the_last_point_nothing_is_known():
    assert RISES.at(1.2001) is None and RISES.at(-0.1) is None and Line(0.0, None, []).at(0.0) is None


def test_points_are_ordered_by_their_kl_and_close_ones_joined():
    found = line(0.0, None, [scores([0.5], [50.0]), scores([0.101], [12.0]), scores([0.1], [8.0])], 1.0)
    assert found.kl == pytest.approx([0, 0.1005, 0.5]) and found.score == pytest.approx([0, 10, 50])


def test_the_least_kl_of_a_score_and_what_is_never_reached():
    assert RISES.least(60.0).value == pytest.approx(0.4) and RISES.least(0.0).value == 0.0
    never = RISES.least(95.0)
    assert never.value is None and never.interval is None and never.most == 90.0


def test_the_least_kl_is_that_of_the_first_crossing():
    assert straight((0.2, 50.0), (0.4, 20.0), (0.8, 70.0)).least(45.0).value == pytest.approx(0.18)


def test_the_interval_of_the_least_kl_ends_where_that_of_the_score_reaches_it():
    noisy = line(0.0, None, [scores([0.2, 0.2], [38.0, 42.0]), scores([0.6] * 5, [78.0, 79, 80, 81, 82])], 1.0)
    least = noisy.least(60.0)
    assert least.value == pytest.approx(0.4) and least.interval.low < 0.4 < least.interval.high < 0.6
    assert noisy.at(least.interval.low).interval().high == pytest.approx(60.0, abs=0.3)
    assert noisy.at(least.interval.high).interval().low == pytest.approx(60.0, abs=0.3)


def test_an_interval_that_does_not_end_on_the_curve_is_open():
    noisy = line(0.0, None, [scores([0.2, 0.2], [38.0, 42.0]), scores([0.6] * 3, [70.0, 80.0, 96.0])], 1.0)
    assert noisy.least(80.0).interval.high == inf


def test_the_area_of_straight_lines():
    area = RISES.area(1.2)
    assert area.value == pytest.approx(0.2 * 20 + 0.4 * 60 + 0.6 * 85, rel=1e-3)


def test_the_area_stays_level_beyond_the_last_point_and_ends_at_the_cap():
    assert straight((0.2, 40.0)).area(1.0).value == pytest.approx(0.2 * 20 + 0.8 * 40, rel=1e-3)
    assert RISES.area(0.2).value == pytest.approx(0.2 * 20, rel=1e-3)


def test_a_point_below_an_earlier_one_beyond_error_counts_as_that_one():
    falls = straight((0.2, 40.0), (0.4, 0.0), (0.8, 80.0))
    assert falls.counts_as == [0, 1, 1, 3]
    assert falls.area(0.8).value == pytest.approx(0.2 * 20 + 0.2 * 40 + 0.4 * 60, rel=1e-3)
    within = line(0.0, None, [scores([0.2] * 2, [38.0, 42.0]), scores([0.4] * 2, [36.0, 40.0])], 1.0)
    assert within.counts_as == [0, 1, 2]


def test_a_method_below_the_base_has_no_area():
    assert straight((0.2, -4.0), (0.6, -10.0)).area(1.0).value == pytest.approx(0.0)


def test_noise_adds_nothing_to_the_area_of_a_method_without_an_effect():
    rng, areas, greedy = np.random.default_rng(0), [], []
    for _ in range(300):
        found = line(0.0, None, [scores([k] * n, list(rng.normal(0, 1, n))) for k, n in ((0.1, 2), (0.3, 5), (0.6, 2))], 1.0)
        areas.append(found.area(1.0).value)
        greedy.append(found.score.max())
    assert abs(np.mean(areas)) < 4 * np.std(areas) / 300**0.5 < 0.3 * np.mean(greedy)


def test_at_a_point_with_terms_the_interval_is_about_that_of_its_seeds_and_prompts():
    one = scores([0.5, 0.5, 0.5, 0.5], [48.0, 50.0, 52.0, 50.0], prompts=50)
    found = line(0.0, None, [one], 1.0).at(0.5)
    expected = crossed_interval(one.score_by_prompt)
    assert found.value == 50.0
    assert found.interval().high - 50 == pytest.approx(expected.high - expected.mean, rel=0.15)


def test_an_error_in_kl_counts_by_the_slope_of_the_curve():
    sure = line(0.0, None, [scores([0.5, 0.5], [50.0, 50.0])], 1.0).at(0.5)
    along = line(0.0, None, [scores([0.45, 0.55], [45.0, 55.0])], 1.0).at(0.5)  # seeds that move along the curve
    across = line(0.0, None, [scores([0.45, 0.55], [55.0, 45.0])], 1.0).at(0.5)
    assert sure.seeds[0][0] == pytest.approx(0.0) == pytest.approx(along.seeds[0][0]) and across.seeds[0][0] > 30


def test_one_seed_borrows_the_spread_of_the_other_points_and_has_none_alone():
    both = [scores([0.2], [40.0]), scores([0.6] * 3, [70.0, 80.0, 90.0])]
    assert line(0.0, None, both, 1.0).at(0.2).interval().low is not None
    assert line(0.0, None, both[:1], 1.0).at(0.2).interval().low is None


def test_two_methods_are_compared_on_the_same_prompts():
    noise = np.random.default_rng(0).normal(0, 20, 60)
    noise -= noise.mean()

    def at(level: float) -> object:
        table = np.array([[level - 1], [level + 1]]) + noise
        point = Scores(np.array([0.5, 0.5]), table.mean(1), np.full((2, 60), 0.5), table, np.zeros(2), np.zeros(2))
        return line(0.0, None, [point], 1.0).at(0.5)

    a, b = at(60.0), at(50.0)
    assert a.interval().low < 56 and difference(a, b).low == pytest.approx(10 - 6.1, abs=0.3)
    assert difference(a._replace(prompts=None, plain=9.0), b).low < difference(a, b).low
