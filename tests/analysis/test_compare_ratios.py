"""`harness compare` of ratios: the error over prompts by their terms."""

from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis.compare import compare
from harness.analysis.select import Side
from harness.records.read import find_runs


def test_an_efficiency_is_compared_over_seeds_and_prompts(tmp_path):
    """Seeds agree, and two prompts of four disagree: the seeds alone would show a difference."""
    least = {"quark": [0.2, 0.2, 0.6, 0.2], "ppo": [0.4, 0.1, 0.2, 0.6]}
    for method, kls in least.items():
        for seed in range(3):
            value = (sum(kls) / 4 + seed * 1e-4) / 0.5
            dir = fake.write_run(tmp_path, method, seed, final={"efficiency": fake.point(value, 0.01)})
            keep_prompts(dir, least_kl=[kl + seed * 1e-4 for kl in kls])
    sides = [sides_of(tmp_path, method) for method in least]
    (row,) = compare(*sides, ["efficiency"]).rows
    assert row.prompts == 4 and row.verdict == "no difference shown"
    assert row.difference.mean == pytest.approx((0.325 - 0.3) / 0.5, abs=1e-6)


def sides_of(root: Path, method: str) -> Side:
    return Side(method, [run for run in find_runs([root])[0] if run.manifest.method == method], [], [])


def keep_prompts(dir: Path, **columns: list[float]) -> None:
    half, names = [0.5] * 4, {"id": list("abcd"), "kind": ["calm"] * 4, "n_scored": [4] * 4}
    scores = dict.fromkeys(("reward", "judge", "kl", "nll_per_token"), half)
    fake.dump(dir / "prompts.json", {"schema_version": 1, "split": "test", **names, **scores, **columns})
