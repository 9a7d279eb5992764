"""Data of the figures of a group of runs."""

from __future__ import annotations

from typing import Any

from harness.analysis.columns import BY_KEY
from harness.analysis.groups import Entry, counted, metric
from harness.analysis.study import StudyGroup
from harness.core.text import plain, shorten
from harness.records.schema import Evaluation, Frontier, Run

from .style import Look, looks

MEASURED = ("reward", "judge", "kl", "ppl")
COSTS = ("flops", "sampled_tokens", "scorer_calls", "seconds")


def figure_data(group: StudyGroup) -> dict[str, Any]:
    """The data of a group's figures, as plain data."""
    reference = group.reference
    base = {key: _point(metric(reference.base.get(key))) for key in MEASURED} if reference else None
    entries = group.entries
    styles = looks([entry.runs[0].manifest.method for entry in entries])
    only = entries[0].runs[0].manifest if len(group.runs) == 1 else None
    return {
        "title": shorten(f"{group.task}, preset {group.preset}" + _prompts(group), 60),
        "run": shorten(f"{only.method}, seed {only.seed}", 60) if only else None,
        "base": base,
        "frontier": _frontier(reference.frontier) if reference and reference.frontier else None,
        "methods": [_method(group, entry, look) for entry, look in zip(entries, styles, strict=True)],
    }


def _prompts(group: StudyGroup) -> str:
    """The prompts that are measured, if not the test prompts."""
    split = _split(group.runs[0])
    return "" if split == "test" else f", {split} prompts"


def _point(found: Any) -> dict[str, Any]:
    return {"value": found.value, "stderr": found.stderr, "reason": found.reason}


def _judged(found: Frontier) -> list[dict[str, float]]:
    """The judge's score of the optimal policies by their reward; empty if the record does not hold both along one curve."""
    judges = found.judge_at.judge if found.judge_at else []
    pairs = zip(found.curve, judges, strict=True) if len(judges) == len(found.curve) else []
    return [{"reward": p.reward, "judge": j} for p, j in pairs if j is not None]


def _frontier(found: Frontier) -> dict[str, Any]:
    solid = [p for p in found.curve if p.solid]
    edge = solid[-1].kl if solid else 0.0
    return {
        "kl_cap": found.kl_cap,
        "solid": [{"kl": p.kl, "reward": p.reward, "reward_stderr": p.reward_stderr} for p in solid],
        "upper": [{"kl": p.kl, "reward": p.reward} for p in found.upper if p.kl >= edge],
        "best_of_n": [{"n": p.n, "kl": p.kl, "reward": p.reward} for p in found.best_of_n],
        "judge_at": found.judge_at.plain() if found.judge_at else None,
        "judged": _judged(found),
    }


def _method(group: StudyGroup, entry: Entry, look: Look) -> dict[str, Any]:
    mean = {key: group.estimate(entry, BY_KEY[key]) for key in (*MEASURED, *COSTS)}
    means = {k: dict(e.interval._asdict(), n=e.n) if e.interval and e.n > 1 else None for k, e in mean.items()}
    drawn = group.drawn(entry)
    fewer = {} if len(drawn) == len(entry.runs) else {"seeds": seeds(entry), "runs_left_out": len(entry.runs) - len(drawn)}
    return {"name": shorten(entry.name), **look._asdict(), "runs": [_one(run) for run in drawn], "mean": means, **fewer}


def seeds(entry: Entry) -> int:
    """The number of seeds of an entry that are done."""
    return len({run.manifest.seed for run in counted(entry)})


def _one(run: Run) -> dict[str, Any]:
    own = _split(run)
    rows = [row for row in run.trajectory if row.split == own]
    others = [row for row in run.trajectory if row.split == "validation" != own]
    final = {key: _point(BY_KEY[key].of(run)) for key in (*MEASURED, *COSTS)} if run.summary else None
    m = run.manifest
    key = {"run_id": plain(m.run_id), "seed": m.seed, "status": m.status}
    return {**key, "path": [_step(row) for row in rows], "validation": [_step(row) for row in others], "final": final}


def _split(run: Run) -> str:
    """The split of the prompts that a run's end is measured on."""
    evaluation = run.manifest.identity.get("evaluation")
    return str(evaluation.get("split", "test")) if isinstance(evaluation, dict) else "test"


def _step(row: Evaluation) -> dict[str, Any]:
    """A point of the trajectory: its metrics and the cumulative cost."""
    spent = {**(row.cost or {}), "seconds": row.seconds}
    measured = {key: metric(row.metrics.get(key)).value for key in MEASURED}
    return {"update": row.update, **measured, **{key: spent.get(key) for key in COSTS}}
