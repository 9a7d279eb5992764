"""The optimal reward-KL frontier: the highest reward of any policy at a given KL, estimated from rewards of base responses.

Of all policies with the same KL to the base policy pi0, the tilted policy pi0(y|x) exp(lambda r(x,y)) / Z_x(lambda)
has the highest expected reward (Korbak et al. 2022, arXiv:2205.11275). With log Z(lambda) the mean over prompts of
log Z_x(lambda) = log E_pi0[exp(lambda r)], every policy and every lambda > 0 obey E[r] <= (KL + log Z(lambda)) / lambda
(Donsker and Varadhan 1983), so

    R*(K) = min over lambda of (K + log Z(lambda)) / lambda     the highest reward at a KL of K nats
    K*(R) = max over lambda of lambda R - log Z(lambda)         the lowest KL at an expected reward of R

All prompts share one lambda, which is the optimal allocation of a budget of mean KL. Their responses are never pooled: a tilt
of the pool would also reweight the prompts, which no policy can do.

Estimating Z from M responses fails silently if the tilt puts its mass on responses that were never sampled: the curve is then
too low. `solid` marks the range in which the estimate is reliable; beyond it only `upper` holds, the frontier as if each
prompt had one further response with reward 1, which is a bound in expectation for any M (`_augmented`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import BadData, BadSetting, Degraded, EmptySelection
from harness.core.types import Metric

POINTS = 60
"""Number of points of the curve. They are for plotting: `reward_at` and `kl_at` solve for lambda exactly."""
ENOUGH_RESPONSES = 50
"""Minimum effective sample size exp(H(w)) = M exp(-KL) of a prompt; the required sample size grows as exp(KL)
(Chatterjee and Diaconis 2018, arXiv:1511.01437)."""
LARGEST_WEIGHT = 0.05
"""Maximum share of a prompt's weight on one response."""
HALF_THE_WEIGHT = 20
"""Minimum number of responses that carry half of a prompt's weight."""
FRAIL_PROMPTS = 0.05
"""Maximum share of prompts that may fail the three criteria above, so that a single outlier does not end the curve."""
RESPONSES_PER_N = 10
"""Minimum ratio of base responses per prompt to n of best-of-n; below it a few responses decide the best of n."""
NO_DRIFT = 1e-4
"""KL in nats below which a policy has not moved within rounding, so that ratios to it are undefined."""
TOLERANCE = 1e-6
"""Tolerance for rounding in the comparison with the frontier, in nats and in reward."""


class Law(NamedTuple):
    """The distribution of the reward under the base policy for each prompt."""

    reward: NDArray[np.float64]  # [X, M], 0 where log_p is -inf
    log_p: NDArray[np.float64]  # [X, M] nats, -inf for an unused response


class Tilt(NamedTuple):
    """The tilted policy at one lambda."""

    log_z: NDArray[np.float64]  # [X] nats
    reward: NDArray[np.float64]  # [X]
    kl: NDArray[np.float64]  # [X] nats, to the base policy
    weights: NDArray[np.float64]  # [X, M], each row sums to 1


class BestOfN(NamedTuple):
    """KL and reward of best-of-n sampling from the base policy; kl in nats per response."""

    n: int
    kl: float
    reward: float
    reward_stderr: float | None


class Placement(NamedTuple):
    """A policy relative to the frontier; n of each metric counts prompts.

    efficiency  K*(R) / KL, 0 to 1: the lowest KL at its reward, as a share of its KL
    excess_kl   KL - K*(R), nats: the KL to the nearest tilted policy
    regret      R*(KL) - R: the reward lost at its KL
    above       the policy is above the frontier by more than three standard errors, which indicates a bug in the suite
    solid       the frontier is reliable at the policy's reward and at its KL; if not, the metric's reason names the bound
    lam         lambda of the tilted policy with the policy's reward
    least_kl    terms of K*(R) by prompt in nats, [X], whose mean is K*(R); NaN for a prompt that is left out
    highest     terms of R*(KL) by prompt, [X], whose mean is R*(KL)
    """

    efficiency: Metric
    excess_kl: Metric
    regret: Metric
    above: bool
    solid: bool
    lam: float
    least_kl: NDArray[np.float64]
    highest: NDArray[np.float64]


