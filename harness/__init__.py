"""Run methods that unlearn habits of language models, and measure them against the optimum.

import harness
summary = harness.run("quark", "toxicity", seed=1, settings={"kl_coef": 0.1})
frame = harness.load("results")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"


def run(
    method: str,
    task: str,
    *,
    preset: str = "micro",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    budget: float | None = None,
    model: str | None = None,
    prompts: str | None = None,
    out: str | Path = "results",
    fresh: bool = False,
    offline: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """The summary of one run, as `harness run --json` prints it; resumes, or returns what is there.

    `settings` are those of `--set`: {"kl_coef": 0.1, "evaluation.points": 4}. Raises errors of `harness.errors`.
    """
    from . import assemble, registry
    from .progress import Progress
    from .runner import run as run_cell
    from .settings import resolve

    task = registry.canonical("task", task)
    method = method if method.endswith(".py") else registry.canonical("method", method)
    flags = {"budget__flops": budget, "model__id": model, "task__prompts": prompts}
    resolved = resolve(preset, method, task, settings or {}, **flags)
    assemble.check(resolved, method)
    cell = assemble.cell(resolved, assemble.parts(resolved, task, offline, Path(out)), method, task, seed, Path(out))
    return run_cell(cell, fresh=fresh, progress=Progress(quiet))[0]


def load(folder: str | Path = "results") -> pd.DataFrame:
    """The records below a folder, a row a run: what it was, `final.METRIC`, `final.METRIC.stderr` and `cost.NAME`.

    `trajectory` holds each run's evaluations, a dict each; `samples` the parquet file of what the final policy said, or
    None. Raises CorruptRecord where a record cannot be read, EmptySelection where there is none.
    """
    import pandas as pd

    from .errors import CorruptRecord, EmptySelection
    from .records import find_runs

    runs, problems = find_runs([Path(folder)])
    if problems:
        raise CorruptRecord(f"{problems[0].path}: {problems[0].what}; {len(problems)} such records below {folder}")
    if not runs:
        raise EmptySelection(f"no records below {folder}; make one with harness run")
    return pd.DataFrame([_row(run) for run in runs])


def _row(run: Any) -> dict[str, Any]:
    names = ("run_id", "preset", "task", "method", "seed", "status")
    row: dict[str, Any] = {name: run.manifest[name] for name in names}
    summary, samples = run.summary or {"final": {}, "cost": {}}, run.dir / "samples" / "final.parquet"
    for name, metric in summary["final"].items():
        row |= {f"final.{name}": metric["value"], f"final.{name}.stderr": metric["stderr"]}
    row |= {f"cost.{name}": value for name, value in summary["cost"].items()}
    return row | {"dir": run.dir, "trajectory": run.trajectory, "samples": samples if samples.exists() else None}
