"""The statistics against truth found another way: closed forms, scipy's own tests, brute enumeration, simulated worlds."""

from itertools import permutations, product
from math import pi, sqrt, tan

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.analysis import stats
from harness.analysis.stats import t_interval, t_quantile
from harness.core.errors import EmptySelection

DRAWS = 4000
SEEDS = (3, 5, 10)
SLOW = pytest.mark.slow
FEWEST = (3, pytest.param(5, marks=SLOW), pytest.param(10, marks=SLOW))  # three seeds are the hardest: the others on request
A, B = [0.31, 0.28, 0.4, 0.35], [0.25, 0.3, 0.22, 0.31]


def test_quantiles_are_those_of_closed_forms_and_of_the_integral() -> None:
    for c in (0.5, 0.8, 0.95, 0.999):
        assert t_quantile(1, c) == pytest.approx(tan(pi * c / 2), rel=1e-9)
        assert t_quantile(2, c) == pytest.approx(c * sqrt(2 / (1 - c * c)), rel=1e-9)
        assert t_quantile(1e9, c) == pytest.approx(scipy_stats.norm.ppf((1 + c) / 2), rel=1e-6)
    df, t = 2.5, t_quantile(2.5)
    x = np.linspace(-1, 1, 20001) * t
    tails = np.linspace(0, 1, 200001)[1:]  # the rest of the mass, by u = t / x

    def density(x):
        return (1 + x * x / df) ** (-(df + 1) / 2)

    inside, outside = np.trapezoid(density(x), x), 2 * np.trapezoid(density(t / tails) * t / tails**2, tails)
    assert inside / (inside + outside) == pytest.approx(0.95, abs=1e-6)


def test_interval_is_that_of_scipy() -> None:
    low, high = scipy_stats.t.interval(0.95, 3, loc=scipy_stats.tmean(A), scale=scipy_stats.sem(A))
    assert t_interval(A) == pytest.approx((sum(A) / 4, low, high))


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert t_interval([0.5]) == (0.5, None, None)
    assert stats.paired_interval([0.5], [0.25]) == stats.welch_interval([0.5], [0.25]) == (0.25, None, None)
    assert stats.welch_test([0.5], [0.25, 0.25]) == (0.25, None, None, None, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert t_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1, 0.1))
    assert stats.paired_test([0.3, 0.3, 0.3], [0.1, 0.1, 0.1])[1:] == pytest.approx((0, 2, 0.2, 0.2, 0))
    assert stats.welch_test([0.1 + 0.2, 0.3], [0.3, 0.3]).p == 1.0  # they differ by rounding alone


def test_an_interval_is_cut_to_what_the_mean_can_be() -> None:
    """0.98 ± 4.303 · 0.02 / √3 is 0.930 to 1.030; a mean that is itself too large says that the range is wrong."""
    assert t_interval([0.96, 0.98, 1.0], within=(0, 1)) == pytest.approx((0.98, 0.9303, 1.0), abs=1e-4)
    assert t_interval([0.04, 0.02, 0.0], within=(0, 1)) == pytest.approx((0.02, 0.0, 0.0697), abs=1e-4)
    assert t_interval([1.00, 1.02, 1.04], within=(0, 1)) == pytest.approx((1.02, 0.9703, 1.0697), abs=1e-4)
    assert t_interval([-0.04, -0.02, 0.0], within=(0, 1)) == pytest.approx((-0.02, -0.0697, 0.0297), abs=1e-4)


@pytest.mark.parametrize("truth", [0.0, 0.01, 1.0])
def test_a_cut_interval_covers_no_less_often(truth: float) -> None:
    draws = np.random.default_rng(5).normal(truth, 0.05, size=(500, 3))
    hits = {w: [i.low <= truth <= i.high for i in (t_interval(x, within=w) for x in draws)] for w in ((0, 1), (-9, 9))}
    assert hits[(0, 1)] == hits[(-9, 9)] and 0.93 <= np.mean(hits[(0, 1)]) <= 0.97


def test_no_value_is_an_error() -> None:
    with pytest.raises(EmptySelection, match="at least one value"):
        t_interval([])
    for test in (stats.paired_test, stats.welch_test, stats.permutation_p):
        with pytest.raises(EmptySelection, match="at least one value on each side"):
            test([], [])