@dataclass(frozen=True)
class Frontier:
    """The curve at L values of lambda, means over prompts; other points are solved from `law` on demand.

    reward_stderr is that of R*(K) at the point's KL and kl_stderr that of K*(R) at its reward: a vertical and a
    horizontal error bar, with the prompt as the unit. With one prompt they are NaN, and no point is solid.
    """

    lam: NDArray[np.float64]  # [L] ascending from 0
    kl: NDArray[np.float64]  # [L] nats
    reward: NDArray[np.float64]  # [L]
    log_z: NDArray[np.float64]  # [L] nats
    reward_stderr: NDArray[np.float64]  # [L]
    kl_stderr: NDArray[np.float64]  # [L] nats
    solid: NDArray[np.bool_]  # [L], True up to some lambda
    law: Law

    @property
    def base_reward(self) -> float:
        """E[r] of the base policy."""
        return float(self.reward[0])

    def reward_at(self, kl: float) -> tuple[float, float | None]:
        """R*(K) with its standard error: the highest expected reward at a mean KL of K nats (Donsker-Varadhan)."""
        terms = _reward_terms(self.law, _lambda_at(self.law, "kl", kl), kl)
        return float(terms.mean()), _stderr(terms)

    def kl_at(self, reward: float) -> tuple[float, float | None]:
        """K*(R) in nats with its standard error: the lowest mean KL at an expected reward of R (Donsker-Varadhan).

        0 at or below the base reward; infinite, without an error, above the mean over prompts of the best sampled reward.
        """
        if reward > _tilt(self.law, np.inf).reward.mean() + TOLERANCE:
            return math.inf, None
        terms = _kl_terms(self.law, _lambda_at(self.law, "reward", reward), reward)
        return max(0.0, float(terms.mean())), _stderr(terms)

    def upper(self, kl: float) -> float:
        """An upper bound, up to sampling error, on the expected reward of any policy at a mean KL of K nats, solid or not."""
        law = _augmented(self.law)
        return min(1.0, float(_reward_terms(law, _lambda_at(law, "kl", kl), kl).mean()))

    def best_of_n(self, ns: Sequence[int]) -> list[BestOfN]:
        """Best-of-n for each n, with ties in reward broken at random (Beirami et al. 2024, arXiv:2401.01879).

        Exact for the empirical distribution of the rewards. An n is left out if a prompt has fewer than 10 n scored responses.
        """
        scored = int((self.law.log_p > -np.inf).sum(1).min())
        return [_best_of_n(self.law, n) for n in ns if n * RESPONSES_PER_N <= scored]

    def place(self, reward: NDArray[np.float64], kl: NDArray[np.float64]) -> Placement:
        """The placement of a policy from its mean reward and KL (nats) on each of the same prompts, same order: [X], [X].

        A prompt with NaN in either is left out, from the frontier too. Errors are paired by prompt, with lambda fixed at its
        optimum (envelope theorem). A policy is above if excess_kl and regret are both below -3 standard errors relative to
        `upper`, not to the curve, which is too low where responses of high reward were never sampled. Raises ValueError if
        the shapes differ.
        """
        reward, kl = np.asarray(reward, dtype=float), np.asarray(kl, dtype=float)
        expected = self.law.reward.shape[:1]
        if not reward.shape == kl.shape == expected:
            raise ValueError(f"expected a reward and a KL for each of {expected[0]} prompts; found {reward.shape}, {kl.shape}")
        known = ~np.isnan(reward + kl)
        law = Law(self.law.reward[known], self.law.log_p[known])
        found = _place(law, reward[known], kl[known], int((~known).sum()), self._solid_to())
        return found._replace(least_kl=at_places(known, found.least_kl), highest=at_places(known, found.highest))

    def record(self) -> dict[str, Any]:
        """The frontier as plain data for a run's record: no arrays, no NaN, no infinity."""
        columns = (self.lam, self.kl, self.reward, self.reward_stderr, self.kl_stderr, self.solid)
        names = ("lambda", "kl", "reward", "reward_stderr", "kl_stderr", "solid")
        scored = self.law.log_p > -np.inf
        return {
            "base_reward": self.base_reward,
            "n_prompts": len(scored),
            "n_samples": int(scored.sum()),
            "n_unscored": int((~scored).sum()),
            "curve": [dict(zip(names, map(_plain, point), strict=True)) for point in zip(*columns, strict=True)],
            "upper": self._upper_curve(),
            "best_of_n": [point._asdict() for point in self.best_of_n([2**i for i in range(11)])],
        }

    def _solid_to(self) -> float:
        """The largest lambda that is solid: infinite if all are, -1 if none is."""
        if self.solid.all():
            return math.inf
        return float(self.lam[self.solid][-1]) if self.solid.any() else -1.0

    def _upper_curve(self) -> list[dict[str, float]]:
        """Points of `upper`, from the base policy to reward 1."""
        law = _augmented(self.law)
        tilts = [_tilt(law, lam) for lam in _grid(law)]
        return [{"kl": float(t.kl.mean()), "reward": float(t.reward.mean())} for t in tilts]


