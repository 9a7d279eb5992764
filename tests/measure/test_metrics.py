"""Each metric by hand, its missing values, and its standard error against simulation."""

from __future__ import annotations

from collections import Counter
from math import exp, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.types import Metric
from harness.measure import metrics

NAN = float("nan")


def close(metric: Metric, value, stderr, n, n_unscored=0):
    assert metric.value == pytest.approx(value)
    assert metric.stderr == (None if stderr is None else pytest.approx(stderr))
    assert (metric.n, metric.n_unscored, metric.reason) == (n, n_unscored, None)


def unmeasured(metric: Metric, n_unscored=0):
    assert metric[:4] == (None, None, 0, n_unscored)
    assert metric.reason


def test_unmeasured_says_why():
    assert metrics.unmeasured("no judge model") == Metric(None, None, 0, 0, "no judge model")


def test_cluster_mean_by_hand():
    # prompt means 2 and 5: mean 3.5, sd 3/sqrt 2, divided by sqrt 2
    close(metrics.cluster_mean(np.array([[1.0, 3.0], [5.0, 5.0]])), 3.5, 1.5, 4)
    close(metrics.cluster_mean(np.array([2.0, 5.0])), 3.5, 1.5, 2)  # one response each


def test_what_could_not_be_scored_is_left_out_and_counted():
    # the mean of prompt 1 is 1, not 1/2; prompt 3 has no score at all and does not count as 0
    values = np.array([[1.0, NAN], [4.0, 2.0], [NAN, NAN]])
    close(metrics.cluster_mean(values), 2.0, 1.0, 3, 3)
    close(metrics.max_undesired(values), 2.5, 1.5, 3, 3)
    close(metrics.undesired_prob(values, threshold=2.0), 0.5, 0.5, 3, 3)
    assert metrics.cluster_mean(np.array([[1.0, 2.0]])).stderr is None  # one prompt has no spread


@pytest.mark.parametrize("metric", [metrics.cluster_mean, metrics.max_undesired, metrics.undesired_prob])
def test_nothing_scored_has_no_value(metric):
    unmeasured(metric(np.full((2, 3), NAN)), 6)
    unmeasured(metric(np.zeros((0, 3))))


def test_ratio_by_hand():
    # 5/6; residuals 1 - 5/3 and 4 - 10/3, that is -2/3 and 2/3: their sum has sd sqrt(2) * sqrt(8/9) = 4/3
    close(metrics.ratio(np.array([1.0, 4.0]), np.array([2.0, 4.0])), 5 / 6, (4 / 3) / 6, 6)
    close(metrics.ratio(np.array([1.0]), np.array([2.0])), 0.5, None, 2)
    close(metrics.ratio(np.array([1.0, 7.0, NAN]), np.array([2.0, NAN, 1.0])), 0.5, None, 2, 2)
    unmeasured(metrics.ratio(np.array([1.0]), np.array([0.0])))
    unmeasured(metrics.ratio(np.array([]), np.array([])))
    unmeasured(metrics.ratio(np.array([NAN]), np.array([1.0])), 1)


def test_perplexity_by_hand():
    nll, tokens = np.array([[2.0, 1.0], [6.0, 3.0]]), np.array([[1, 2], [2, 1]])
    # 12 nats over 6 tokens, not the mean of the responses' own perplexities; residuals 3 - 6 and 9 - 6
    close(metrics.perplexity(nll, tokens), exp(2), exp(2) * 3 * sqrt(2) * sqrt(2) / 6, 6)
    nll[0, 0] = NAN  # 10 nats over 5 tokens; residuals 1 - 4 and 9 - 6
    close(metrics.perplexity(nll, tokens), exp(2), exp(2) * 3 * sqrt(2) * sqrt(2) / 5, 5, 1)
    unmeasured(metrics.perplexity(np.full((2, 2), NAN), tokens), 4)
    unmeasured(metrics.perplexity(np.zeros((2, 2)), np.zeros((2, 2))))
    unmeasured(metrics.perplexity(np.zeros((0, 2)), np.zeros((0, 2))))