def test_tests_are_those_of_scipy() -> None:
    for ours, theirs in (
        (stats.paired_test(A, B), scipy_stats.ttest_rel(A, B)),
        (stats.welch_test(A, B[:3]), scipy_stats.ttest_ind(A, B[:3], equal_var=False)),
    ):
        low, high = theirs.confidence_interval()
        assert (ours.df, ours.low, ours.high, ours.p) == pytest.approx((theirs.df, low, high, theirs.pvalue))
        assert ours.mean / ours.stderr == pytest.approx(theirs.statistic)
    assert stats.paired_interval(A, B) == stats._interval(stats.paired_test(A, B))


@pytest.mark.parametrize("n", FEWEST)
def test_intervals_over_seeds_cover_the_truth(n: int) -> None:
    """A difference of 0.5: pairs share a part; Welch's sides have spreads of 1 and 2."""
    rng = np.random.default_rng(n)
    shared, a, b = rng.normal(size=(3, DRAWS, n))
    found = {
        "one": [t_interval(x + 0.5) for x in a],
        "paired": [stats.paired_interval(s + x + 0.5, s + y) for s, x, y in zip(shared, a, b, strict=True)],
        "welch": [stats.welch_interval(x + 0.5, 2 * y) for x, y in zip(a, b, strict=True)],
        "welch, equal spreads": [stats.welch_interval(x + 0.5, y) for x, y in zip(a, b, strict=True)],
    }
    for name, intervals in found.items():
        share = np.mean([i.low <= 0.5 <= i.high for i in intervals])
        assert 0.93 <= share <= 0.97, (name, share)


WORLDS = {  # sd of a seed, of a method's own taste for a prompt, of a cell
    "seeds alone": (1.0, 0.0, 0.3),
    "both": (1.0, 3.0, 3.0),
    "prompts alone": (0.1, 3.0, 1.0),
}


@pytest.mark.parametrize("n", FEWEST)
@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_over_seeds_and_prompts_covers_the_truth(n: int, paired: bool) -> None:
    """In the world of both; in the others the interval of no difference is in the test below."""
    found = by_prompt(np.random.default_rng(n), WORLDS["both"], n, paired)
    assert 0.93 <= np.mean([d.low <= 0.5 <= d.high for d in found]) <= 0.97


FIFTH = "prompts add a fifth"


@pytest.mark.parametrize("n", FEWEST)
@pytest.mark.parametrize("world", [FIFTH, *(pytest.param(w, marks=SLOW) for w in WORLDS)])
@pytest.mark.parametrize("paired", [False, True])
def test_false_positives_over_seeds_and_prompts(n: int, world: str, paired: bool) -> None:
    """Where prompts add a fifth to the variance of the seeds a single t by Satterthwaite errs in 8 % at 3 seeds."""
    spreads = (1.0, sqrt(40 / 4 / n), 0.0) if world == FIFTH else WORLDS[world]
    found = by_prompt(np.random.default_rng(20 + n), spreads, n, paired, effect=0.0)
    if world != FIFTH:
        assert 0.93 <= np.mean([d.low <= 0.0 <= d.high for d in found]) <= 0.97
    p = np.array([d.p for d in found])
    for level in (0.05, 0.0125):  # alone, and the first step of Holm's over four metrics
        assert np.mean(p <= level) <= level + 3 * sqrt(level * (1 - level) / len(p))


def by_prompt(
    rng: np.random.Generator, world: tuple, n: int, paired: bool, effect: float = 0.5, x: int = 40
) -> list[stats.Difference]:
    """Crossed seeds and prompts with a true difference; the second side has one seed more unless paired."""
    seed, taste, cell = world
    found = []
    for _ in range(2000):
        prompts, together = 3 * rng.normal(size=x), rng.normal(size=(n + 1, 1))
        sides = []
        for more, rows in ((effect, n), (0.0, n if paired else n + 1)):
            drawn = prompts + taste * rng.normal(size=x) + seed * rng.normal(size=(rows, 1)) + cell * rng.normal(size=(rows, x))
            sides.append(more + drawn + paired * together[:rows])
        found.append(stats.paired_by_prompt(*sides, seeds_paired=paired))
    return found


