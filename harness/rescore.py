"""The scorers run again over the texts of a record: reward, judge, fluency, the task's own measures and the papers' metrics.

What `harness verify --rescore` adds. The policy does not: what it says is what the samples hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import assemble
from . import metrics as m
from .errors import MissingPrerequisite
from .records import Run
from .samples import read
from .settings import RunSettings, checked
from .types import Metric, Said
from .verify import Check, Table, compare
from .versions import settings_of

OF_A_MODEL = 1e-4
"""Relative difference of what a network says of the same text, on another machine or with other threads."""


def rescored(run: Run, offline: bool = False) -> list[Check]:
    """Checks of everything that the texts decide; raises MissingPrerequisite where the record cannot be rescored here."""
    if run.summary is None:
        raise MissingPrerequisite(f"{run.dir} has no result to rescore: the run is {run.manifest['status']}")
    told = settings_of(run)
    if not told:
        raise MissingPrerequisite(f"{run.dir} does not say its settings, so its scorers are not known")
    settings = checked(RunSettings, told)
    task = assemble.parts(settings, run.manifest["task"], offline).task
    checks = _identity(run, task)
    if any(check.held is False for check in checks):
        return checks
    for side in ("final", "base"):
        checks += _side(run, side, settings, task)
    return checks


def _identity(run: Run, task: Any) -> list[Check]:
    """Whether the scorers and the data here are those of the record."""
    now, made = task.identity(), run.manifest["identity"]
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
    summary: dict[str, Any] = run.summary or {}
    recorded = {name: summary[side][name] for name in found if name in summary[side]}
    return compare(side, recorded, found, tolerance)


def _scores(table: Table, side: str, name: str, settings: RunSettings) -> Check:
    """Each response's score against the one in the samples."""
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
    """A scorer's scores of responses [X][S], as a run keeps them: -> [X, S]."""
    name = getattr(settings.task, which)
    scorer = assemble.scorer(name, settings.scorers.get(name, {}))
    flat = [(prompt, text) for prompt, responses in zip(prompts, texts) for text in responses]
    scores = torch.as_tensor(scorer.score(*map(list, zip(*flat))), dtype=torch.float32)
    return scores.double().numpy().reshape(len(texts), -1)


def _papers(run: Run, side: str, table: Table, settings: RunSettings, task: Any) -> list[Check]:
    """The papers' metrics from what was said under their decodings, judged again."""
    if settings.evaluation.paper_samples == 0:
        return []
    try:
        rows = read(run, f"{side}-papers", {"decoding", "prompt_id", "response", "judge"})
    except MissingPrerequisite as error:
        return [Check(f"{side} papers' metrics", None, found=str(error))]
    said, checks = {}, []
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        part = Table([row | {"prompt": "", "kind": ""} for row in rows if row["decoding"] == decoding])
        again = score("judge", settings, table.prompts, part.texts)
        differ = int((~np.isclose(again, part.of("judge"), rtol=OF_A_MODEL, atol=1e-6, equal_nan=True)).sum())
        checks.append(
            Check(
                f"{side} judge under {decoding}", not differ, "the scorer's", f"others for {differ}" if differ else "the same"
            )
        )
        said[decoding] = Said(table.prompts, part.texts, again)
    found = dict(task.paper_metrics(said))
    for kind, x in table.kinds.items():
        parts = task.paper_metrics({name: s.of(x) for name, s in said.items()})
        found |= {f"{name}@{kind}": metric for name, metric in parts.items()}
    return checks + _compared(run, side, found, OF_A_MODEL)
