"""Which runs are of one world, and what is measured of a run."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import only_group

from harness.analysis.columns import overoptimisation, removed
from harness.analysis.groups import groups, measure
from harness.core.errors import UsageError
from harness.records.read import find_runs, read_run
from harness.report.figures.pareto import pareto


@pytest.mark.parametrize("change", [{"model": "other"}, {"data": "other"}, {"scorers": "other"}, {"evaluation": {"n": 9}}])
def test_runs_of_two_worlds_are_kept_apart(change: dict, tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "ppo", 0, manifest={"identity": fake.identity("toxicity", "ppo", 0, **change)})
    runs, _ = find_runs([tmp_path])
    assert len(groups(runs)) == 2
    with pytest.raises(UsageError, match="2 different worlds"):
        pareto(runs)


def test_the_group_with_most_runs_comes_first(tmp_path: Path) -> None:
    for task, seeds in (("repetition", 1), ("toxicity", 3), ("sentiment", 1)):
        for seed in range(seeds):
            fake.write_run(tmp_path, "quark", seed, task=task)
    assert [group.task for group in groups(find_runs([tmp_path])[0])] == ["toxicity", "repetition", "sentiment"]


def test_frontiers_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "quark", 1, summary={"frontier": fake.frontier() | {"base_reward": 0.62 + 1e-9}})
    assert len(groups(find_runs([tmp_path])[0])) == 1


def test_settings_that_differ_are_two_rows(tmp_path: Path) -> None:
    for kl_coef in (0.05, 0.1):
        changed = fake.identity("toxicity", "quark", 0, method={"name": "quark", "settings": {"kl_coef": kl_coef}})
        fake.write_run(tmp_path, "quark", 0, id8=f"{kl_coef}", manifest={"identity": changed})
    names = [entry.name for entry in only_group(tmp_path).entries]
    assert names == ["quark (1: kl_coef=0.05)", "quark (2: kl_coef=0.1)"]


def test_removed_and_overoptimisation_by_hand(tmp_path: Path) -> None:
    final = {"judge": fake.point(0.94, 0.003), "reward": fake.point(0.92, 0.003)}
    run = read_run(fake.write_run(tmp_path, "quark", 0, final=final))
    assert removed(run).value == pytest.approx(80)  # 0.30 -> 0.06
    best = fake.BASE_JUDGE + (1 - fake.BASE_JUDGE) * 0.97 * (0.92 - fake.BASE_REWARD) / fake.SPREAD  # linear in the reward
    assert overoptimisation(run).value == pytest.approx(best - 0.94, abs=1e-4)


def test_a_policy_that_the_judge_likes_as_the_optimal_one_is_not_over_optimised(tmp_path: Path) -> None:
    """Reward and judge both at the optimum's: a difference of gains on the two scales would call it over-optimised."""
    best = fake.BASE_JUDGE + (1 - fake.BASE_JUDGE) * 0.97 * (0.95 - fake.BASE_REWARD) / fake.SPREAD
    final = {"judge": fake.point(best, 0.003), "reward": fake.point(0.95, 0.003)}
    run = read_run(fake.write_run(tmp_path, "quark", 0, final=final))
    assert overoptimisation(run).value == pytest.approx(0, abs=1e-4)
    measured = {**final, "overoptimisation": fake.point(0.01, 0.002)}
    assert overoptimisation(read_run(fake.write_run(tmp_path, "ppo", 0, final=measured))).value == 0.01
    frontier = fake.frontier() | {"judge_at": None}
    none = read_run(fake.write_run(tmp_path, "dpo", 0, final=final, summary={"frontier": frontier}))
    assert overoptimisation(none).reason == "the record holds no judge scores along the frontier"


def test_nothing_to_remove_is_said(tmp_path: Path) -> None:
    base = {**fake.BASE, "judge": fake.point(1.0, 0.0)}
    found = removed(read_run(fake.write_run(tmp_path, "quark", 0, summary={"base": base})))
    assert found.value is None and found.reason == "the base shows nothing to remove"


def test_what_was_not_recorded_or_has_not_finished_says_so(tmp_path: Path) -> None:
    done = read_run(fake.write_run(tmp_path, "quark", 0))
    failed = read_run(fake.write_run(tmp_path, "quark", 1, status="failed"))
    assert measure(done, "nonsense").reason == "not recorded"
    assert measure(failed, "kl").reason == "the run is failed"