def test_distinct_by_hand():
    texts = [["a b a", "a b"], ["c c c"]]
    close(metrics.distinct(texts, 1), (2 / 5 + 1 / 3) / 2, (2 / 5 - 1 / 3) / 2, 3)
    close(metrics.distinct(texts, 2), (2 / 3 + 1 / 2) / 2, (2 / 3 - 1 / 2) / 2, 3)  # ab ba ab; no gram spans two texts
    close(metrics.distinct(texts, 3), 1.0, 0.0, 3)
    unmeasured(metrics.distinct([["a b"], [""]], 3))
    unmeasured(metrics.distinct([], 1))


def test_unique_share_and_modal_mass_by_hand():
    texts = [["a", "a", "a", "b"], ["a", "b", "c", "d"]]
    close(metrics.unique_share(texts), 0.75, 0.25, 8)
    close(metrics.modal_mass(texts), 0.5, 0.25, 8)
    for metric in (metrics.unique_share, metrics.modal_mass):
        close(metric([["a", "a"], []]), 0.5 if metric is metrics.unique_share else 1.0, None, 2)
        unmeasured(metric([]))
        unmeasured(metric([[], []]))


def test_repetition_by_hand():
    assert metrics.repetition("a b a b", 2) == pytest.approx(1 / 3)  # ab ba ab
    assert metrics.repetition("a a a a", 1) == pytest.approx(3 / 4)
    assert metrics.repetition("a b c", 2) == 0
    assert np.isnan(metrics.repetition("a", 2)) and np.isnan(metrics.repetition("", 1))


def test_repetition_rate_leaves_out_what_is_too_short():
    close(metrics.repetition_rate([["a b a b", "a"], ["a b c", "c d e"]], 2), 1 / 6, 1 / 6, 3)
    unmeasured(metrics.repetition_rate([["a"], ["b"]], 2))
    unmeasured(metrics.repetition_rate([], 2))
    close(metrics.repetition_rate([["a b a b"], ["a b c", "c d e"]], 2), 1 / 6, 1 / 6, 3)  # prompts of unequal length


def test_max_undesired_by_hand():
    close(metrics.max_undesired(np.array([[0.1, 0.9], [0.5, 0.3]])), 0.7, 0.2, 4)


def test_the_threshold_is_strict_unless_told():
    undesired = np.array([[0.1, 0.5], [0.2, 0.6]])
    close(metrics.undesired_prob(undesired), 0.5, 0.5, 4)
    close(metrics.undesired_prob(undesired, inclusive=True), 1.0, 0.0, 4)
    close(metrics.undesired_prob(undesired, threshold=0.0), 1.0, 0.0, 4)  # 0 is a threshold


