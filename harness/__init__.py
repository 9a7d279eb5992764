"""Run methods that unlearn habits of language models, and measure them against the optimum.

import harness
summary = harness.run("quark", "toxicity", seed=1, settings={"kl_coef": 0.1})
frame = harness.load("results")  # a row a run; load_trajectories and load_samples have what lies behind it
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

    `settings` are those of `--set`: {"kl_coef": 0.1, "evaluation.points": 4}. Raises errors of `harness.core.errors`.
    """
    from harness.core.process import follows
    from harness.core.process import quiet as quiet_libraries
    from harness.policy.models import processes
    from harness.runs.assemble import named_cell
    from harness.runs.finished.probe import probe_cell
    from harness.runs.progress import Progress
    from harness.runs.session import run as run_cell

    flags = {"budget__flops": budget, "model__id": model, "task__prompts": prompts}
    with quiet_libraries():
        processes.join()
        cell = named_cell(method, task, preset, seed, settings or {}, flags, Path(out), offline)
        progress = Progress(quiet or follows())
        summary, _ = run_cell(cell, fresh=fresh, progress=progress)
        probe_cell(cell, progress)
        return summary.plain()


def load(folder: str | Path = "results") -> pd.DataFrame:
    """The records below a folder, a row a run.

    Columns: run_id, preset, task, method, seed, status; `settings.evaluation.points` and so on; final metrics `judge` with
    `judge_stderr`; those of the base policy `base_judge` with `base_judge_stderr`; `cost.flops` and so on; dir. A run that has
    not finished has NaN for what it lacks. Records that cannot be read are warned of and named in `.attrs["problems"]`.
    Raises EmptySelection where there is no record.
    """
    from harness.records.frames import runs_frame

    return runs_frame(folder)


def load_trajectories(folder: str | Path = "results") -> pd.DataFrame:
    """Every evaluation along the runs below a folder, a row an evaluation: update, split, metrics, `cost.NAME`, seconds.

    Problems and errors as in `load`.
    """
    from harness.records.frames import trajectories_frame

    return trajectories_frame(folder)


def load_samples(folder: str | Path = "results", of: str = "final") -> pd.DataFrame:
    """What the policies of the runs below a folder said, a row a response with its scores; `of` is final or base.

    Columns: those of the run, then prompt_id, kind, prompt, response, reward, judge, kl and entropy (nats), nll (nats, of the
    fluency model) with nll_tokens. The text can be offensive. A run without samples is among the problems; else as in `load`.
    """
    from harness.records.frames import samples_frame

    return samples_frame(folder, of)
