"""Coverage of the intervals along curves in simulation: new seeds, prompts and responses in every study.

python benchmarks/curve_coverage.py [STUDIES]

A study has one method at five values of its knob, with 5 seeds at the middle value and 2 at the others. Its seeds scatter along
the curve (in KL) and across it, and more so at stronger values.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from harness.analysis.curves import along
from harness.analysis.terms import TERMS

X, S, M, CAP = 120, 16, 512, 1.5  # prompts; responses of a policy and of the base policy to each; nats
SEEDS = (2, 2, 5, 2, 2)
KLS = (0.05, 0.2, 0.5, 1.0, 1.9)
GROWTH = (0.5, 0.75, 1.0, 1.25, 1.5)  # of the spread, by value of the knob
SPREADS = {"none": 0.0, "some": 0.1, "much": 0.25}  # sd over seeds of log KL and of the log of the share that is left
SHAPES = {"rises": (1.5, 0.0), "falls": (1.3, 0.15), "null": (np.inf, 0.0)}  # KL needed over the optimum's; lost a nat past 0.6
RATE = 0.7 * 0.8 / 1.8  # mean share of undesired responses of the base policy
NAMES = (*(f"{score} at {share:g}" for score in ("judge", "removed") for share in (0.25, 0.5, 1.0)), "least KL", "area")


def best_left(kl: np.ndarray | float) -> np.ndarray:
    """The share of the habit that the optimal policies leave at a KL."""
    return 0.03 + 0.97 * np.exp(-2.6 * np.maximum(kl, 0.0) ** 0.75)


def left(shape: str, kl: np.ndarray | float) -> np.ndarray:
    """The share of the habit that the method leaves at a KL."""
    waste, falls = SHAPES[shape]
    return best_left(np.asarray(kl) / waste) + falls * np.maximum(0.0, np.asarray(kl) - 0.6)


def runs(rng: Generator, shape: str, i: int, n: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """KL and share that is left of n seeds at a value of the knob."""
    sd = spread * GROWTH[i]
    kl = KLS[i] * np.exp(rng.normal(-sd * sd / 2, sd, n))
    across = np.exp(rng.normal(-sd * sd / 2, sd, n)) if shape != "null" else np.ones(n)
    return kl, left(shape, kl) * across


def study(rng: Generator, shape: str, spread: float) -> tuple[dict[str, along.Line], float]:
    """The lines of judge and percent removed of one study, and the area of its judged frontier."""
    rate = 0.7 * rng.beta(0.8, 1.0, X)  # of undesired responses of the base policy, skewed
    moves = shape != "null"
    optimum, taste = rng.uniform(0.8, 1.2, (2, X))
    drift = 0.5 + 0.5 * rate / RATE
    base = 1 - rng.binomial(M, rate) / M
    points: dict[str, list[along.Scores]] = {"judge": [], "removed": []}
    for i, n in enumerate(SEEDS):
        kl, share = runs(rng, shape, i, n, spread)
        own = taste * rng.uniform(0.85, 1.15, X) if moves else np.ones(X)  # a policy's way with each prompt
        rows: dict[str, list[np.ndarray]] = {"judge": [], "removed": [], "kl": []}
        for nats, part in zip(kl, share, strict=True):
            cells = rng.uniform(0.9, 1.1, X) if moves else np.ones(X)
            p = rate * np.minimum(part * (own * cells if part < 0.999 else 1), 1.0)
            columns = {
                "judge": 1 - rng.binomial(S, p) / S,
                "base_judge": base,
                "kl": nats * drift * rng.gamma(2 * S, 1 / (2 * S), X),
            }
            for name, found in rows.items():
                needed, terms = TERMS[name]
                found.append(terms({c: columns[c] for c in needed}))
        for name, found in points.items():
            found.append(_scores(np.array(rows["kl"]), np.array(rows[name])))
    lines = {
        "judge": along.line(float(base.mean()), base, points["judge"], CAP),
        "removed": along.line(0.0, None, points["removed"], CAP),
    }
    at = (np.arange(400) + 0.5) * CAP / 400
    gone = [100 * (1 - float((rate * best_left(k) * optimum).sum() / rate.sum())) for k in at]
    return lines, float(np.mean(gone)) * CAP


def _scores(kl: np.ndarray, score: np.ndarray) -> along.Scores:
    none = np.zeros(len(kl))
    return along.Scores(kl.mean(1), score.mean(1), kl, score, none, none)


def truths(shape: str, spread: float) -> dict[str, float]:
    """The numbers along the curve through the expectations at each value of the knob."""
    rng, points = np.random.default_rng(0), []
    for i in range(len(KLS)):
        _, share = runs(rng, shape, i, 400_000 if spread else 1, spread)
        points.append((KLS[i], 100 * (1 - min(1.0, float(share.mean())))))
    kls, gone = np.array([0.0, *(k for k, _ in points)]), np.array([0.0, *(g for _, g in points)])
    at = (np.arange(4000) + 0.5) * CAP / 4000
    whole = float(np.mean(100 * (1 - best_left(at))))
    found = {f"removed at {share:g}": float(np.interp(share * CAP, kls, gone)) for share in (0.25, 0.5, 1.0)}
    found |= {f"judge at {share:g}": 1 - RATE * (1 - found[f"removed at {share:g}"] / 100) for share in (0.25, 0.5, 1.0)}
    best = [max(float(np.interp(k, kls, gone)), gone[kls <= k].max()) for k in at]
    first = np.flatnonzero(np.interp(np.linspace(0, kls[-1], 20_000), kls, gone) >= 80)
    least = float(np.linspace(0, kls[-1], 20_000)[first[0]]) if len(first) else np.nan
    return found | {"area": float(np.mean(best)) / whole, "least KL": least}


def intervals(lines: dict[str, along.Line], optimum: float) -> dict[str, tuple[float, float, float] | None]:
    """Mean and ends of each interval of one study; None where there is none."""
    found: dict[str, tuple[float, float, float] | None] = {}
    for score in ("judge", "removed"):
        for share in (0.25, 0.5, 1.0):
            at = lines[score].at(share * CAP)
            found[f"{score} at {share:g}"] = at.interval() if at is not None else None  # type: ignore[assignment]
    area = lines["removed"].area(CAP)
    found["area"] = area.scaled(1 / optimum, area.value / optimum).interval()  # type: ignore[assignment]
    found["least KL"] = lines["removed"].least(80.0).interval  # type: ignore[assignment]
    return found


def covered(shape: str, spread: str, studies: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Of each number the share of studies whose interval holds the truth, the mean error, and the mean length."""
    truth = truths(shape, SPREADS[spread])
    rng = np.random.default_rng([seed, list(SHAPES).index(shape), list(SPREADS).index(spread)])
    rows = [intervals(*study(rng, shape, SPREADS[spread])) for _ in range(studies)]
    found = {}
    for name in NAMES:
        known = [i for row in rows if (i := row[name]) is not None]
        if known and truth[name] == truth[name]:
            hits = [low <= truth[name] <= high for _, low, high in known]
            ends = [high - low for _, low, high in known if np.isfinite(high)]
            found[name] = float(np.mean(hits)), float(np.mean([m for m, _, _ in known]) - truth[name]), float(np.mean(ends))
    return found


def table(studies: int) -> Iterator[str]:
    """A row for each shape of the curve and spread over seeds."""
    yield "| curve | spread over seeds | " + " | ".join(NAMES) + " |"
    yield "|---|---" + "|---:" * len(NAMES) + "|"
    for shape in SHAPES:
        for spread in SPREADS:
            found = covered(shape, spread, studies)
            cells = [f"{100 * found[name][0]:.1f} %" if name in found else "–" for name in NAMES]
            yield f"| {shape} | {spread} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for row in table(int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
        print(row, flush=True)
