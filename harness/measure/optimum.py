"""The judge's score of the policies that are optimal for the reward: what over-optimisation is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .frontier import TOLERANCE, Frontier, at_places


def judge_at_reward(
    base_reward: NDArray[np.float64], base_judge: NDArray[np.float64], reward: NDArray[np.float64], lam: float
) -> NDArray[np.float64]:
    """Terms by prompt of the judge's score J* of the policy on the frontier with the same mean reward: -> [X].

    From reward and judge of the base responses, [X, M] each, the rewards of the policy, [X], and the lambda at which the tilted
    policy has their mean. The mean of the terms is J*; their spread holds the error of the reward too, times the slope of J*
    (delta method). NaN for a prompt without a reward or without a base response that both could score.
    """
    scored = ~(np.isnan(base_reward) | np.isnan(base_judge))
    known = ~np.isnan(reward) & scored.any(1)
    use = scored[known]
    r, j = (np.where(use, values[known], 0.0) for values in (base_reward, base_judge))
    below = np.where(use, r - np.where(use, r, -np.inf).max(1, keepdims=True), 0.0)
    weights = np.where(below < 0, 0.0, 1.0) if lam == np.inf else np.exp(lam * below)
    weights = np.where(use, weights, 0.0)
    weights /= weights.sum(1, keepdims=True)
    mean_r, mean_j = (weights * r).sum(1), (weights * j).sum(1)
    variance = ((weights * r**2).sum(1) - mean_r**2).mean()
    covariance = ((weights * r * j).sum(1) - mean_r * mean_j).mean()
    slope = covariance / variance if variance > TOLERANCE and lam < np.inf else 0.0
    moved = reward[known] - mean_r
    return at_places(known, mean_j + slope * (moved - moved.mean()))


def judge_along(frontier: Frontier, reward: NDArray[np.float64], judge: NDArray[np.float64]) -> dict[str, list[float]]:
    """Judge scores of the policies on the frontier, optimal for the reward: [X, M], [X, M] -> KL and judge, each [L]."""
    scored = ~(np.isnan(reward) | np.isnan(judge))
    reward, judge = np.where(scored, reward, -np.inf), np.where(scored, judge, 0.0)
    judged = []
    for lam in frontier.lam:
        tilt = np.where(scored, np.exp(lam * (np.where(scored, reward, 0.0) - reward.max(1, keepdims=True))), 0.0)
        judged.append(float(((tilt * judge).sum(1) / tilt.sum(1)).mean()))
    return {"kl": [float(k) for k in frontier.kl], "judge": judged}
