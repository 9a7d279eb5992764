"""Estimated cost and downloads of a run or a preset, before anything is loaded; does not import torch.

The estimates are upper bounds where responses end early: 2N FLOPs per token read or sampled (N parameters), at the
FLOPs per second that the preset assumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.settings import RunSettings, assembled, preset_tables
from harness.runs import sources
from harness.tasks.micro.frozen import WORLDS

from .memory import memory
from .shapes import SHAPES, parameters

# MB to download: weights of models and checkpoints (listed on the hub, or 4 bytes per parameter), files of data sets
DOWNLOADS = {
    "facebook/roberta-hate-speech-dynabench-r4-target": 499,
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": 268,
    "nlptown/bert-base-multilingual-uncased-sentiment": 669,
    "detoxify unbiased": 499,
    "smollm2": 98,
    "scored-pile": 173,
    "scored-code": 179,  # 11,452 MB in 64 parts, of which one is read
}


def download(name: str) -> int | None:
    """Estimated download of a model or a data set in MB; None if unknown."""
    if name in DOWNLOADS:
        return DOWNLOADS[name]
    return round(4 * SHAPES[name].parameters / 1e6) if name in SHAPES else None


def cost(settings: RunSettings, method: str, flops_per_second: float) -> dict[str, float | None]:
    """Estimated cost of a run: tokens of the frontier and the evaluations, hours of training and of measuring."""
    n, t, e = parameters(settings.model.id), settings.task, settings.evaluation
    flops = 0.0 if registry.attribute("method", method, "trains") is False else settings.budget.get("flops")
    if registry.attribute("method", method, "sees_judge"):
        flops = None  # the base policy's own training, which is not read before the model is
    named = t.prompts in registry.table("dataset")
    prompts = 3 * t.data.held_out if named else None  # two kinds and the empty prompt
    length, paper = t.decoding.max_new_tokens, t.paper_tokens or t.decoding.max_new_tokens
    found: dict[str, float | None] = {"parameters": n, "prompts": prompts, "training_flops": flops}
    found["training_hours"] = None if flops is None else flops / flops_per_second / 3600
    found |= dict.fromkeys(("frontier_tokens", "evaluation_tokens", "measuring_hours"))
    if prompts is not None:
        responses = 2 * e.samples + e.points * e.point_samples  # base and final evaluation, and the points along the run
        frontier = prompts * e.base_samples * length
        measured = prompts * (responses * length + 2 * e.paper_samples * paper)
        found |= {"frontier_tokens": frontier, "evaluation_tokens": measured}
        if n is not None:  # sampled once, then scored by policy and base policy
            found["measuring_hours"] = 2 * n * (frontier + 3 * measured) / flops_per_second / 3600
    return found


def untrained() -> list[str]:
    """The methods without training, which need no table in a preset."""
    return [name for name in registry.table("method") if registry.attribute("method", name, "trains") is False]


def preset_card(name: str) -> tuple[str, Any]:
    """A preset resolved for every task, as text and as data that includes its tables as written."""
    tables = preset_tables(name)
    rate = tables.get("estimate", {}).get("flops_per_second")
    methods = [*untrained(), *tables.get("methods", {})]
    named = {task: table for task, table in tables["tasks"].items() if not task.endswith(".py")}
    tasks = {task: {m: assembled(tables, name, m, table, (), {}) for m in methods} for task, table in named.items()}
    data: dict[str, Any] = {"preset": name, "tables": tables, "flops_per_second": rate}
    data["tasks"] = {t: _task_data(settings, rate) for t, settings in tasks.items()}
    names = {n for settings in tasks.values() for n in _downloads(settings["base"])}
    data["downloads_mb"] = {n: download(n) for n in sorted(names)}
    return _preset_text(data), data


def _task_data(settings: dict[str, RunSettings], rate: float | None) -> dict[str, Any]:
    shown = {m: s.model_dump(exclude={"scorers", "preset"}) for m, s in settings.items()}
    common = {k: v for k, v in shown["base"].items() if k != "method"}
    return {
        "settings": common,
        "methods": {m: s["method"] for m, s in shown.items()},
        "parameters": parameters(settings["base"].model.id),
        "cost": {m: cost(s, m, rate) for m, s in settings.items()} if rate else {},
    }


def _downloads(settings: RunSettings) -> list[str]:
    """The names of all models and data sets that a run downloads."""
    names = [settings.model.id, settings.task.prompts, settings.task.fluency]
    for scorer in (settings.task.reward, settings.task.judge):
        options = settings.scorer_options(scorer)
        names.append(options.get("model") or (f"detoxify {options['checkpoint']}" if "checkpoint" in options else None))
    return [n for n in names if n is not None and n not in (*WORLDS, "none")]


def _preset_text(data: dict[str, Any]) -> str:
    lines = [f"preset {data['preset']}"]
    for task, facts in data["tasks"].items():
        lines += ["", task, *_flat(facts["settings"], "  ")]
        lines += [f"  method {m}: " + (", ".join(f"{k}={v}" for k, v in s.items()) or "-") for m, s in facts["methods"].items()]
    lines += ["", "scorers", *_flat(data["tables"].get("scorers", {}), "  ")]
    if data["downloads_mb"]:
        lines += ["", "downloads, MB (estimates; - is unknown)"]
        lines += [f"  {name:62} {'-' if mb is None else mb:>6}" for name, mb in data["downloads_mb"].items()]
    return "\n".join([*lines, "", *_cost_text(data)])


def _cost_text(data: dict[str, Any]) -> list[str]:
    if not data["flops_per_second"]:
        return ["no cost estimate: the preset assumes no FLOPs per second"]
    columns = ("parameters", "training_flops", "training_hours", "frontier_tokens", "evaluation_tokens", "measuring_hours")
    rate = f"{data['flops_per_second']:.0e} FLOPs per second, which the preset assumes"
    head = f"cost of a run at {rate}: estimates, without scorers (- is unknown); best_of_n samples n times the evaluation"
    lines = [head, f"  {'task':20}{'method':16}" + "".join(f"{c:>19}" for c in columns)]
    for task, facts in data["tasks"].items():
        for method, row in facts["cost"].items():
            lines.append(f"  {task:20}{method:16}" + "".join(f"{_number(row[c]):>19}" for c in columns))
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}" if value >= 1e4 else f"{value:.2f}"


def _flat(table: dict[str, Any], indent: str) -> list[str]:
    """One line per value: `evaluation.points = 4`."""
    lines = []
    for key, value in table.items():
        nested = _flat(value, indent + f"{key}.") if isinstance(value, dict) and value else [f"{indent}{key} = {value}"]
        lines += nested
    return lines


def plan(settings: RunSettings, method: str, task: str, seeds: list[int], out: Path) -> dict[str, Any]:
    """The plan of a run: its settings, its prerequisites with their locations and presence, and its estimated cost."""
    rate = preset_tables(settings.preset, method, task).get("estimate", {}).get("flops_per_second")
    return {
        "method": method, "task": task, "seeds": seeds, "out": str(out), "settings": settings.model_dump(),
        "needs": [need._asdict() for need in needs(settings)],
        "cost": cost(settings, method, rate) if rate else None,
        "memory": memory(settings, method, _classifiers(settings)),
    }  # fmt: skip


def _classifiers(settings: RunSettings) -> float:
    """The size of the reward's and the judge's models in GB, as far as it is known."""
    own = {settings.model.id, settings.task.prompts, settings.task.fluency}
    return sum(download(name) or 0 for name in {*_downloads(settings)} - own) / 1e3


def needs(settings: RunSettings) -> list[Any]:
    """The prerequisites of a run, without those that ship with the package."""
    from harness.core import hub

    t = settings.task
    found = [] if settings.model.id in WORLDS else hub.models(settings.model.id, settings.model.revision)
    if t.fluency not in (None, "none", "micro"):
        found += hub.models(t.fluency)
    found += sources.needs(t.prompts, t.data)
    for name in dict.fromkeys((t.reward, t.judge)):
        kind = registry.load("scorer", settings.scorer_kind(name))
        if hasattr(kind, "needs"):
            found += kind.needs(settings.scorer_options(name))
    return list(dict.fromkeys(found))  # the judge of fluency may be the base policy