def at_places(known: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of the known prompts at their places among all, NaN for the others: [X] bool, [K] -> [X]."""
    found = np.full(len(known), np.nan)
    found[known] = values
    return found


def estimate(rewards: NDArray[np.float64]) -> Frontier:
    """Estimate the frontier from rewards in [0, 1] of M base responses per prompt (temperature 1, no truncation): [X, M].

    NaN marks an unscored response, which is left out. Raises EmptySelection without rewards, BadData for a reward out of
    range, and Degraded for a prompt without a scored response.
    """
    rewards = np.asarray(rewards, dtype=float)
    scored = ~np.isnan(rewards)
    _check(rewards, scored)
    law, halves = _empirical(rewards, scored), _halves(scored)
    lam, holds, points = _grid(law), True, []
    for x in lam:
        tilt = _tilt(law, x)
        holds = holds and _enough_weight(law, tilt) and _stands_halving(law, tilt, halves)  # once False, always
        means = (float(v.mean()) for v in (tilt.kl, tilt.reward, tilt.log_z))
        points.append((*means, _error(_reward_terms(law, x, tilt.kl.mean())), _error(tilt.log_z), holds))
    kl, reward, log_z, reward_stderr, kl_stderr, solid = np.array(points).T
    return Frontier(lam, kl, reward, log_z, reward_stderr, kl_stderr, solid.astype(bool), law)


def best_of_n_kl(rewards: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """KL(best-of-n || base) of each prompt in nats, by the distinct values of its rewards: [X, M] -> [X]; NaN is left out.

    The closed form is sum_k q_k log(q_k / p_k) with q_k = F_k^n - F_(k-1)^n; log n - (n-1)/n is only an upper bound, and
    loose if rewards tie (Beirami et al. 2024, arXiv:2401.01879).
    """
    rewards = np.asarray(rewards, dtype=float)
    scored = ~np.isnan(rewards)
    _check(rewards, scored)
    law = _empirical(rewards, scored)
    return np.array([_best_of_n_prompt(r, log_p, n)[0] for r, log_p in zip(*law, strict=True)])


def _check(rewards: NDArray[np.float64], scored: NDArray[np.bool_]) -> None:
    if rewards.size == 0:
        raise EmptySelection(f"expected rewards of at least one prompt and response; found shape {rewards.shape}")
    outside = scored & ~((rewards >= 0) & (rewards <= 1))
    if outside.any():
        raise BadData(f"rewards must lie in [0, 1]; found {rewards[outside][0]} for prompt {np.argwhere(outside)[0][0]}")
    if not scored.any(1).all():
        raise Degraded(f"no base response to prompt {int(scored.any(1).argmin())} could be scored; expected at least one")


def _empirical(rewards: NDArray[np.float64], use: NDArray[np.bool_]) -> Law:
    """The empirical distribution, with equal mass on each used response of a prompt: [X, M], [X, M] bool -> Law."""
    count = use.sum(1, keepdims=True)
    return Law(np.where(use, rewards, 0.0), np.where(use, -np.log(count), -np.inf))


def _halves(scored: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two halves of the scored responses of each prompt, alternating; a single response is in both: [X, M] bool each."""
    odd = scored.cumsum(1) % 2 == 1
    alone = scored.sum(1, keepdims=True) == 1
    return scored & odd, scored & (~odd | alone)


def _augmented(law: Law) -> Law:
    """The law with one further response of reward 1 for each prompt, whose log Z is in expectation at least the true one.

    Proof: let u = (e^(lambda r) - 1) / c in [0, 1] with c = e^lambda - 1, so that Z = 1 + c E[u] and this law's
    Z' = 1 + c (sum u_i + 1) / (M + 1). Flip a coin N_i ~ u_i for each response: as log is concave, E log Z' >=
    E log(1 + c (N+1)/(M+1)) with N binomial, >= -log E[h(N+1)] with h(k) = 1 / (1 + c k/(M+1)). And E[h(N+1)] =
    E[N' h(N')] / ((M+1) E[u]) with N' binomial of M+1, <= 1 / (1 + c E[u]) since k h(k) is concave. It is tighter than
    log(1 + c r0), which convexity of exp gives from the mean reward r0 alone, and no smaller than the curve's own log Z.
    """
    count = (law.log_p > -np.inf).sum(1, keepdims=True)
    one = np.ones_like(law.reward[:, :1])
    log_p = np.concatenate([law.log_p + np.log(count / (count + 1)), -np.log(count + 1)], 1)
    return Law(np.concatenate([law.reward, one], 1), log_p)


def _tilt(law: Law, lam: float) -> Tilt:
    """The law tilted by exp(lambda r), by log-sum-exp; at an infinite lambda it is conditioned on the highest reward."""
    best = law.reward.max(1, keepdims=True)
    below = law.reward - best
    log_tilt = np.where(below < 0, -np.inf, 0.0) if lam == np.inf else lam * below
    log_w = log_tilt + law.log_p
    top = log_w.max(1, keepdims=True)
    w = np.exp(log_w - top)
    total = w.sum(1, keepdims=True)
    w /= total
    log_z = (top + np.log(total))[:, 0]  # of exp(lambda (r - best)): no cancellation at a large lambda
    gap = (w * below).sum(1)
    drop = 0.0 if lam == np.inf else lam * gap
    return Tilt(lam * best[:, 0] + log_z if lam < np.inf else log_z, best[:, 0] + gap, np.maximum(drop - log_z, 0.0), w)


def _lambda_at(law: Law, name: str, target: float) -> float:
    """The lambda, from 0 to infinity, at which the mean KL or reward of the tilted policy equals the target.

    There (K + log Z) / lambda is minimal and lambda R - log Z maximal. Both means increase with lambda, so the root is found
    by false position with the Illinois modification (an end that is kept twice has its residual halved).
    """

    def at(lam: float) -> float:
        return float(getattr(_tilt(law, lam), name).mean())

    if target <= at(0.0):
        return 0.0
    if target >= at(np.inf):
        return np.inf
    low, high, short, over = 0.0, 1.0, at(0.0) - target, at(1.0) - target
    while over < 0:
        low, high, short, over = high, 2 * high, over, at(2 * high) - target
    last = 0.0
    while True:
        lam = (low * over - high * short) / (over - short)
        miss = at(lam) - target
        if abs(miss) < 1e-9 * target + 1e-14:  # the error of R* and K* is of the second order in it
            return lam
        if miss < 0:
            low, short, over = lam, miss, over / 2 if last < 0 else over
        else:
            high, over, short = lam, miss, short / 2 if last > 0 else short
        last = miss


def _kl_terms(law: Law, lam: float, reward: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """lambda R_x - log Z_x(lambda) of each prompt in nats, whose mean is K*(R) at the optimal lambda: -> [X]."""
    tilt = _tilt(law, lam)
    return tilt.kl if lam == np.inf else lam * reward - tilt.log_z


def _reward_terms(law: Law, lam: float, kl: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """(K_x + log Z_x(lambda)) / lambda of each prompt, whose mean is R*(K) at the optimal lambda: -> [X]."""
    tilt = _tilt(law, lam)
    return tilt.reward if lam in (0, np.inf) else (kl + tilt.log_z) / lam


def _grid(law: Law) -> NDArray[np.float64]:
    """A grid of lambda: 0, then geometric from 0.01 / sd of the reward to where the reward saturates: -> [L]."""
    base, best = _tilt(law, 0.0), _tilt(law, np.inf).reward.mean()
    sd = math.sqrt(float((base.weights * (law.reward - base.reward[:, None]) ** 2).sum(1).mean()))
    scale = 1 / sd if sd > 1e-9 else 1.0
    last = scale
    while best - _tilt(law, last).reward.mean() > 1e-4 * (best - base.reward.mean()) + 1e-12:
        last *= 2
    return np.concatenate([[0.0], np.geomspace(scale / 100, last, POINTS - 1)])


def _enough_weight(law: Law, tilt: Tilt) -> bool:
    """True if the weight is spread over enough responses, in all but FRAIL_PROMPTS of the prompts."""
    count = (law.log_p > -np.inf).sum(1)
    few = min(HALF_THE_WEIGHT - 1, tilt.weights.shape[1])
    heaviest = np.partition(tilt.weights, -few, axis=1)[:, -few:]
    good = count * np.exp(-tilt.kl) >= ENOUGH_RESPONSES - TOLERANCE
    good &= (heaviest.max(1) <= LARGEST_WEIGHT) & (heaviest.sum(1) < 0.5)
    return bool(good.mean() >= 1 - FRAIL_PROMPTS)


def _stands_halving(law: Law, tilt: Tilt, halves: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> bool:
    """True if half of the responses give the same curve within two standard errors.

    The mean over the two halves differs from the whole by about the bias of the whole, which the error bar must cover.
    """
    share = np.maximum([(tilt.weights * half).sum(1) for half in halves], 1e-300)  # [2, X]
    count = np.array([half.sum(1) for half in halves])
    log_z = np.log(share * (law.log_p > -np.inf).sum(1) / count)  # difference from that of the whole
    reward = [(tilt.weights * law.reward * half).sum(1) for half in halves] / share - tilt.reward
    moves = ((log_z, tilt.log_z), (reward, tilt.reward))
    return all(abs(move.mean()) <= 2 * _error(whole) + TOLERANCE for move, whole in moves)


def _best_of_n(law: Law, n: int) -> BestOfN:
    kl, reward = np.array([_best_of_n_prompt(r, log_p, n) for r, log_p in zip(*law, strict=True)]).T
    return BestOfN(n, float(kl.mean()), float(reward.mean()), _stderr(reward))


def _best_of_n_prompt(reward: NDArray[np.float64], log_p: NDArray[np.float64], n: int) -> tuple[float, float]:
    """KL (nats) and expected reward of the best of n responses to one prompt: [M], [M] -> two numbers."""
    if n < 1:
        raise BadSetting(f"expected an n of best-of-n of at least 1; found {n}")
    levels, counts = np.unique(reward[log_p > -np.inf], return_counts=True)
    p = counts / counts.sum()
    below_or_at = counts.cumsum() / counts.sum()
    q = np.diff(below_or_at**n, prepend=0.0)
    held = q > 0  # the mass of a low reward can underflow to 0
    return float((q[held] * np.log(q[held] / p[held])).sum()), float(q @ levels)


def _place(law: Law, reward: NDArray[np.float64], kl: NDArray[np.float64], left_out: int, solid_to: float) -> Placement:
    if len(reward) == 0:
        nothing, none = Metric(None, None, 0, left_out, "no prompt has both a reward and a KL"), np.zeros(0)
        return Placement(nothing, nothing, nothing, above=False, solid=False, lam=0.0, least_kl=none, highest=none)
    unreached = bool(reward.mean() > _tilt(law, np.inf).reward.mean() + TOLERANCE)
    for_reward = _augmented(law) if unreached else law
    by_reward, by_kl = _lambda_at(for_reward, "reward", float(reward.mean())), _lambda_at(law, "kl", float(kl.mean()))
    known_reward, known_kl = by_reward <= solid_to and not unreached, by_kl <= solid_to

    needed = _kl_terms(for_reward, by_reward, reward)
    highest = _reward_terms(law, by_kl, kl)
    # log Z of few responses is too low in expectation, so K*(R) is too high and R*(K) too low; with the further response
    # of reward 1 it is the other way round
    high, low = (_beyond(known_reward, "upper"), _beyond(known_reward, "lower"))
    if unreached:
        high, low = (f"above every reward of the base responses: {side} bound" for side in ("a lower", "an upper"))
    excess = _metric(kl - needed, left_out, low)
    regret = _metric(highest - reward, left_out, _beyond(known_kl, "lower"))
    efficiency = _efficiency(needed, kl, left_out, high)
    above = _is_above(law, reward, kl)
    return Placement(efficiency, excess, regret, above, known_reward and known_kl, by_reward, needed, highest)


def _beyond(known: bool, side: str) -> str | None:
    article = "an" if side == "upper" else "a"
    return None if known else f"beyond the solid range of the frontier: {article} {side} bound"


def _efficiency(needed: NDArray[np.float64], kl: NDArray[np.float64], left_out: int, reason: str | None) -> Metric:
    """The ratio of mean `needed` to mean `kl` (nats, [X] each), with its standard error by the delta method."""
    if kl.mean() < NO_DRIFT:
        return Metric(None, None, len(kl), left_out, "KL is zero within error; efficiency is undefined")
    value = needed.mean() / kl.mean()
    stderr = _stderr((needed - value * kl) / kl.mean())
    return Metric(float(min(max(value, 0.0), 1.0)), stderr, len(kl), left_out, reason)


def _is_above(law: Law, reward: NDArray[np.float64], kl: NDArray[np.float64]) -> bool:
    """True if the policy is above `upper` by more than three standard errors: [X], [X] nats -> bool."""
    bound = _augmented(law)
    excess = kl - _kl_terms(bound, _lambda_at(bound, "reward", float(reward.mean())), reward)
    regret = _reward_terms(bound, _lambda_at(bound, "kl", float(kl.mean())), kl) - reward
    # the error of one prompt is NaN, which compares as False
    return all(bool(x.mean() < -(3 * _error(x) + TOLERANCE)) for x in (excess, regret))


def _metric(terms: NDArray[np.float64], left_out: int, reason: str | None) -> Metric:
    return Metric(float(terms.mean()), _stderr(terms), len(terms), left_out, reason)


def _error(terms: NDArray[np.float64]) -> float:
    """Standard error of the mean over prompts, NaN for one prompt: [X] -> number."""
    return float(terms.std(ddof=1) / math.sqrt(len(terms))) if len(terms) > 1 else math.nan


def _stderr(terms: NDArray[np.float64]) -> float | None:
    return None if math.isnan(error := _error(terms)) else error


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python value, NaN as None."""
    value = value.item()
    return None if value != value else value
