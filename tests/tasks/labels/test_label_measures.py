"""Discrimination and calibration, held against scikit-learn and by hand."""

import numpy as np
import pytest

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
