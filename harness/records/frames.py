"""Records as pandas frames, returned by `harness.load`, `load_trajectories` and `load_samples`.

The `.attrs["problems"]` of every frame lists the records that are unreadable or without rows, so none is omitted silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import BenchError, EmptySelection
from harness.core.settings import flat
from harness.core.text import count, escaped

from .read import find_runs, settings_of
from .samples import read
from .schema import MetricRecord, Problem, Run

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("run_id", "preset", "task", "method", "seed")
Rows = Iterable[dict[str, Any]]


def runs_frame(folder: str | Path) -> pd.DataFrame:
    """One row per run: its keys, status, settings, final and base metrics, cost, and folder; raises EmptySelection."""
    return _frame(folder, lambda run: [_run(run)])


def trajectories_frame(folder: str | Path) -> pd.DataFrame:
    """One row per evaluation of a run; raises EmptySelection if there is none."""
    return _frame(folder, _evaluations)


def samples_frame(folder: str | Path, of: str) -> pd.DataFrame:
    """One row per response of a run, before (`base`) or after training (`final`); raises EmptySelection if there is none."""
    return _frame(folder, lambda run: [{**_keys(run), **row} for row in read(run, of)])


def metric_columns(metrics: dict[str, MetricRecord], before: str = "") -> dict[str, float | None]:
    """Columns NAME and NAME_stderr of each metric; None (NaN in pandas) for a missing value."""
    columns: dict[str, float | None] = {}
    for name, metric in metrics.items():
        columns |= {f"{before}{name}": metric.value, f"{before}{name}_stderr": metric.stderr}
    return columns


def _frame(folder: str | Path, of: Callable[[Run], Rows]) -> pd.DataFrame:
    """The rows of all runs below a folder; raises EmptySelection if there is none."""
    import pandas as pd

    runs, problems = find_runs([Path(folder)])
    rows = list(_rows(runs, of, problems))
    if not rows:
        why = f" ({problems[0].path}: {problems[0].what})" if problems else ""
        raise EmptySelection(f"nothing to load below {folder}{why}; make records with harness run")
    frame = pd.DataFrame(rows)
    frame.attrs["problems"] = [f"{p.path}: {p.what}" for p in problems]
    if problems:
        first = escaped(frame.attrs["problems"][0])
        warnings.warn(f"{count(len(problems), 'problem')} with records, first {first}; all in .attrs['problems']", stacklevel=4)
    return frame


def _rows(runs: list[Run], of: Callable[[Run], Rows], problems: list[Problem]) -> Iterator[dict[str, Any]]:
    for run in runs:
        try:
            yield from of(run)
        except BenchError as error:  # a run without samples, or with broken ones
            problems.append(Problem(run.dir, str(error).removeprefix(f"{run.dir} ")))


def _keys(run: Run) -> dict[str, Any]:
    return {name: getattr(run.manifest, name) for name in KEYS}


def _run(run: Run) -> dict[str, Any]:
    final, base, cost = (run.summary.final, run.summary.base, run.summary.cost) if run.summary else ({}, {}, {})
    row = _keys(run) | {"status": run.manifest.status}
    row |= {f"settings.{key}": value for key, value in flat(settings_of(run)).items()}
    row |= metric_columns(final) | metric_columns(base, "base_")
    return row | {f"cost.{name}": value for name, value in cost.items()} | {"dir": run.dir}


def _evaluations(run: Run) -> Rows:
    for row in run.trajectory:
        cost = {f"cost.{name}": value for name, value in (row.cost or {}).items()}
        measured = metric_columns(row.metrics)
        yield _keys(run) | {"update": row.update, "split": row.split} | measured | cost | {"seconds": row.seconds}
