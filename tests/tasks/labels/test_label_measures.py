"""Discrimination and calibration, held against scikit-learn and by hand."""

import numpy as np
import pytest

from harness.core.errors import BadData
from harness.tasks.labels import measures


def drawn(n: int = 400):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=n).round(1)  # ties
    return (rng.random(n) < measures.sigmoid(logits)).astype(float), logits


def test_auc_and_rank_correlation_are_those_of_the_libraries():
    metrics = pytest.importorskip("sklearn.metrics")
    from scipy.stats import spearmanr

    labels, logits = drawn()
    assert measures.auc(labels >= 0.5, logits) == pytest.approx(metrics.roc_auc_score(labels, logits))
    assert measures.spearman(labels, logits) == pytest.approx(spearmanr(labels, logits).statistic)


def test_undefined_measures_are_none():
    assert measures.auc(np.array([True, True]), np.array([0.1, 0.2])) is None
    assert measures.spearman(np.array([0.5, 0.5]), np.array([0.1, 0.2])) is None
    assert measures.fit_of(np.array([1.0]), np.array([0.5])).auc is None


def test_the_calibration_error_by_hand():
    labels, predicted = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.25, 0.25, 0.875, 1.0])
    found = measures.fit_of(labels, predicted)
    assert (found.n, found.undesired) == (4, 3)
    assert found.ece == pytest.approx((2 * 0.25 + 0.125 + 0.0) / 4)
    full = {b.low: (b.n, b.predicted, b.label) for b in found.reliability if b.n}
    assert full == {0.2: (2, 0.25, 0.5), 0.8: (1, 0.875, 1.0), 0.9: (1, 1.0, 1.0)} and len(found.reliability) == 10


def test_the_calibrating_map_recovers_scale_and_shift():
    _, logits = drawn(5000)
    labels = measures.sigmoid(1.7 * logits - 0.6)
    assert measures.calibration(labels, logits) == pytest.approx((1.7, -0.6), abs=1e-3)


def test_the_calibrating_map_stays_finite_and_keeps_the_order():
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, shift = measures.calibration((logits > 0).astype(float), logits)
    assert 1 < scale < 100 and abs(shift) < 1
    assert measures.calibration((logits < 0).astype(float), logits) == (1.0, 0.0)
    assert measures.sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]


def populations(share: float, n: int, seed: int):
    """n texts of two normal kinds, of which `share` are undesired: labels, and the logits of Bayes' rule at a share of 80 %."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(float)
    x = rng.normal(np.where(labels == 1, 1.0, -1.0), 1.0)
    return labels, 2 * x + np.log(0.8 / 0.2)  # log N(x; 1, 1) - log N(x; -1, 1) = 2x


def test_a_share_moves_the_calibration_to_texts_drawn_at_that_share():
    shift = measures.prior_shift(0.1, 0.8)
    drawn_there, logits = populations(0.1, 40_000, 0)
    there = measures.fit_of(drawn_there, measures.sigmoid(logits + shift))
    assert there.ece < 0.005 < 0.2 < measures.fit_of(drawn_there, measures.sigmoid(logits)).ece
    drawn_here, logits = populations(0.8, 40_000, 1)
    here = measures.fit_of(drawn_here, measures.sigmoid(logits + shift), 0.1, 0.8)  # measured without any text of the other
    assert here.ece < 0.01 and here.undesired == drawn_here.sum()
    for a, b in zip(here.reliability, there.reliability, strict=True):
        assert (a.predicted, a.label) == (pytest.approx(b.predicted, abs=0.02), pytest.approx(b.label, abs=0.06))


def test_weights_of_a_graded_label_by_hand():
    labels, weights = measures.weighted(np.array([1.0, 0.0, 0.5]), 0.1, 0.8)
    assert weights == pytest.approx([1 / 8, 4.5, (1 / 8 + 4.5) / 2])  # 0.1 / 0.8, 0.9 / 0.2, and half of each
    assert labels == pytest.approx([1.0, 0.0, (1 / 8) / (1 / 8 + 4.5)])
    same = measures.weighted(np.array([0.3]), 0.8, 0.8)
    assert [float(part[0]) for part in same] == pytest.approx([0.3, 1.0])


def test_a_share_needs_labels_of_both_kinds():
    assert measures.prior_shift(None, 1.0) == 0.0
    with pytest.raises(BadData, match="labels of both kinds, found a mean label of 1; leave it out"):
        measures.prior_shift(0.5, 1.0)
