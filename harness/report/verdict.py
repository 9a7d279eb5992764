"""The summary of a group in sentences, and the runs whose results are impossible."""

from __future__ import annotations

from harness.analysis.columns import BY_KEY, bound_sign, undesired
from harness.analysis.groups import Entry, Estimate, Group, competing, counted, estimate, measure, method_of
from harness.analysis.ranking import Above, Ranked, beats, beside_best_of_n
from harness.analysis.stats import Interval
from harness.analysis.study import StudyGroup
from harness.core import registry
from harness.core.text import plain
from harness.records.schema import Problem

from .tables import number

MOST_NAMED = 40  # in one sentence


def verdict(group: StudyGroup) -> list[str]:
    """Sentences for the top of a report: the best method, its cost, its distance to the optimum, and the uncertainty."""
    ranked = group.ranks
    sentences = [_nothing(group)]
    if ranked:
        first, *more = _leader(ranked, group)
        # in the first sentence, which may be the only one read: a leader beyond the cap does not win
        sentences = [" ".join([first, *_cap(ranked, group)]), *more, *_others(group), *_most_efficient(ranked, group)]
    return [*sentences, *_best_of_n(group), *left_out(group), *suspects(group)]


def impossible(group: StudyGroup) -> list[Problem]:
    """A problem for each run above the frontier, which no policy can exceed: a bug in the suite is suspected."""
    return [Problem(run.dir, _beyond(above)) for run, above in group.above]


def _beyond(above: Above) -> str:
    """The distance above the frontier and the update, in words."""
    far = "" if above.reward is None else f" by {number(above.reward, '.3f')} reward"
    errors = "" if above.errors is None else f", {number(above.errors, '.1f')} standard errors"
    where = "" if above.update is None else f", at update {above.update}"
    return f"above the optimal frontier{far}{errors}{where}: a suspected bug in the suite"


def unscored(group: Group) -> list[str]:
    """One sentence for each finished run with any response that a scorer could not score."""
    sentences = []
    for run in group.runs:
        final = run.summary.final if run.summary else {}
        missing = {key: m.n_unscored for key, m in final.items() if "@" not in key and m.n_unscored}
        if missing:
            words = ", ".join(f"{key} {n}" for key, n in sorted(missing.items()))
            m = run.manifest
            sentences.append(plain(f"{m.method}, seed {m.seed}: responses without a score ({words}); left out, not zero"))
    return sentences


def _leader(ranked: list[Ranked], group: StudyGroup) -> list[str]:
    first = ranked[0]
    name = first.entry.name
    base = _mean(estimate(first.entry, lambda run: undesired(run, "base")))
    left = _mean(group.estimate(first.entry, BY_KEY["undesired"]))
    share = f"{number(first.removed.mean, '.0f')}%{_range(first.removed)}"
    if first.removed.mean < 0.5:  # not one percent
        change = number(0.0 - round(first.removed.mean), "+.0f")
        return [f"No method removes the habit: the best, {name}, changes the undesired score by {change}%."]
    does = "removes the most" if len(ranked) > 1 else "is the only method with a result"
    seeds = f"{first.n} seed{'s' if first.n > 1 else ''}"
    head = f"{name} {does}: the undesired score falls from {base} to {left}, {share} of it gone over {seeds}"
    sentences = [f"{head}, at a KL of {_mean(group.estimate(first.entry, BY_KEY['kl']), '.2f')} nats from the base."]
    if first.removed.low is not None and first.removed.low <= 0:
        sentences.append(f"The interval of {name} includes no change at all.")
    return sentences + _price(first.entry, group)


def _price(entry: Entry, group: StudyGroup) -> list[str]:
    """The cost of the leader's gain: KL relative to the optimum, over-optimisation of the reward, and fluency."""
    efficiency = group.estimate(entry, BY_KEY["efficiency"]).interval
    gap = group.estimate(entry, BY_KEY["overoptimisation"]).interval
    sentences = ["The distance to the optimum was not measured."]
    if efficiency:
        share = f"{_at(group, entry)}{number(100 * efficiency.mean, '.0f')}"
        sentences = [f"The optimal policy would reach the same reward as {entry.name} with {share}% of its KL."]
    if gap:
        more = "more" if gap.mean >= 0 else "less"
        far = number(abs(gap.mean), ".3f")
        sentences.append(f"The judge gives the optimal policy of the same reward {far} {more} than {entry.name}.")
    before = _mean(estimate(entry, lambda run: measure(run, "ppl", "base")), ".2f")
    after = _mean(group.estimate(entry, BY_KEY["ppl"]), ".2f")
    return [*sentences, f"Perplexity went from {before} to {after}."] if counted(entry) else sentences


def _at(group: StudyGroup, entry: Entry) -> str:
    """The words before an efficiency that is a bound; none if it is an estimate."""
    sign = bound_sign("efficiency", group.estimate(entry, BY_KEY["efficiency"]).bounds)
    return {"": "", "≤": "at most ", "≥": "at least "}.get(sign, "roughly ")


