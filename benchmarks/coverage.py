"""Coverage of the intervals and false-positive rates of the tests in simulation: the tables of docs/concepts/statistics.md.

python benchmarks/coverage.py [STUDIES]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

from harness.analysis import stats

SEEDS = (3, 5, 10)
PROMPTS = 60
SHARES = ((1.0, 0.0, 0.0), (0.8, 0.2, 0.0), (0.5, 0.5, 0.0), (0.2, 0.8, 0.0), (0.4, 0.3, 0.3))


def sides(rng: Generator, n: int, share: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Two methods without a difference, [n, X] each; of the error's variance so much is of seeds, prompts, single cells."""
    seed, prompt, cell = (np.sqrt(s * size) for s, size in zip(share, (n, PROMPTS, n * PROMPTS), strict=True))
    both = rng.normal(size=PROMPTS)
    a, b = (
        both + prompt * rng.normal(size=PROMPTS) + seed * rng.normal(size=(n, 1)) + cell * rng.normal(size=(n, PROMPTS))
        for _ in range(2)
    )
    return a, b


TESTS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "paired seeds": lambda a, b: stats.paired_test(a.mean(1), b.mean(1)).p,
    "Welch": lambda a, b: stats.welch_test(a.mean(1), b.mean(1)).p,
    "paired seeds, prompts": lambda a, b: stats.paired_by_prompt(a, b, seeds_paired=True).p,
    "Welch, prompts": lambda a, b: stats.paired_by_prompt(a, b).p,
    "labels exchanged": lambda a, b: stats.permutation_p(a.mean(1), b.mean(1)) if len(a) < 8 else None,
}


def wolf(studies: int) -> Iterator[str]:
    """Share of studies in which a test at 0.05 finds a difference where none is: by test, seeds and shares of the error."""
    yield "| seeds a side | error from seeds, prompts, cells | " + " | ".join(TESTS) + " |"
    yield "|---|---" + "|---:" * len(TESTS) + "|"
    for n in SEEDS:
        for share in SHARES:
            rng = np.random.default_rng(n)
            drawn = [sides(rng, n, share) for _ in range(studies)]
            found = [[test(a, b) for a, b in drawn] for test in TESTS.values()]
            shares = ", ".join(f"{100 * s:.0f} %" for s in share)
            yield f"| {n} | {shares} | " + " | ".join(map(_share, found)) + " |"


def _share(p: list[float | None]) -> str:
    """Of those at 0.05 or below; a dash where the test was not tried."""
    known = [x for x in p if x is not None]
    return f"{100 * np.mean([x <= 0.05 for x in known]):.1f} %" if known else "-"


def effects() -> Iterator[str]:
    """What can be detected, and the least p of the exact tests."""
    yield "| seeds a side | detectable, in sd of a seed | t at 0.05 | least p, labels exchanged | least p, signs flipped |"
    yield "|---:|---:|---:|---:|---:|"
    for n in (2, 3, 4, 5):
        apart = stats.permutation_p(np.arange(n) + 100.0, np.arange(n))
        flipped = stats.sign_flip_p(np.arange(n) + 100.0)
        effect = stats.minimum_detectable_effect(1.0, n)
        yield f"| {n} | {effect:.2f} | {stats.t_quantile(2 * n - 2):.2f} | {apart:.2g} | {flipped:.2g} |"


if __name__ == "__main__":
    print("\n".join([*effects(), "", *wolf(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)]))
