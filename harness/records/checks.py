"""Consistency checks between the parts of a record: folder, identity, settings, status, trajectory and cost.

Nothing is measured here. Whoever changes one part of a record has to change all parts that depend on it, and then the hash
of the identity, which is the run's id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from math import isclose
from typing import Any, NamedTuple

from .archive import place_of
from .read import settings_of
from .schema import FINISHED, Evaluation, Run, Selection, Summary

RUN = re.compile(r"[0-9a-f]{8}-s\d+")
"""The name of a run's folder: its id and its seed."""
COUNTS = (
    "updates", "sampled_tokens", "trained_tokens", "forward_tokens", "document_tokens", "documents", "own_documents",
    "scorer_calls", "beside_flops", "flops",
)  # fmt: skip
BETWEEN = {"reward": (0.0, 1.0), "judge": (0.0, 1.0), "kl": (-1e-9, float("inf"))}
"""The valid range of each metric in a row of a trajectory."""


class Check(NamedTuple):
    """One comparison; held is None if it could not be made, and `found` then gives the reason."""

    what: str
    held: bool | None
    expected: str = ""
    found: str = ""


def agree(run: Run) -> Iterator[Check]:
    """All checks of one part of a record against another."""
    yield from _names(run)
    yield _place(run)
    yield from _settings(run)
    if run.summary is not None:
        yield from _status(run, run.summary)
        yield _first_row(run, run.summary)
        yield _last_row(run, run.summary)
        yield _spent(run, run.summary)
    yield from _rows(run)


def _names(run: Run) -> Iterator[Check]:
    """Check method and task against the identity, whose hash is the run's id."""
    identity = run.manifest.identity
    for key, said in {"method": run.manifest.method, "task": run.manifest.task}.items():
        made = _table(identity.get(key)).get("name")
        if made is None:
            yield Check(key, None, found="not named in the identity")
            continue
        same = said.startswith("eval-") if (key, made) == ("method", "eval") else said == made
        yield Check(key, same, f"{made}, of the identity", said)


def _place(run: Run) -> Check:
    """Check the name of the folder, and preset, task and method above it if it follows the layout."""
    expected, parts = place_of(run).parts, run.dir.absolute().parts
    above = [name == part for name, part in zip(expected[:3], parts[-4:-1], strict=False)]  # fewer near the root
    if not any(above) and parts[-1] != expected[-1] and not RUN.fullmatch(parts[-1]):
        return Check("folder", None, found="the record lies outside preset/task/method/run")
    same = parts[-1] == expected[-1] and (all(above) or not any(above))
    return Check("folder", same, "/".join(expected), "/".join(parts[-4:]))


def _settings(run: Run) -> Iterator[Check]:
    """Check the settings of the run against its identity."""
    manifest, identity, told = run.manifest, run.manifest.identity, settings_of(run)
    yield _compared("preset in the settings", {"preset": manifest.preset}, {k: told[k] for k in ("preset",) if k in told})
    evaluation, task = dict(_table(told.get("evaluation"))), _table(told.get("task"))
    select = evaluation.pop("select", "last")
    for key in ("batch_size", "probes"):  # without effect on the results
        evaluation.pop(key, None)
    pairs = {
        "method": (_table(identity.get("method")).get("settings"), told.get("method")),
        "budget": (identity.get("budget"), told.get("budget")),
        "optimizer": ({"weight_decay": 0.0} | _table(identity.get("optimizer")), told.get("optimizer")),
        "evaluation": (identity.get("evaluation"), evaluation),
        "decoding": (_table(identity.get("decoding")).get("kl"), task.get("decoding")),
        "model": ({"dtype": identity.get("dtype")}, {k: v for k, v in _table(told.get("model")).items() if k == "dtype"}),
        "select": ({"select": identity.get("select", "last")}, {"select": select} if evaluation else {}),
        "KL cap": (_cap(run), {"kl_cap": task["kl_cap"]} if "kl_cap" in task else {}),
    }
    for name, (made, said) in pairs.items():
        yield _compared(f"{name} in the settings", made, said)


def _cap(run: Run) -> dict[str, Any]:
    frontier = run.summary.frontier if run.summary is not None else None
    return {"kl_cap": frontier.kl_cap} if frontier is not None and frontier.kl_cap is not None else {}


def _compared(what: str, made: Any, told: Any) -> Check:
    """Compare recorded settings with the identity; absent settings are defaults and not compared."""
    made, told = _table(made), _table(told)
    if not told or not made:
        return Check(what, None, found="not in the record")
    differ = [key for key, value in sorted(told.items()) if not _same(value, made.get(key))]
    expected, found = (", ".join(f"{key} {of.get(key)}" for key in differ) for of in (made, told))
    return Check(what, not differ, expected or "those of the identity", found or "the same")


def _same(told: Any, made: Any) -> bool:
    """Return True if two values of a setting are equal; a number may be written as text."""
    if isinstance(told, str) and isinstance(made, (int, float)) and not isinstance(made, bool):
        try:
            return float(told) == made
        except ValueError:
            return False
    return bool(told == made)


def _status(run: Run, summary: Summary) -> Iterator[Check]:
    """Check that both files have the same status, and that it follows from the share of missing scores."""
    status = run.manifest.status
    said = summary.status or status
    yield Check("status", said == status and status in FINISHED, status, said)
    tolerance = _table(_table(summary.settings).get("evaluation")).get("tolerance")
    if tolerance is None or status not in FINISHED:
        yield Check("status by missing scores", None, found="not in the record")
        return
    worst = max(_unscored_at_end(summary), _unscored_in_training(summary))
    expected = "degraded" if worst > tolerance else "done"
    yield Check("status by missing scores", status == expected, f"{expected}, with {worst:.2%} missing", status)


