"""The picture of a method at several budgets."""

from pathlib import Path

import budget_picture
import fake_records as fake
import pytest

from harness.core.errors import EmptySelection, Unwritable
from harness.records.read import find_runs


def record(root: Path, seed: int, flops: float, judge: float | None, **settings: int) -> None:
    identity = fake.identity("toxicity", "quark", seed) | {"budget": {"flops": flops}}
    identity["method"] = identity["method"] | {"settings": settings}
    final = {"judge": fake.point(judge, 0.01), "reward": fake.point(0.7, 0.02), "kl": fake.point(2.0)}
    told = {"manifest": {"identity": identity}, "summary": {"base": fake.BASE | {"judge": fake.point(0.6)}}}
    fake.write_run(root, "quark", seed, final=final, **told)


def test_what_is_removed_by_hand(tmp_path):
    """0.4 undesired falls to 0.3: a quarter is gone, and 1.96 errors of 0.01 are 4.9 % of 0.4."""
    record(tmp_path, 0, 1e14, 0.7, neutral_updates=20)
    (run,) = find_runs([tmp_path])[0]
    point = budget_picture.point(run)
    assert (point.flops, point.label) == (1e14, "20 neutral updates first")
    assert point.numbers["removed"] == pytest.approx((25.0, 4.9), abs=1e-3)
    assert point.numbers["reward"] == pytest.approx((0.7, 0.0392), abs=1e-4)


def test_a_run_without_a_score_is_left_out(tmp_path):
    record(tmp_path, 0, 1e14, None)
    assert not any(budget_picture.whole(run) for run in find_runs([tmp_path])[0])
    with pytest.raises(EmptySelection):
        budget_picture.main([str(tmp_path / "budget.png"), str(tmp_path)])


def test_the_command(tmp_path):
    for seed, flops in enumerate((1e14, 2e14)):
        record(tmp_path / "runs", seed, flops, 0.7)
    picture = tmp_path / "budget.png"
    budget_picture.main([str(picture), str(tmp_path / "runs")])
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Unwritable, match="cannot be written"):
        budget_picture.main([str(tmp_path / "no" / "such.png"), str(tmp_path / "runs")])
    with pytest.raises(EmptySelection, match="no run there has ended with a score"):
        budget_picture.main([str(picture), str(tmp_path / "none")])
