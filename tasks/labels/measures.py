"""How well predicted scores match labels: discrimination, rank correlation and calibration, and a map that calibrates.

Labels and predictions lie in [0, 1], higher is worse; a label of 0.5 or more counts as undesired.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.api import BadData, Settings

THRESHOLD = 0.5
BINS = 10
STEPS, RIDGE = 100, 1e-3  # Newton steps; penalty that keeps the map finite where the labels can be separated


class CommonSettings(Settings):
    """Settings that both kinds of trained scorers have."""

    undesired_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of undesired texts where it will score, which moves its calibration [as in the data]",
    )


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
    ece: float  # expected calibration error: mean |mean prediction - mean label| over the bins, weighted to the settings' share
    reliability: tuple[Bin, ...]


def fit_of(labels: NDArray, predicted: NDArray, share: float | None = None, of: float | None = None) -> Fit:
    """The match of predictions with labels: [N], [N]; numbers are rounded to six digits.

    With predictions for texts of which `share` are undesired, in place of the share `of` that the labels were drawn with, the
    calibration is that of the texts weighted to this share.
    """
    undesired = labels >= THRESHOLD
    there, weights = (labels, np.ones_like(labels)) if share is None or of is None else weighted(labels, share, of)
    bins, ece = _reliability(there, predicted, weights)
    return Fit(
        n=len(labels), undesired=int(undesired.sum()), auc=rounded(auc(undesired, predicted)),
        spearman=rounded(spearman(labels, predicted)), ece=round(ece, 6), reliability=tuple(bins),
    )  # fmt: skip


def weighted(labels: NDArray, share: float, of: float) -> tuple[NDArray, NDArray]:
    """Texts drawn with the share `of` undesired as if `share` were: [N] labels -> [N] labels, [N] weights.

    Importance weights; a label between 0 and 1 counts as that part of an undesired text, and the rest of a desired one.
    """
    worse, better = labels * share / of, (1 - labels) * (1 - share) / (1 - of)
    return worse / (worse + better), worse + better


def prior_shift(share: float | None, of: float) -> float:
    """The shift of logits calibrated where the share `of` is undesired that calibrates them where `share` is; 0 for None.

    Bayes' rule: Saerens et al. 2002, section 2.2. Raises BadData if all texts of the data have the same label.
    """
    if share is None:
        return 0.0
    if not 0 < of < 1:
        raise BadData(f"undesired_share needs labels of both kinds, found a mean label of {of:g}; leave it out")
    return float(np.log(share / (1 - share)) - np.log(of / (1 - of)))


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


def _reliability(labels: NDArray, predicted: NDArray, weights: NDArray) -> tuple[list[Bin], float]:
    """The bins, and the expected calibration error."""
    place = np.minimum((predicted * BINS).astype(int), BINS - 1)
    found, ece = [], 0.0
    for i in range(BINS):
        here = place == i
        means = [float(np.average(x[here], weights=weights[here])) for x in (predicted, labels)] if here.any() else None
        ece += 0.0 if means is None else float(weights[here].sum() / weights.sum()) * abs(means[0] - means[1])
        shown = (None, None) if means is None else (rounded(means[0]), rounded(means[1]))
        found.append(Bin(low=i / BINS, high=(i + 1) / BINS, n=int(here.sum()), predicted=shown[0], label=shown[1]))
    return found, ece


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
