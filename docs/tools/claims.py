"""Tests of the papers' claims on records.

A difference counts if its 95% Welch interval over seeds excludes zero. A monotone effect of a setting counts if the means
over seeds are in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from harness.analysis.columns import undesired
from harness.analysis.groups import measure
from harness.analysis.stats import Interval, welch_interval
from harness.core.types import Metric
from harness.records.schema import Run
from harness.report.tables import number

Of = Callable[[Run], Metric]


class Check(NamedTuple):
    """A claim; `holds` is None if the records cannot decide it."""

    claim: str
    holds: bool | None
    figures: str


def checks(finals: list[Run], shapes: list[Run]) -> list[Check]:
    """All checks, in a fixed order."""
    return [_far_below_mle(finals, m) for m in ("conditional_pretraining", "filtering")] + [
        _smaller_cost(finals),
        _rwr_is_mle(shapes),
        *(_ordered(shapes, "num_quantiles", 1, by, "more quantiles remove more and drift more") for by in SCORES),
        *(_ordered(shapes, "kl_coef", -1, by, "a larger KL coefficient removes less and drifts less") for by in SCORES),
        _division(shapes),
    ]


def said(check: Check) -> str:
    """The sentence with the claim, the verdict and the figures."""
    word = {True: "holds", False: "does not hold here", None: "not tested"}[check.holds]
    return f"{check.claim}: **{word}**. {check.figures}"


def of_method(runs: list[Run], method: str, **settings: Any) -> list[Run]:
    """The finished runs of a method with the given settings."""

    def fits(run: Run) -> bool:
        had = run.manifest.identity["method"]["settings"]
        return run.manifest.method == method and all(had.get(k) == v for k, v in settings.items())

    return [run for run in runs if run.manifest.status == "done" and fits(run)]


def values(runs: list[Run], of: Of) -> list[float]:
    """The measured values of the runs; missing ones are left out."""
    found = (of(run).value for run in runs)
    return [v for v in found if v is not None]


def difference(a: list[Run], b: list[Run], of: Of) -> Interval | None:
    """The mean of a minus the mean of b with its interval; None if either has fewer than two values."""
    one, two = values(a, of), values(b, of)
    return welch_interval(one, two) if min(len(one), len(two)) > 1 else None


def _far_below_mle(runs: list[Run], method: str) -> Check:
    claim = f"{method} leaves less than half the undesired score of mle (Korbak et al. 2023)"
    a, b = of_method(runs, method), of_method(runs, "mle")
    gap = difference(a, b, undesired)
    if gap is None or gap.high is None:
        return _absent(claim)
    holds = gap.high < 0 and fmean(values(a, undesired)) < fmean(values(b, undesired)) / 2
    return Check(claim, holds, f"Undesired score {_mean(a, undesired)} against {_mean(b, undesired)}, {_range(gap)}.")


def _smaller_cost(runs: list[Run]) -> Check:
    claim = "conditional_pretraining costs less clean-text NLL than filtering (Korbak et al. 2023)"
    a, b = of_method(runs, "conditional_pretraining"), of_method(runs, "filtering")
    gap = difference(a, b, _clean)
    if gap is None or gap.high is None:
        return _absent(claim)
    return Check(claim, gap.high < 0, f"{_mean(a, _clean)} against {_mean(b, _clean)} nats per token, {_range(gap)}.")


def _rwr_is_mle(runs: list[Run]) -> Check:
    claim = "rwr at beta = 10 equals mle within noise (Korbak et al. 2023)"
    a, b = of_method(runs, "rwr", beta=10.0), of_method(runs, "mle")
    gaps = {name: difference(a, b, of) for name, of in (("undesired", undesired), ("KL", _kl))}
    if any(gap is None or gap.low is None for gap in gaps.values()):
        return _absent(claim)
    holds = all(gap.low <= 0 <= gap.high for gap in gaps.values())  # type: ignore[union-attr,operator]
    return Check(claim, holds, " ".join(f"{name}: {_range(gap)}." for name, gap in gaps.items()))  # type: ignore[arg-type]


def _ordered(runs: list[Run], key: str, sign: int, by: str, words: str) -> Check:
    """Check that means over seeds are monotone in a setting of Quark: with sign 1, 1 - score falls and KL rises."""
    claim = f"Quark: {words} (Lu et al. 2022), measured by {by}"
    found = _along(of_method(runs, "quark"), key)
    if len(found) < 2:
        return _absent(claim)
    habit = [fmean(values(found[v], SCORES[by])) for v in sorted(found)]
    drift = [fmean(values(found[v], _kl)) for v in sorted(found)]
    holds = _rises(habit, -sign) and _rises(drift, sign)
    rows = [
        f"{key} {v:g}: {number(h, '.3f')}, KL {number(d, '.3f')}" for v, h, d in zip(sorted(found), habit, drift, strict=True)
    ]
    return Check(claim, holds, f"1 - score at {'; '.join(rows)}.")


def _division(runs: list[Run]) -> Check:
    """Check our own hypothesis why the KL of GRPO is larger than that of other methods with the same coefficient."""
    claim = (
        "GRPO: normalising advantages by the group's standard deviation (Shao et al. 2024) weakens the KL penalty "
        "(our own hypothesis)"
    )
    found = {scale: _along(of_method(runs, "grpo", scale=scale), "kl_coef") for scale in ("group", "none")}
    both = sorted(set(found["group"]) & set(found["none"]))
    gaps = [difference(found["group"][v], found["none"][v], _kl) for v in both]
    if not gaps or any(gap is None for gap in gaps):
        return _absent(claim)
    rows = [f"at kl_coef {v:g} {' against '.join(_drift_and_judge(found[s][v]) for s in ('group', 'none'))}" for v in both]
    return Check(claim, all((gap.low or 0.0) > 0 for gap in gaps if gap), f"With and without normalisation: {'; '.join(rows)}.")


def _drift_and_judge(runs: list[Run]) -> str:
    return f"KL {_mean(runs, _kl)} and judge {_mean(runs, _judge)}"


def _along(runs: list[Run], key: str) -> dict[float, list[Run]]:
    """The runs by their value of a setting, in the largest set of runs with equal other settings."""
    shared: dict[str, dict[float, list[Run]]] = {}
    for run in runs:
        settings = dict(run.manifest.identity["method"]["settings"])
        if key not in settings:
            continue
        value = float(settings.pop(key))
        shared.setdefault(repr(sorted(settings.items())), {}).setdefault(value, []).append(run)
    return max(shared.values(), key=len, default={})


def _rises(means: list[float], sign: int) -> bool:
    return all(sign * (after - before) > 0 for before, after in pairwise(means))


def _clean(run: Run) -> Metric:
    return measure(run, "clean_nll")


def _judge(run: Run) -> Metric:
    return measure(run, "judge")


def _kl(run: Run) -> Metric:
    return measure(run, "kl")


def _lost(run: Run) -> Metric:
    found = measure(run, "reward")
    return found if found.value is None else found._replace(value=1 - found.value)


# The paper evaluates with its training reward; here both scorers are used.
SCORES: dict[str, Of] = {"the reward, as in the paper": _lost, "the judge": undesired}


def _mean(runs: list[Run], of: Of) -> str:
    return number(fmean(values(runs, of)), ".3f")


def _range(gap: Interval) -> str:
    low, high = (number(v or 0.0, "+.3f") for v in (gap.low, gap.high))
    return f"difference {number(gap.mean, '+.3f')} [{low}, {high}]"


def _absent(claim: str) -> Check:
    return Check(claim, None, "The records have fewer than two seeds of each.")
