"""How often `harness compare` finds a difference where there is none."""

from math import sqrt
from pathlib import Path

import fake_records as fake
import numpy as np
import pytest

from harness.analysis import terms
from harness.analysis.compare import compare, parse_condition
from harness.analysis.select import Side
from harness.records.read import read_run
from harness.records.schema import MetricRecord, Prompts, Run

METRICS = ("judge", "reward", "kl", "distinct_2")


def in_memory(template: Run, side: str, values: np.ndarray) -> Side:
    """Runs [seeds, metrics] that are nowhere on disk."""
    runs = []
    for seed, row in enumerate(values):
        measured = {m: MetricRecord(value=float(v), stderr=0.01, n=800) for m, v in zip(METRICS, row, strict=True)}
        manifest = template.manifest.model_copy(update={"seed": seed})
        summary = template.summary.model_copy(update={"final": template.summary.final | measured})
        runs.append(Run(Path(side) / str(seed), manifest, summary, []))
    return Side(side, runs, [], [])


@pytest.mark.parametrize(
    ("n", "paired", "prompts"),
    [
        (3, True, False), (3, False, True),
        *(pytest.param(*world, marks=pytest.mark.long) for world in (
            (3, False, False), (3, True, True), (5, True, False), (5, True, True), (10, True, False), (10, True, True),
        )),
    ],
)  # fmt: skip
def test_false_positives_of_the_whole_comparison(tmp_path, monkeypatch, n, prompts, paired):
    """Four metrics without any difference: a verdict on any of them, or a false alarm, in at most one study of twenty.

    With prompts each side has its own taste for each of them, and the runs keep the scores of three of the metrics.
    """
    rng, template, studies = np.random.default_rng(n), read_run(fake.write_run(tmp_path, "quark", 0)), 300
    blank = dict.fromkeys(("reward", "judge", "kl", "nll_per_token"), [None] * 20)
    names = {"id": list(map(str, range(20))), "kind": ["calm"] * 20, "n_scored": [4] * 20}
    of_prompts = Prompts(schema_version=1, split="test", **names, **blank)
    kept: dict[Path, Prompts] = {}
    monkeypatch.setattr(terms, "prompt_scores", lambda run: kept.get(run.dir))
    wrong = alarms = 0
    for _ in range(studies):
        sides = []
        for name, rows in (("a", n), ("b", n if paired else n + 1)):
            values = rng.normal(size=(rows, 4, 20)) + rng.normal(size=(rows, 4, 1)) + prompts * rng.normal(size=(4, 20))
            sides.append(in_memory(template, name, values.mean(-1)))
            for run, row in zip(sides[-1].runs, values, strict=True) if prompts else ():
                kept[run.dir] = of_prompts.model_copy(update=dict(zip(METRICS[:3], row[:3].tolist(), strict=True)))
        found = compare(*sides, METRICS[: 3 if prompts else 4], [parse_condition("judge<-0")])
        assert {row.prompts for row in found.rows} == {20 if prompts else None}
        wrong += any(row.verdict in ("B better", "B worse") for row in found.rows)
        alarms += bool(found.regressions)
    assert wrong / studies <= 0.05 + 3 * sqrt(0.05 * 0.95 / studies)
    assert alarms / studies <= 0.025 + 3 * sqrt(0.025 * 0.975 / studies)
