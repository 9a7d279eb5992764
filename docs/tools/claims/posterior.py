"""How the log-ratio of a policy to its base depends on the reward, from the recorded responses.

At the optimum of KL-regularised RL log policy/base (y | x) = r(x, y) / beta - log Z_x. So within a prompt the regression of the
log-ratio on the reward has slope 1 / beta; the prompts' own means take up log Z_x.
"""

from __future__ import annotations

import numpy as np

from harness.analysis.terms import ratio
from harness.records.schema import Sample

from .quantities import Table
from .records import Measured

MOST_BINS = 12


def centred(rows: list[Sample]) -> tuple[Table, Table, Table]:
    """Prompt, reward and log-ratio of each scored response, the latter two less the mean of the prompt: -> [n] each."""
    columns = {name: np.array([_number(row, name) for row in rows]) for name in ("reward", "log_ratio")}
    known = ~np.isnan(columns["reward"] + columns["log_ratio"])
    prompt = np.array([row["prompt_id"] for row in rows])[known]
    reward, log_ratio = columns["reward"][known], columns["log_ratio"][known]
    for x in np.unique(prompt):
        at = prompt == x
        reward[at] -= reward[at].mean()
        log_ratio[at] -= log_ratio[at].mean()
    return prompt, reward, log_ratio


def slope(rows: list[Sample], beta: float) -> Measured | None:
    """The slope within prompts, times beta, with a term for each prompt; None if no reward differs within a prompt."""
    prompt, reward, log_ratio = centred(rows)
    ids = np.unique(prompt)
    above = np.array([(reward * log_ratio)[prompt == x].sum() for x in ids])
    below = np.array([(reward**2)[prompt == x].sum() for x in ids])
    if not len(ids) or below.sum() == 0:
        return None
    terms = beta * ratio(above, below)
    return Measured(float(terms.mean()), tuple(terms.tolist()))


def bins(rows: list[Sample]) -> Measured | None:
    """Mean centred reward and log-ratio of up to 12 groups of equal size by reward: terms are the pairs in turn."""
    _, reward, log_ratio = centred(rows)
    order = np.argsort(reward, kind="stable")
    if not len(order):
        return None
    parts = [part for part in np.array_split(order, MOST_BINS) if len(part)]
    pairs = [(float(reward[part].mean()), float(log_ratio[part].mean())) for part in parts]
    return Measured(float(len(pairs)), tuple(value for pair in pairs for value in pair))


def _number(row: Sample, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]
