"""Data of the figures of a group of runs."""

from __future__ import annotations

from typing import Any

from harness.analysis.columns import cost
from harness.analysis.groups import Entry, Group, estimate, measure, metric
from harness.core.text import plain, shorten
from harness.core.types import Metric
from harness.records.schema import Run

from .style import Look, looks

MEASURED = ("reward", "judge", "kl", "ppl")
COSTS = ("flops", "sampled_tokens", "scorer_calls", "seconds")


def figure_data(group: Group) -> dict[str, Any]:
    """The data of a group's figures, as plain data."""
    reference = group.reference
    base = {key: _point(metric(reference["base"].get(key))) for key in MEASURED} if reference else None
    entries = group.entries
    styles = looks([entry.runs[0].manifest["method"] for entry in entries])
    only = entries[0].runs[0].manifest if len(group.runs) == 1 else None
    return {
        "title": shorten(f"{group.task}, preset {group.preset}" + _prompts(group), 60),
        "run": shorten(f"{only['method']}, seed {only['seed']}", 60) if only else None,
        "base": base,
        "frontier": _frontier(reference["frontier"]) if reference and reference["frontier"] else None,
        "methods": [_method(entry, look) for entry, look in zip(entries, styles, strict=True)],
    }


def _prompts(group: Group) -> str:
    """The prompts that are measured, if not the test prompts."""
    split = _split(group.runs[0])
    return "" if split == "test" else f", {split} prompts"


def _point(found: Any) -> dict[str, Any]:
    return {"value": found.value, "stderr": found.stderr, "reason": found.reason}


def _frontier(found: dict[str, Any]) -> dict[str, Any]:
    solid = [p for p in found["curve"] if p["solid"]]
    edge = solid[-1]["kl"] if solid else 0.0
    return {
        "kl_cap": found.get("kl_cap"),
        "solid": [{key: p.get(key) for key in ("kl", "reward", "reward_stderr")} for p in solid],
        "upper": [{key: p[key] for key in ("kl", "reward")} for p in found.get("upper") or [] if p["kl"] >= edge],
        "best_of_n": [{key: p[key] for key in ("n", "kl", "reward")} for p in found.get("best_of_n") or []],
        "judge_at": found.get("judge_at"),
    }


def _method(entry: Entry, look: Look) -> dict[str, Any]:
    mean = {key: estimate(entry, lambda run, key=key: _end(run, key), key) for key in (*MEASURED, *COSTS)}  # type: ignore[misc]
    means = {k: dict(e.interval._asdict(), n=e.n) if e.interval and e.n > 1 else None for k, e in mean.items()}
    return {"name": shorten(entry.name), **look._asdict(), "runs": [_one(run) for run in entry.runs], "mean": means}


def _one(run: Run) -> dict[str, Any]:
    own = _split(run)
    rows = [row for row in run.trajectory if row["split"] == own]
    others = [row for row in run.trajectory if row["split"] == "validation" != own]
    final = {key: _point(_end(run, key)) for key in (*MEASURED, *COSTS)} if run.summary else None
    m = run.manifest
    key = {"run_id": plain(m["run_id"]), "seed": m["seed"], "status": m["status"]}
    return {**key, "path": [_step(row) for row in rows], "validation": [_step(row) for row in others], "final": final}


def _split(run: Run) -> str:
    """The split of the prompts that a run's end is measured on."""
    evaluation = run.manifest["identity"].get("evaluation")
    return str(evaluation.get("split", "test")) if isinstance(evaluation, dict) else "test"


def _step(row: dict[str, Any]) -> dict[str, Any]:
    """A point of the trajectory: its metrics and the cumulative cost."""
    spent = {**(row.get("cost") or {}), "seconds": row.get("seconds")}
    measured = {key: metric(row["metrics"].get(key)).value for key in MEASURED}
    costs = {key: v if isinstance(v := spent.get(key), (int, float)) else None for key in COSTS}
    return {"update": row["update"], **measured, **costs}


def _end(run: Run, key: str) -> Metric:
    return cost(key)(run) if key in COSTS else measure(run, key)