def _others(group: StudyGroup) -> list[str]:
    """The methods tied with the leader, and the differences that this many seeds can detect."""
    ranked = group.ranks
    first, others = ranked[0], ranked[1:]
    single = [r.entry.name for r in ranked if r.n == 1]
    tied = [r for r in others if r.n > 1 and first.n > 1 and r.ranks[0] == 1]
    how = "tests against each other method, error over seeds and prompts, Holm-corrected, at 5%"
    sentences = []
    if tied:
        sentences.append(f"Tied with {first.entry.name}, as the tests do not rule them out as the best ({how}): {_list(tied)}.")
    elif others and first.n > 1 and not single:
        sentences.append(f"Every other method is ruled out as the best ({how}).")
    if single:
        order = "; the order of these may be chance" if others else ""
        sentences.append(f"One seed gives no interval over seeds ({', '.join(single)}){order}.")
    return sentences + _detectable(group)


def _detectable(group: StudyGroup) -> list[str]:
    if group.least_shown is None:
        return []
    n = min(r.n for r in group.ranks)
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    least = number(group.least_shown, ".1f")
    return [f"With {seeds} per method, a difference of {least} percentage points is found four times in five (typical pair)."]


def _trains(entry: Entry) -> bool:
    return registry.attribute("method", method_of(entry), "trains") is not False


def _best_of_n(group: Group) -> list[str]:
    """The trained methods below and above best-of-n at equal KL."""
    ways = competing(group.entries, method_of)
    found = [(e.name, gap) for e in ways if _trains(e) and (gap := beside_best_of_n(e))]
    if not found:
        return []
    worse = [name for name, gap in found if beats(gap) is False]
    better = [name for name, gap in found if beats(gap)]
    sentences = []
    if worse:
        sentences.append(
            f"Less reward than the best of n base responses at the same KL, which needs no training: {', '.join(worse)}."
        )
    if better:
        sentences.append(f"More reward than the best of n base responses at the same KL: {', '.join(better)}.")
    return sentences or ["No method differs significantly from the best of n base responses at the same KL."]


def _cap(ranked: list[Ranked], group: StudyGroup) -> list[str]:
    """A sentence on the best method within the task's KL cap, if the leader exceeds it."""
    frontier = group.reference.frontier if group.reference else None
    cap = frontier.kl_cap if frontier else None
    drift = [(r, group.estimate(r.entry, BY_KEY["kl"]).interval) for r in ranked]
    if not cap or drift[0][1] is None or drift[0][1].mean <= cap:
        return []
    within = next((r for r, kl in drift if kl and kl.mean <= cap and r.removed.mean > 0), None)
    best = "no method lowers the undesired score"
    if within:
        best = f"{within.entry.name} removes most, {number(within.removed.mean, '.0f')}%"
    return [f"That is beyond the task's cap of {cap:g} nats; within it, {best}."]


def _most_efficient(ranked: list[Ranked], group: StudyGroup) -> list[str]:
    found = [(r, group.estimate(r.entry, BY_KEY["efficiency"]).interval) for r in ranked]
    known = [(interval.mean, r) for r, interval in found if interval and r.removed.mean > 0]
    if len(known) < 2:
        return []
    share, best = max(known, key=lambda pair: pair[0])
    if best is ranked[0]:
        return [f"{best.entry.name} is also the most efficient{_if_bound(group, best.entry)}."]
    gone = number(best.removed.mean, ".0f")
    return [
        f"The most efficient is {best.entry.name}: {_at(group, best.entry)}{number(100 * share, '.0f')}%, with {gone}% removed."
    ]


def _if_bound(group: StudyGroup, entry: Entry) -> str:
    return " as far as the bounds tell" if _at(group, entry) else ""


def _nothing(group: StudyGroup) -> str:
    if not any(counted(entry) for entry in group.entries):
        return "No verdict: no run is done."
    reasons = sorted({reason for entry in group.entries for reason in group.estimate(entry, BY_KEY["removed"]).reasons})
    more = f"; and {len(reasons) - MOST_NAMED} more" if len(reasons) > MOST_NAMED else ""
    why = f" ({'; '.join(reasons[:MOST_NAMED])}{more})" if reasons else ""
    return f"No verdict: no valid run measured the share of the undesired score removed{why}."


def left_out(group: Group) -> list[str]:
    states = [run.manifest.status for run in group.runs]
    out = [f"{states.count(s)} {s}" for s in ("degraded", "failed", "interrupted", "running") if s in states]
    return [f"Left out of means and ranking: {', '.join(out)}."] if out else []


def suspects(group: StudyGroup) -> list[str]:
    if not group.above:
        return []
    names = ", ".join(f"{run.manifest.method} seed {run.manifest.seed}" for run, _ in group.above[:MOST_NAMED])
    names += f" and {more} more" if (more := len(group.above) - MOST_NAMED) > 0 else ""
    what = "above the frontier by more than the error, which no policy can be; such a method is not ranked"
    return [f"Suspected bug in the suite, not a good method: {names} {what}."]


def _mean(found: Estimate, digits: str = ".3f") -> str:
    return "a value not measured" if found.interval is None else number(found.interval.mean, digits)


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" (95% interval {number(interval.low, '.0f')} to {number(interval.high, '.0f')}%)"


def _list(ranked: list[Ranked]) -> str:
    return ", ".join(f"{r.entry.name} ({number(r.removed.mean, '.0f')}%)" for r in ranked)