def _unscored_at_end(summary: Summary) -> float:
    found = [summary.final[name] for name in ("reward", "judge") if name in summary.final]
    missing = sum(metric.n_unscored for metric in found)
    every = sum(metric.n + metric.n_unscored for metric in found)
    return missing / every if every else 0.0


def _unscored_in_training(summary: Summary) -> float:
    calls = summary.cost.get("scorer_calls")
    return (summary.cost.get("unscored") or 0) / calls if calls else 0.0


def _first_row(run: Run, summary: Summary) -> Check:
    """Check that the trajectory begins at the base policy, at zero cost."""
    what = "first row of the trajectory"
    if not run.trajectory:
        return Check(what, False, "the base policy at no cost", "no row")
    first = run.trajectory[0]
    spent = [key for key in COUNTS if (first.cost or {}).get(key)]
    if first.update or spent:
        return Check(what, False, "the base policy at no cost", f"update {first.update}, {', '.join(spent) or 'no cost'}")
    if _chosen(summary) is not None:
        return Check(what, True, "the base policy at no cost", "the same")
    differ = [name for name, metric in first.metrics.items() if name in summary.base and metric != summary.base[name]]
    return Check(what, not differ, "the base metrics", f"others: {', '.join(differ)}" if differ else "the same")


def _chosen(summary: Summary) -> Selection | None:
    """The record of a selection by validation scores; None if the last policy was taken."""
    return summary.selection if summary.selection.rule != "last" else None


def _last_row(run: Run, summary: Summary) -> Check:
    """Check that the last evaluation is the summary's, or that the selected point is a row of the trajectory."""
    if (chosen := _chosen(summary)) is not None:
        rows = [row.metrics for row in run.trajectory if row.update == chosen.update]
        among = any(all(row.get(name) == metric for name, metric in chosen.validation.items()) for row in rows)
        wanted = ", ".join(f"{name} {metric.value}" for name, metric in chosen.validation.items())
        found = "the same" if among else "none"
        return Check("chosen row of the trajectory", among, f"update {chosen.update} with {wanted}", found)
    last = run.trajectory[-1].metrics if run.trajectory else {}
    final = summary.final
    differ = [name for name in sorted({*last, *final}) if last.get(name) != final.get(name)]
    found = f"others: {', '.join(differ)}" if differ else "the same"
    return Check("last row of the trajectory", not differ, "the final metrics", found)


def _spent(run: Run, summary: Summary) -> Check:
    """Check that the cost of the run is that of the last row of the trajectory."""
    last = (run.trajectory[-1].cost or {}) if run.trajectory else {}
    shared = [key for key in COUNTS if key in last and key in summary.cost]
    differ = [key for key in shared if last[key] != summary.cost[key]]
    expected, found = (", ".join(f"{key} {of[key]}" for key in differ) for of in (last, summary.cost))
    if not shared:
        return Check("cost", None, found="not in the record")
    return Check("cost", not differ, expected or "that of the last row", found or "the same")


def _rows(run: Run) -> Iterator[Check]:
    """Check each row of the trajectory, alone and against the previous one."""
    costs = [_counted(row) for row in run.trajectory]
    numbered = list(enumerate(zip(run.trajectory, costs, strict=True), 1))
    wrong = [i for i, (row, cost) in numbered if cost.get("updates", row.update) != row.update or not _possible(row)]
    yield _of_rows("trajectory", wrong, "updates as counted, scores in [0, 1], a KL of 0 or more")
    if not costs or not all({"parameters", "flops", "sampled_tokens", "trained_tokens"} <= set(cost) for cost in costs):
        yield Check("FLOPs", None, found="the record has no token counts to compute them from")
    else:
        wrong = [i for i, (_, cost) in numbered if not isclose(cost["flops"], flops(cost), rel_tol=1e-9, abs_tol=1.0)]
        yield _of_rows("FLOPs", wrong, "2N per forward token, 6N per trained token, plus other networks")
    falls = [i for i, (a, b) in enumerate(pairwise(run.trajectory), 2) if _falls(a, b)]
    yield _of_rows("cost along the trajectory", falls, "no decrease")


def flops(cost: dict[str, float]) -> float:
    """FLOPs of a row as counted during a run: 2N per forward token, 6N per trained token (N parameters)."""
    read = 2.0 * cost["parameters"] * (cost["sampled_tokens"] + cost.get("forward_tokens", 0))
    return read + 6.0 * cost["parameters"] * cost["trained_tokens"] + cost.get("beside_flops", 0)


def _counted(row: Evaluation) -> dict[str, float]:
    """The cost of a row, without unknown counts."""
    return {key: value for key, value in (row.cost or {}).items() if value is not None}


def _possible(row: Evaluation) -> bool:
    values = {name: row.metrics[name].value for name in BETWEEN if name in row.metrics}
    return all(value is None or BETWEEN[name][0] <= value <= BETWEEN[name][1] for name, value in values.items())


def _falls(before: Evaluation, after: Evaluation) -> bool:
    a, b = _counted(before), _counted(after)
    counted = any(b[key] < a[key] for key in COUNTS if key in a and key in b) or a.get("parameters") != b.get("parameters")
    late = before.seconds is not None and after.seconds is not None and after.seconds < before.seconds
    return counted or late or after.update < before.update


def _of_rows(what: str, wrong: list[int], expected: str) -> Check:
    return Check(what, not wrong, expected, f"violated in row {', '.join(map(str, wrong[:5]))}" if wrong else "in all rows")


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
