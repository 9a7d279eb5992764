"""Rescore the responses of a record (`harness verify --rescore`): reward, judge, fluency, task and paper metrics.

The policy does not run again: its responses are read from the samples.

A record may come from somebody else and is not trusted: everything loaded here is named by this installation (its presets,
its registered scorers) or by this command line. The names in a record are compared with these, and never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core import registry
from harness.core.errors import MissingPrerequisite, cut
from harness.core.settings import RunSettings, checked, flat, parse_override, preset_names, stem_of
from harness.core.text import escaped
from harness.core.types import Metric, Responses
from harness.measure import metrics as m
from harness.records.archive import place_of
from harness.records.checks import Check
from harness.records.read import settings_of, source_of
from harness.records.samples import read, read_papers
from harness.records.schema import PaperSample, Run, Sample
from harness.records.verify import Table, compare
from harness.runs import assemble, named, scorers
from harness.tasks.micro.frozen import WORLDS

OF_A_MODEL = 1e-4
"""Relative tolerance of a network's scores of the same text on another machine or with other threads."""
NAMES = ("model.id", "model.revision", "task.prompts", "task.data.path", "task.data.revision", "task.fluency", "task.reward")
"""Settings that name something to load, in addition to the judge and the options of scorers."""
ONLY_HOW = ("batch_size", "device", "timeout")
"""Options of a scorer that do not change its scores."""


class Named(NamedTuple):
    """Names from the command line: `key=value` settings, and the files of a task and a preset."""

    overrides: Iterable[str] = ()
    task: str | None = None
    preset: str | None = None


def rescored(run: Run, offline: bool = False, told: Named | None = None) -> list[Check]:
    """Check all metrics that depend on the texts; raises MissingPrerequisite if the record cannot be rescored here.

    Names in the record that no preset has are loaded only if the command line (`told`) gives them.
    """
    if run.summary is None:
        raise MissingPrerequisite(f"{run.dir} has no result to rescore: the run is {run.manifest.status}")
    told = told or Named()
    settings = trusted(run, told)
    shared = assemble.parts(settings, _task(run, told), offline)
    task, checks = shared.task, agreeing(run, shared)
    if any(check.held is False for check in checks):
        return checks
    for side in ("final", "base"):
        checks += _side(run, side, settings, task)
    return checks


def _task(run: Run, told: Named) -> str:
    """The task on the command line, else the record's if it is installed; raises MissingPrerequisite if it is not."""
    name = run.manifest.task
    if told.task is not None:
        return registry.given("task", told.task)
    if name not in registry.table("task"):
        raise MissingPrerequisite(
            f"{run.dir} names the task {escaped(cut(name))}, which is not installed, and records are not trusted; "
            f"if you have its file and trust it, name it: --task ./my_task.py"
        )
    return name


def _preset(run: Run, record: RunSettings, told: Named) -> str:
    if told.preset is None and record.preset not in preset_names():
        raise MissingPrerequisite(
            f"{run.dir} names the preset {escaped(cut(record.preset))}, which does not ship; "
            f"if you have its file, name it: --preset ./my.toml"
        )
    return told.preset or record.preset


def trusted(run: Run, told: Named) -> RunSettings:
    """Settings to rebuild a record's scorers, in which nothing to be loaded is named by the record alone.

    Raises MissingPrerequisite if the record names more than this installation and this command line do.
    """
    kept = settings_of(run)
    if not kept:
        raise MissingPrerequisite(f"{run.dir} records no settings, so its scorers cannot be rebuilt")
    record, given = checked(RunSettings, kept), dict(map(parse_override, told.overrides))
    task, preset = _task(run, told), _preset(run, record, told)
    for option, place in (("--task", told.task), ("--preset", told.preset)):
        _refuse_place(run, option, place)
    found = named.settings(preset, stem_of(run.manifest.method), task, _harmless(record) | given)
    _refuse_unnamed(run, record, named.recorded(found), given)
    _refuse_inside(run, found)
    return found


def _harmless(record: RunSettings) -> dict[str, Any]:
    """The settings that may be taken from a record: numbers, and names that are part of this installation."""
    whole = flat(record.model_dump())
    prompts, fluency = record.task.prompts, record.task.fluency
    found: dict[str, Any] = {"model.id": record.model.id} if record.model.id in WORLDS else {}
    found |= {"task.prompts": prompts} if prompts in WORLDS or prompts in registry.table("dataset") else {}
    found |= {"task.fluency": fluency} if fluency in ("micro", "none", None) else {}
    known = registry.table("scorer")
    found |= {f"task.{role}": name for role, name in _scorers(record).items() if name in known}
    numbers = [key for key in whole if key.startswith(("task.decoding.", "task.data.", "evaluation."))]
    numbers = [key for key in numbers if key not in NAMES] + ["task.paper_tokens", "task.kl_cap", "task.chat", "model.dtype"]
    return found | {key: whole[key] for key in numbers if key in whole}


def _scorers(settings: RunSettings) -> dict[str, str]:
    return {"reward": settings.task.reward, "judge": settings.task.judge}


def _named(settings: RunSettings) -> dict[str, Any]:
    """All settings, by key, that name something to load or pin its content."""
    whole = flat(settings.model_dump())
    options = tuple(f"scorers.{stem_of(name)}." for name in _scorers(settings).values())
    found = {key: whole.get(key) for key in (*NAMES, "task.judge")}
    return found | {k: v for k, v in whole.items() if k.startswith(options) and k.rpartition(".")[2] not in ONLY_HOW}


