"""Results in the layout of lm-evaluation-harness 0.4 (its `EvalResults`), for tools that read its files."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.text import plain
from harness.records.read import as_table, settings_of
from harness.records.schema import MetricRecord, Run

from .events import named, started

BETTER = {  # whether a higher value is better; a metric that is in neither state has no direction
    True: (
        "reward", "judge", "efficiency", "grammatical", "distinct_1", "distinct_2", "distinct_3", "unique", "diversity",
        "positive_rate",
    ),
    False: (
        "kl", "kl_per_token", "excess_kl", "regret", "ppl", "forward_kl", "clean_nll", "rep_2", "rep_3", "rep_4",
        "max_toxicity", "toxicity_prob", "modal_mass", "pii_per_kchar", "violations_per_kchar", "overoptimisation",
    ),
}  # fmt: skip
FILTER = "none"  # no filter stands between a response and its score


def results(run: Run) -> dict[str, Any]:
    """The final metrics of a finished run; a metric without a value is left out, an unknown error is N/A."""
    summary, m = run.summary, run.manifest
    assert summary is not None
    task, settings = named(m.task), settings_of(run)
    values = {name: metric for name, metric in summary.final.items() if metric.value is not None}
    scored = summary.final.get("reward") or MetricRecord(value=None, stderr=None, n=0)
    n = scored.n + scored.n_unscored
    return {
        "results": {task: {"name": task, "alias": task, "sample_len": n, **_metrics(values)}},
        "group_subtasks": {task: []},
        "configs": {task: _task(run, settings)},
        "versions": {task: as_table(m.identity.get("task")).get("version")},
        "n-shot": {task: 0},
        "higher_is_better": {task: {named(name): _better(name) for name in values}},
        "n-samples": {task: {"original": n, "effective": scored.n}},
        "config": _config(run, settings),
        "git_hash": m.provenance.git.commit if m.provenance.git is not None else "unknown",
        "date": started(run),
        "transformers_version": m.provenance.packages.get("transformers", "unknown"),
        "model_source": "unlearning-harness",
        "model_name": name_of(run),
        "model_name_sanitized": name_of(run),
        "system_instruction": None,
        "chat_template": None,
        "task_hashes": {},
        "total_evaluation_time_seconds": str(summary.cost.get("seconds") or 0.0),
    }


def name_of(run: Run) -> str:
    """The name of a run's policy, which is a file name too."""
    m = run.manifest
    end = f"-s{m.seed}"
    name = re.sub(r"[^0-9A-Za-z_.-]", "_", f"{m.method[:60]}-{m.run_id.removesuffix(end)}{end}")
    return name.lstrip(".") or "_"


def file_of(run: Run) -> Path:
    """The relative path of a run's results, as lm-evaluation-harness names them."""
    at = datetime.fromtimestamp(started(run), UTC).replace(tzinfo=None).isoformat().replace(":", "-")
    return Path(name_of(run)) / f"results_{at}.json"


def _metrics(values: dict[str, MetricRecord]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, metric in values.items():
        found[f"{named(name)},{FILTER}"] = metric.value
        found[f"{named(name)}_stderr,{FILTER}"] = "N/A" if metric.stderr is None else metric.stderr
    return found


def _better(name: str) -> bool | None:
    """Whether a higher value of a metric is better, over all prompts or (`judge@kind`) over some; None if neither is."""
    return next((higher for higher, names in BETTER.items() if name.partition("@")[0] in names), None)


def _task(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    of_task = as_table(settings.get("task"))
    return {
        "task": named(run.manifest.task), "output_type": "generate_until", "num_fewshot": 0, "repeats": 1,
        "test_split": as_table(settings.get("evaluation")).get("split"),
        "generation_kwargs": as_table(of_task.get("decoding")),
        "metadata": {"version": as_table(run.manifest.identity.get("task")).get("version"), "reward": of_task.get("reward"),
                     "judge": of_task.get("judge")},
    }  # fmt: skip


def _config(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    m, model = run.manifest, as_table(settings.get("model"))
    arguments = {"pretrained": model.get("id"), "method": m.method, "preset": m.preset, "run_id": m.run_id, "seed": m.seed}
    found = {
        "model": "unlearning-harness",
        "model_args": ",".join(f"{k}={plain(v)}" for k, v in arguments.items() if v is not None),
        "model_dtype": model.get("dtype"), "device": m.provenance.device, "limit": None, "bootstrap_iters": 0,
        "gen_kwargs": as_table(as_table(settings.get("task")).get("decoding")), "random_seed": m.seed,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None or key == "limit"}
