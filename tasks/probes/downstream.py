"""Downstream tasks: what else the policy can do, by the tasks of lm-evaluation-harness (Gao et al., `lm-eval`).

A reading is a task; its number, called `judge` in the record as that of every probe, is the task's share of right answers:
`acc`, `acc_norm` or `exact_match`, the first that the task has. A task without one has its own metrics and no such number.
Those of the base policy stand beside it as `base_...`. Nothing is downloaded: data are files that the task names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import Field, model_validator

from harness.api import BadSetting, Metric, MissingPrerequisite, Policy, Probed, Reading, Settings

RIGHT = ("acc", "acc_norm", "exact_match")
ERROR = "_stderr"
RESAMPLED = 1000  # bootstrap draws of metrics that are no mean; with 0 lm-eval gives no standard error at all


class DownstreamSettings(Settings):
    tasks: tuple[str, ...] = Field(min_length=1, description="tasks of lm-eval by name")
    include: str | None = Field(None, description="folder with task files of your own; they are code")
    sha256: str | None = Field(None, description="SHA-256 of the files in that folder, found out where none is given")
    limit: int | None = Field(None, ge=1, description="number of documents of each task; all if none is given")
    fewshot: int | None = Field(None, ge=0, description="examples before each question; as the task says if none is given")

    @model_validator(mode="before")
    @classmethod
    def _of_these_files(cls, given: Any) -> Any:
        """The hash of the folder is a setting, so that a changed task file is another probe."""
        if not isinstance(given, dict):
            return given
        folder = given.get("include")
        if not isinstance(folder, str) or not Path(folder).is_dir():
            if folder is None and given.get("sha256") is not None:
                raise ValueError("sha256 is that of the files in a folder; give include=FOLDER too")
            return given
        try:
            found = files_hash(Path(folder))
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
        if given.get("sha256", found) not in (None, found):
            raise ValueError(f"the files in {folder} have another SHA-256, {found}")
        return given | {"sha256": found}


class Downstream:
    """Tasks of lm-eval, answered by the policy as it is deployed."""

    version = 1
    Settings = DownstreamSettings
    unit = "task"
    number = "worst"

    def __init__(self, settings: DownstreamSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        needed()
        for i, name in enumerate(self.settings.tasks):
            found = self._results(name, probed.policy, probed)
            base = self._results(name, probed.base, probed)
            yield reading(i, name, found, base)

    def _results(self, name: str, policy: Policy, probed: Probed) -> dict[str, Any]:
        import lm_eval

        from .lm_eval_model import PolicyLM

        s, tokenizer = self.settings, probed.base.tokenizer or policy.tokenizer or probed.policy.tokenizer
        if tokenizer is None:
            raise MissingPrerequisite("the policy has no tokenizer with which a task of lm-eval could be read")
        manager = tasks_of(s.include, name)
        with offline():
            found: dict[str, Any] = lm_eval.simple_evaluate(
                PolicyLM(policy, tokenizer, probed.rng), tasks=[name], num_fewshot=s.fewshot, limit=s.limit,
                task_manager=manager, bootstrap_iters=RESAMPLED, log_samples=False, confirm_run_unsafe_code=False,
            )  # fmt: skip
        return found | {"lm_eval_version": lm_eval.__version__}


def tasks_of(include: str | None, name: str) -> Any:
    """The tasks among which `name` is: those of a folder, with those of lm-eval, slow to list, only where it is not there.

    Raises MissingPrerequisite where there is no such folder, BadSetting where there is no such task.
    """
    from lm_eval.tasks import TaskManager

    if include is not None and not Path(include).is_dir():
        raise MissingPrerequisite(f"no folder {include} with task files; give include=FOLDER")
    for defaults in (False, True) if include is not None else (True,):
        manager = TaskManager(include_path=include, include_defaults=defaults)
        if name in manager.all_tasks:
            return manager
    raise BadSetting(f"lm-eval has no task {name}; name one of its own or of the files in include=FOLDER")


def files_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files below a folder but those that Python compiled."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        total.update(f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def needed() -> None:
    """Raises MissingPrerequisite where lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingPrerequisite(
            "the probe downstream needs the package lm-eval, which is not installed; pip install 'unlearning-harness[lm-eval]'"
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Without the hub: only data that lie on this machine are read."""
    import datasets
    import huggingface_hub.constants

    with ExitStack() as held:
        for module in (datasets.config, huggingface_hub.constants):
            held.enter_context(patch.object(module, "HF_HUB_OFFLINE", True))
        yield


def reading(at: int, name: str, found: dict[str, Any], base: dict[str, Any]) -> Reading:
    """A task's results of a policy and of the base policy as a reading."""
    if name not in found["results"]:
        raise BadSetting(f"{name} is no single task of lm-eval; name the tasks of the group")
    own, its = metrics_of(found, name), metrics_of(base, name)
    right = next((own[key] for key in RIGHT if key in own), None)
    judge = {} if right is None else {"judge": right}
    version = found.get("versions", {}).get(name, "-")
    label = f"{name} v{version} (lm-eval {found['lm_eval_version']})"
    return Reading(at, judge | own | {f"base_{key}": metric for key, metric in its.items()}, label)


def metrics_of(found: dict[str, Any], name: str) -> dict[str, Metric]:
    """The metrics of a task by name; one that lm-eval could not compute is missing."""
    rows, n = found["results"][name], int(found["n-samples"][name]["effective"])
    keys = [key for key in rows if "," in key and not key.partition(",")[0].endswith(ERROR)]
    filters = {key.partition(",")[2] for key in keys}
    metrics: dict[str, Metric] = {}
    for key in keys:
        metric, _, by = key.partition(",")
        value, error = number(rows[key]), number(rows.get(f"{metric}{ERROR},{by}"))
        why = None if value is not None else "lm-eval gave no number"
        metrics[metric if len(filters) == 1 else f"{metric}_{by}"] = Metric(
            value, error if value is not None else None, n, 0, why
        )
    return metrics


def number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