def _refuse_unnamed(run: Run, record: RunSettings, found: RunSettings, given: dict[str, Any]) -> None:
    """Raise MissingPrerequisite if the record names anything that this installation and this command line do not."""
    here = _named(found)

    def unnamed(key: str, value: Any) -> bool:
        return value is not None and value != here.get(key) and not any(f"{key}.".startswith(f"{told}.") for told in given)

    if beyond := sorted(key for key, value in _named(record).items() if unnamed(key, value)):
        what = escaped(", ".join(beyond))
        raise MissingPrerequisite(
            f"{run.dir} names {what}, and records are not trusted; "
            f"give each that you trust on this command line: --set KEY=VALUE"
        )


def _refuse_inside(run: Run, settings: RunSettings) -> None:
    """Raise MissingPrerequisite if anything to load lies inside or beside a record, whoever names it."""
    for key, value in _named(settings).items():
        scorer = key in ("task.reward", "task.judge") and not scorers.is_path(str(value))
        if not (value in (*WORLDS, "none") or scorer):
            _refuse_place(run, key, value)


def _refuse_place(run: Run, key: str, value: Any) -> None:
    if isinstance(value, str) and _belongs(Path(os.path.expanduser(value)), run):
        raise MissingPrerequisite(
            f"{key} is {value}, inside or beside the record {run.dir}, where nothing is loaded from; keep it elsewhere"
        )


def _belongs(path: Path, run: Run) -> bool:
    """Return True if a path may have come with a record: inside it, next to it, or below its preset's folder."""
    if not os.path.exists(path):
        return False
    real, dir, place = Path(os.path.realpath(path)), Path(os.path.realpath(run.dir)), place_of(run)
    above = dir.parents[2] if len(dir.parts) > 4 and dir.parts[-4:-1] == place.parts[:-1] else dir
    home = Path(os.path.realpath(source_of(run).home))  # the folder of a study, whose records have no folders of their own
    inside = real.is_relative_to(above) or real.is_relative_to(home)
    return inside or real.parent in (dir.parent, above.parent, home.parent) or real in dir.parents


def agreeing(run: Run, shared: assemble.Parts) -> list[Check]:
    """Check that task, scorers and fluency model here are those of the record."""
    now, made = shared.identity(), run.manifest.identity
    return [
        Check(f"{key} here", now[key] == made.get(key), "that of the record", "another")
        for key in ("task", "scorers", "fluency")
    ]


def _side(run: Run, side: str, settings: RunSettings, task: Any) -> list[Check]:
    rows = read(run, side)
    table = Table(rows)
    checks = [_scores(table, side, name, settings) for name in ("reward", "judge")]
    found: dict[str, Metric] = dict(task.text_metrics(table.texts))
    if task.fluency is not None:
        found["ppl"] = m.perplexity(*task.fluency.nll(table.prompts, table.texts))
    checks += _compared(run, side, found, OF_A_MODEL)
    return checks + _papers(run, side, table, settings, task)


def _compared(run: Run, side: str, found: dict[str, Metric], tolerance: float) -> list[Check]:
    kept = run.summary.metrics(side) if run.summary is not None else {}
    return compare(side, {name: kept[name] for name in found if name in kept}, found, tolerance)


def _scores(table: Table, side: str, name: str, settings: RunSettings) -> Check:
    """Compare the score of each response with the one in the samples."""
    again = score(name, settings, table.prompts, table.texts)
    kept = table.of(name)
    differ = int((~np.isclose(again, kept, rtol=OF_A_MODEL, atol=1e-6, equal_nan=True)).sum())
    return Check(
        f"{side} {name} of each response",
        not differ,
        "the scorer's",
        f"others for {differ} of {kept.size}" if differ else "the same",
    )


def score(which: str, settings: RunSettings, prompts: list[str], texts: list[list[str]]) -> NDArray:
    """Score responses [X][S] with the reward or the judge, in float32 as a run records them: -> [X, S]."""
    name = getattr(settings.task, which)
    scorer = scorers.built(name, settings.scorer_options(name))
    flat = [(prompt, text) for prompt, responses in zip(prompts, texts, strict=True) for text in responses]
    scores = torch.as_tensor(scorer.score(*map(list, zip(*flat, strict=True))), dtype=torch.float32)
    return scores.double().numpy().reshape(len(texts), -1)


def _of_no_prompt(row: PaperSample) -> Sample:
    """A response under a papers' decoding; the text and the kind of its prompt are with the other samples."""
    return {
        "prompt_id": row["prompt_id"], "kind": "", "prompt": "", "response": row["response"], "reward": None,
        "judge": row["judge"],
    }  # fmt: skip


def _papers(run: Run, side: str, table: Table, settings: RunSettings, task: Any) -> list[Check]:
    """Check the papers' metrics after the judge has scored the responses under their decodings again."""
    if settings.evaluation.paper_samples == 0:
        return []
    try:
        rows = read_papers(run, side)
    except MissingPrerequisite as error:
        return [Check(f"{side} papers' metrics", None, found=str(error))]
    said, checks = {}, []
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        part = Table([_of_no_prompt(row) for row in rows if row["decoding"] == decoding])
        again = score("judge", settings, table.prompts, part.texts)
        differ = int((~np.isclose(again, part.of("judge"), rtol=OF_A_MODEL, atol=1e-6, equal_nan=True)).sum())
        checks.append(
            Check(
                f"{side} judge under {decoding}", not differ, "the scorer's", f"others for {differ}" if differ else "the same"
            )
        )
        said[decoding] = Responses(table.prompts, part.texts, again)
    found = dict(task.paper_metrics(said))
    for kind, x in table.kinds.items():
        parts = task.paper_metrics({name: s.of(x) for name, s in said.items()})
        found |= {f"{name}@{kind}": metric for name, metric in parts.items()}
    return checks + _compared(run, side, found, OF_A_MODEL)
