"""How well predicted scores match labels: discrimination, rank correlation and calibration, and a map that calibrates.

Labels and predictions lie in [0, 1], higher is worse; a label of 0.5 or more counts as undesired.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.api import Settings

THRESHOLD = 0.5
BINS = 10
STEPS, RIDGE = 100, 1e-3  # Newton steps; penalty that keeps the map finite where the labels can be separated


class Bin(Settings):
    """The predictions in one interval."""

    low: float
    high: float
    n: int
    predicted: float | None  # mean prediction; None if there is none
    label: float | None  # mean label


class Fit(Settings):
    """The match of predictions with held-out labels."""

    n: int
    undesired: int  # labels of 0.5 or more
    auc: float | None  # area under the ROC curve; None if all labels lie on one side
    spearman: float | None  # rank correlation; None if all labels or all predictions are equal
    ece: float  # expected calibration error: mean |mean prediction - mean label| over the bins
    reliability: tuple[Bin, ...]


def fit_of(labels: NDArray, predicted: NDArray) -> Fit:
    """The match of predictions with labels: [N], [N]; numbers are rounded to six digits."""
    undesired = labels >= THRESHOLD
    bins = _reliability(labels, predicted)
    ece = sum(b.n * abs(b.predicted - b.label) for b in bins if b.predicted is not None and b.label is not None) / len(labels)
    return Fit(
        n=len(labels), undesired=int(undesired.sum()), auc=rounded(auc(undesired, predicted)),
        spearman=rounded(spearman(labels, predicted)), ece=round(ece, 6), reliability=tuple(bins),
    )  # fmt: skip


def rounded(value: float | None) -> float | None:
    """A number with six digits after the point."""
    return None if value is None else round(value, 6)


def auc(undesired: NDArray, predicted: NDArray) -> float | None:
    """The probability that an undesired text is predicted above another, ties a half: [N] bool, [N]; None if undefined."""
    from scipy.stats import rankdata

    n = int(undesired.sum())
    if n in (0, len(undesired)):
        return None
    return float((rankdata(predicted)[undesired].sum() - n * (n + 1) / 2) / (n * (len(undesired) - n)))


def spearman(labels: NDArray, predicted: NDArray) -> float | None:
    """Spearman's rank correlation: [N], [N]; None if undefined."""
    from scipy.stats import rankdata

    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return None
    return float(np.corrcoef(rankdata(labels), rankdata(predicted))[0, 1])


def _reliability(labels: NDArray, predicted: NDArray) -> list[Bin]:
    place = np.minimum((predicted * BINS).astype(int), BINS - 1)
    found = []
    for i in range(BINS):
        here = place == i
        means = [round(float(x[here].mean()), 6) if here.any() else None for x in (predicted, labels)]
        found.append(Bin(low=i / BINS, high=(i + 1) / BINS, n=int(here.sum()), predicted=means[0], label=means[1]))
    return found


def sigmoid(x: NDArray) -> NDArray:
    """1 / (1 + exp(-x)) without overflow: [N] -> [N]."""
    return 0.5 * (1 + np.tanh(x / 2))


def calibration(labels: NDArray, logits: NDArray) -> tuple[float, float]:
    """Scale and shift of the logits that minimise the cross-entropy with the labels (Platt's map): [N], [N].

    A scale below zero, which would turn the order of the texts around, is replaced by the identity's.
    """
    at = np.array([1.0, 0.0])
    x = np.stack([logits, np.ones_like(logits)], 1)
    for _ in range(STEPS):
        p = sigmoid(x @ at)
        gradient = x.T @ (p - labels) + RIDGE * (at - [1.0, 0.0])
        curvature = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        at = at - step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if float(np.abs(step).max()) < 1e-10:
            break
    return (float(at[0]), float(at[1])) if at[0] > 0 else (1.0, 0.0)