def test_seeds_alone_cover_too_little_where_prompts_count() -> None:
    """Why the prompts are in the error at all: an interval over seed means misses the truth of unseen prompts."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(2000):
        a, b = (3 * rng.normal(size=40) + 0.1 * rng.normal(size=(5, 1)) + rng.normal(size=(5, 40)) for _ in range(2))
        i = stats.welch_interval(a.mean(1), b.mean(1))
        covered.append(i.low <= 0 <= i.high)
    assert np.mean(covered) < 0.7


def test_the_error_over_seeds_and_prompts_by_hand() -> None:
    """Sides [2, 2]: seed means 1, 3 and 1, 1 give 2/2 + 0; prompt differences 1, 1 give 0, so prompts add nothing."""
    found = stats.paired_by_prompt([[0, 2], [2, 4]], [[0, 2], [0, 2]])
    assert found.mean == 1 and found.stderr == pytest.approx(1) and found.df == pytest.approx(1)
    # prompt differences 0 and 8: 32/2 = 16 over prompts; rows 0, 6 and 2, 12 leave residuals of 1, four of them
    # with one degree of freedom: 4 / 1 / 2 seeds / 2 prompts = 1; seed means 3 and 7: 8/2 = 4; in all 19
    found = stats.paired_by_prompt([[0, 6], [2, 12]], [[1, 1], [1, 1]])
    assert found.mean == 4 and found.stderr == pytest.approx(sqrt(19))
    together = scipy_stats.t.ppf(0.975, 19**2 / (4**2 + 15**2))  # Satterthwaite's degrees of freedom
    half = 12.7062 * sqrt(19) / 2 + together * sqrt(19) / 2
    assert found.high - 4 == pytest.approx(half, rel=1e-5)
    # rows and columns add up: no noise of cells; seed means 3, 7: 8/2 = 4; prompts 2, 5, 8: 9/3 = 3; t of 1 and of 2
    found = stats.paired_by_prompt([[0, 3, 6], [4, 7, 10]], [[0] * 3] * 2, seeds_paired=True)
    together = scipy_stats.t.ppf(0.975, 7**2 / (4**2 + 3**2 / 2)) * sqrt(7)
    half = (sqrt(12.7062**2 * 4 + 4.30265**2 * 3) + together) / 2
    assert found[:2] == pytest.approx((5, sqrt(7))) and found.high - 5 == pytest.approx(half, rel=1e-5)
    assert scipy_stats.t.ppf(0.975, found.df) * sqrt(7) == pytest.approx(half, rel=1e-5) and 1 < found.df < 2
    one, two, both = (scipy_stats.t.isf(found.p / 2, df) for df in (1, 2, 7**2 / (4**2 + 3**2 / 2)))
    assert (sqrt(one**2 * 4 + two**2 * 3) + both * sqrt(7)) / 2 == pytest.approx(5)
    assert stats.paired_by_prompt([[1.0], [2.0]], [[1.0], [4.0]])[:3] == stats.welch_test([1, 2], [1, 4])[:3]
    assert stats.paired_by_prompt([[1.0, 3]], [[1.0, 1]]) == (1, None, None, None, None, None)


@pytest.mark.parametrize(
    ("a", "b", "paired", "said"),
    [
        ([[1, 2]], [[1]], False, "same prompts; found"),
        ([[1], [1]], [[1]], True, "prompts and seeds"),
        ([1], [[1]], False, "1 dimensions"),
        ([[float("nan")]], [[1]], False, "finite"),
    ],
)
def test_tables_that_cannot_be_compared(a: list, b: list, paired: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stats.paired_by_prompt(a, b, paired)


@pytest.mark.parametrize("n", FEWEST)
def test_false_positives_are_at_most_one_in_twenty(n: int) -> None:
    """Of the tests that `compare` uses: a world without a difference, three standard errors of the simulation allowed."""
    rng, allowed = np.random.default_rng(10 + n), 0.05 + 3 * sqrt(0.05 * 0.95 / DRAWS)
    a, b = rng.normal(size=(2, DRAWS, n))
    assert np.mean([stats.paired_test(x, y).p <= 0.05 for x, y in zip(a, b, strict=True)]) <= allowed
    assert np.mean([stats.welch_test(x, y).p <= 0.05 for x, y in zip(a, b, strict=True)]) <= allowed
    ps = [[stats.welch_test(x, y).p for x, y in zip(a[i : i + 4], b[i : i + 4], strict=True)] for i in range(0, DRAWS, 4)]
    any_of_four = np.mean([min(stats.holm(p)) <= 0.05 for p in ps])
    assert any_of_four <= 0.05 + 3 * sqrt(0.05 * 0.95 / len(ps))


def test_clusters_by_hand() -> None:
    """Clusters of means 1, 4 and 7, the NaN left out: mean 4, sd 3."""
    values, clusters = [1, 1, 3, 5, 7, float("nan")], ["a", "a", "b", "b", "c", "c"]
    assert stats.clustered(values, clusters) == pytest.approx((4, 3 / sqrt(3)))
    assert stats.clustered([1, 3], ["a", "a"]) == (2, None)
    with pytest.raises(ValueError, match="its cluster"):
        stats.clustered([1], [])
    with pytest.raises(EmptySelection):
        stats.clustered([float("nan")], ["a"])


@pytest.mark.parametrize("d", [[0.3, 0.2, 0.5], [0.3, -0.1, 0.2, 0.2], [1, -1], [0.1] * 5])
def test_sign_flips_by_brute_enumeration(d: list) -> None:
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=len(d))]
    assert stats.sign_flip_p(d) == sum(s >= abs(sum(d)) - 1e-12 for s in sums) / len(sums)


@pytest.mark.parametrize(("a", "b"), [([5, 6, 7], [1, 2, 3]), ([1, 4], [2, 3, 9]), ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), (A, B)])
def test_permutations_by_brute_enumeration(a: list, b: list) -> None:
    """Every order of all values, not only every choice of the first n."""

    def gap(v: tuple) -> float:
        return abs(sum(v[: len(a)]) / len(a) - sum(v[len(a) :]) / len(b))

    if len(a + b) > 7:
        theirs = scipy_stats.permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf).pvalue
        assert stats.permutation_p(a, b) == pytest.approx(theirs)
    else:
        gaps = [gap(order) for order in permutations(a + b)]
        assert stats.permutation_p(a, b) == pytest.approx(np.mean([g >= gap((*a, *b)) - 1e-12 for g in gaps]))


def test_the_least_p_of_three_seeds() -> None:
    assert stats.sign_flip_p([1, 2, 3]) == 0.25
    assert stats.permutation_p([10, 11, 12], [1, 2, 3]) == 0.1
    assert stats.welch_test([10, 11, 12], [1, 2, 3]).p < 0.001


def test_many_seeds_are_drawn_and_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 40), rng.normal(0, 1, 40)
    for ours, theirs in ((stats.sign_flip_p, stats.paired_test), (stats.permutation_p, stats.welch_test)):
        words = (a - b,) if ours is stats.sign_flip_p else (a, b)
        p = ours(*words, np.random.default_rng(1))
        assert p == pytest.approx(theirs(a, b).p, abs=0.015)
        assert p == ours(*words, np.random.default_rng(1)) != ours(*words, np.random.default_rng(2))
        with pytest.raises(ValueError, match="hand in a numpy Generator"):
            ours(*words)
    assert stats.sign_flip_p(np.arange(1, 31.0), rng) == pytest.approx(1 / 20001)  # never zero


def test_holm_by_hand() -> None:
    """In order 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, and none may fall below an earlier."""
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.6, 0.7]) == [1, 1] and stats.holm([]) == []
    with pytest.raises(ValueError, match="p values"):
        stats.holm([0.5, float("nan")])


def test_rank_sets() -> None:
    values = {"good": [9.0, 9.1, 8.9], "twin": [9.1, 9.0, 8.95], "bad": [1.0, 1.1, 0.9], "alone": [5.0]}
    assert stats.rank_sets(values) == {"good": (1, 3), "twin": (1, 3), "bad": (3, 4), "alone": (1, 4)}
    assert stats.rank_sets(values, higher_is_better=False)["bad"] == (1, 2)
    assert stats.rank_sets({"only": [1.0]}) == {"only": (1, 1)}
    # p of good against bad is 2e-8, so no level that anybody asks for separates the twins
    assert stats.rank_sets(values, alpha=1e-12) == dict.fromkeys(values, (1, 4))
    with pytest.raises(EmptySelection):
        stats.rank_sets({"a": [], "b": [1.0]})


def test_a_name_answers_for_its_own_tests_alone() -> None:
    """p = 0.001 counts among the 20 tests of a name (times 20 is 0.02), as it would not among the 210 of all pairs."""
    values = {"a": [1.0, 1.1, 0.9], "b": [1.7, 1.8, 1.6]} | {f"noise {i}": [-90.0 - i, 1.0, 95.0 + i] for i in range(19)}
    assert 0.0009 < stats.welch_test(values["b"], values["a"]).p < 0.0011
    found = stats.rank_sets(values)
    assert (found.pop("a"), found.pop("b")) == ((2, 21), (1, 20)) and set(found.values()) == {(1, 21)}


SETS = {"equal": (0, 0, 0, 0), "in steps": (0, 1, 2, 3), "one best": (0, 0, 0, 5), "wide spreads": (0, 4, 4, 9)}


@pytest.mark.parametrize("n", FEWEST[:2])
@pytest.mark.parametrize("world", SETS)
def test_sets_of_ranks_hold_the_rank_and_the_best(n: int, world: str) -> None:
    """Of four methods: each one's own rank, and the best one among those that may be first, in 95 of 100 studies or more."""
    rng, spreads = np.random.default_rng(n), np.array([1, 1, 2, 4]) if world == "wide spreads" else np.ones(4)
    truth = np.array(SETS[world])
    studies = truth[:, None] + spreads[:, None] * rng.normal(size=(1000, 4, n))
    found = np.array(
        [list(stats.rank_sets(dict(zip("abcd", study, strict=True))).values()) for study in studies]
    )  # [1000, 4, 2]
    least, most = 1 + (truth > truth[:, None]).sum(1), 4 - (truth < truth[:, None]).sum(1)  # equal ones share their ranks
    held = (found[..., 0] <= least) & (most <= found[..., 1])
    slack = 3 * sqrt(0.05 * 0.95 / 1000)
    assert held.mean(0).min() >= 0.95 - slack
    assert (found[:, truth.argmax(), 0] == 1).mean() >= 0.95 - slack