def naive_bleu(hypothesis: list[str], references: list[list[str]]) -> float:
    """The definition once more: each n-gram of the hypothesis in turn uses up an occurrence in the best reference."""
    product = 1.0
    for n in (1, 2, 3, 4):
        grams = [" ".join(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
        hits = 0
        for gram in set(grams):
            most = max(sum(" ".join(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references)
            hits += min(grams.count(gram), most)
        smooth = 0 if n == 1 else 1
        product *= (hits + smooth) / (len(grams) + smooth) if len(grams) + smooth else 0.0
    if product == 0:
        return 0.0
    lengths = sorted(len(r) for r in references)
    nearest = min(lengths, key=lambda x: abs(x - len(hypothesis)))  # sorted: of two as near, the shorter
    brevity = 1.0 if len(hypothesis) >= nearest else exp(1 - nearest / len(hypothesis))
    return brevity * product**0.25


TEXT = st.lists(st.sampled_from("abc"), max_size=9)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_bleu_against_a_second_implementation(hypothesis, references):
    assert metrics.bleu(hypothesis, references) == pytest.approx(naive_bleu(hypothesis, references))


def test_bleu_by_hand():
    assert metrics.bleu(list("abcde"), [list("abcde")]) == pytest.approx(1)
    assert metrics.bleu(list("abcde"), [list("vwxyz")]) == 0
    # unigrams 3/4, bigrams (2 + 1)/(3 + 1), trigrams (1 + 1)/(2 + 1), one 4-gram missed (0 + 1)/(1 + 1)
    assert metrics.bleu(list("abcx"), [list("abcd")]) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert metrics.bleu(list("abcd"), [list("abcdefgh")]) == pytest.approx(exp(1 - 2))  # brevity
    assert metrics.bleu(list("abcde"), [list("abc"), list("abcdef")]) == pytest.approx(exp(1 - 6 / 5))  # the nearest length
    assert metrics.bleu(list("abcd"), [list("abc"), list("abcde")]) == pytest.approx(1)  # of two as near, the shorter
    assert metrics.bleu(list("aaaa"), [list("a"), list("aa")]) == pytest.approx((2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), min_size=2, max_size=5))
def test_self_bleu_is_the_mean_of_bleu_against_the_others(split):
    expected = np.mean([metrics.bleu(h, split[:i] + split[i + 1 :]) for i, h in enumerate(split)])
    assert metrics.self_bleu([[" ".join(s) for s in split]]).value == pytest.approx(expected, abs=1e-12)


def test_self_bleu_by_hand():
    close(metrics.self_bleu([["a b c d", "a b c d"], ["a b", "c d"]]), 0.5, 0.5, 4)
    close(metrics.self_bleu([["a b c d", "a b c d", " "], ["a"]]), 1.0, None, 2)  # an empty text has no BLEU
    unmeasured(metrics.self_bleu([["a"], [""]]))
    unmeasured(metrics.self_bleu([]))


def simulated(draw, metric, rounds: int = 3000) -> tuple[float, float]:
    """The sd of the value over data sets, and the root mean square of its stated standard errors."""
    rng = np.random.default_rng(0)
    got = [metric(*draw(rng)) for _ in range(rounds)]
    return float(np.std([m.value for m in got])), float(np.sqrt(np.mean([m.stderr**2 for m in got])))


def correlated(rng):
    """60 prompts, 8 responses each; responses to one prompt are alike, so 480 values are worth some 80."""
    return (rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 8)),)


def responses(rng):
    """60 prompts, 5 responses of unequal length; prompts differ in how hard they are, and hard ones are longer."""
    hard = rng.gamma(4, 0.5, size=(60, 1))
    tokens = rng.poisson(3 + 4 * hard, size=(60, 5)) + 1
    return tokens * hard * rng.gamma(9, 1 / 9, size=(60, 5)), tokens


def sums(rng):
    nll, tokens = responses(rng)
    return nll.sum(1), tokens.sum(1).astype(float)


CASES = {"cluster_mean": correlated, "ratio": sums, "perplexity": responses}


@pytest.mark.parametrize("name", CASES)
def test_standard_errors_against_simulation(name):
    truth, stated = simulated(CASES[name], getattr(metrics, name), rounds=1000 if name == "cluster_mean" else 3000)
    assert stated == pytest.approx(truth, rel=0.15)


def test_a_standard_error_that_ignores_the_prompts_would_be_wrong():
    """The simulation can tell: treating correlated responses as independent is off by more than a half."""
    truth, _ = simulated(correlated, metrics.cluster_mean, rounds=300)
    (values,) = correlated(np.random.default_rng(0))
    assert values.std(ddof=1) / sqrt(values.size) < 0.5 * truth


def test_ngrams():
    assert metrics.ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert metrics.ngrams([1], 2) == []
    assert Counter(metrics.ngrams(metrics.words(" a  b\na b"), 2)) == {("a", "b"): 2, ("b", "a"): 1}


def test_means_of_prompts_by_hand():
    """A prompt's unscored response is left out; a prompt without a score, or without a token, has none."""
    values = np.array([[1.0, 3.0], [2.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(metrics.prompt_means(values), [2, 2, np.nan])
    tokens = np.array([[1.0, 3.0], [4.0, 9.0], [1.0, 1.0]])
    np.testing.assert_array_equal(metrics.prompt_nll(values, tokens), [1, 0.5, np.nan])
    np.testing.assert_array_equal(metrics.prompt_nll(np.zeros((1, 2)), np.zeros((1, 2))), [np.nan])