@pytest.mark.parametrize("n", SEEDS)
def test_the_effect_that_can_be_detected_is_detected_four_times_in_five(n: int) -> None:
    effect = stats.detectable(2.0 * sqrt(2 / n), 2 * n - 2)
    a, b = 2.0 * np.random.default_rng(n).normal(size=(2, 20_000, n))
    found = scipy_stats.ttest_ind(a + effect, b, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_hypervolume_by_hand() -> None:
    """Up to KL 3 and from reward 0: 2 x 0.5 from the first point, 1 x 0.3 more from the second; the others add nothing."""
    points = [(1, 0.5), (2, 0.8), (2, 0.4), (3.5, 0.9), (0.5, -0.1)]
    assert stats.hypervolume(points, (3, 0)) == pytest.approx(1.3)
    assert stats.hypervolume(points, (3, 0.6)) == pytest.approx(1 * 0.2)
    assert stats.hypervolume([(1, 0.5)], (3, 1), maximise=(False, False)) == pytest.approx(2 * 0.5)
    assert stats.hypervolume([], (3, 0)) == 0 == stats.hypervolume([(4, 0.5)], (3, 0))
    with pytest.raises(ValueError, match="finite"):
        stats.hypervolume([(1, float("nan"))], (3, 0))


FRONTS = [[(1, 0.5), (2, 0.8)], [(1, 0.6)], [(0.5, 0.4), (2, 0.7)]]


@pytest.mark.parametrize(
    ("quantile", "curve"),
    [
        (0, [(1, 0.4), (2, 0.6)]),  # by all three: at KL 1 the third has 0.4, at 2 the second 0.6
        (0.5, [(1, 0.5), (2, 0.7)]),  # by two of three: the middle reward at 1 and at 2
        (1, [(0.5, 0.4), (1, 0.6), (2, 0.8)]),  # by any
    ],
)
def test_attainment_by_hand(quantile: float, curve: list) -> None:
    assert stats.attainment(FRONTS, quantile) == pytest.approx(np.array(curve))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10])
def test_attainment_is_the_quantile_of_the_rewards_reached(n: int) -> None:
    """At each KL, the reward that so many fronts reach: counted front by front."""
    fronts = np.random.default_rng(n).random((n, 6, 2))
    for quantile in np.linspace(0, 1, 9):
        curve, needed = stats.attainment(list(fronts), quantile), max(1, int(np.ceil((1 - quantile) * n - 1e-9)))
        for kl in np.linspace(0.05, 1, 20):
            best = sorted((max((r for k, r in front if k <= kl), default=-np.inf) for front in fronts), reverse=True)
            assert max((r for k, r in curve if k <= kl), default=-np.inf) == best[needed - 1]


def test_attainment_that_cannot_be() -> None:
    with pytest.raises(EmptySelection, match="fronts with points"):
        stats.attainment([[], [(1, 1)]], 0.5)
    with pytest.raises(ValueError, match="quantile"):
        stats.attainment(FRONTS, 1.5)
