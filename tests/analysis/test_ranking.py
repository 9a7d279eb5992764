"""Who leads, by how much, and what lies above the frontier."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
import numpy as np
import pytest
from fake_reports import curve, judged, only_group, place

from harness.analysis.ranking import above_frontier, beats, share_of_area
from harness.analysis.stats import Interval
from harness.records.read import read_run
from harness.records.schema import Run


def test_within_its_error_above_the_frontier_is_no_suspect(tmp_path: Path) -> None:
    assert above_frontier(place(tmp_path, 0.5, fake.best_reward(0.5) + 0.008)) is None


def test_beyond_the_solid_frontier_the_upper_bound_counts(tmp_path: Path) -> None:
    assert above_frontier(place(tmp_path / "a", 2.0, fake.best_reward(2.0) + 0.005)) is None
    assert above_frontier(place(tmp_path / "b", 2.0, fake.best_reward(2.0) + 0.06)) is not None


def test_where_no_frontier_is_known_nothing_is_suspected(tmp_path: Path) -> None:
    none_solid = fake.frontier() | {"curve": [], "upper": []}
    assert above_frontier(place(tmp_path / "a", 0.5, 1.0, none_solid)) is None
    assert above_frontier(place(tmp_path / "b", 30.0, 1.0)) is None


def test_a_run_is_above_the_frontier_by_its_own_word(tmp_path: Path) -> None:
    flagged = fake.frontier() | {"above": True}
    cleared = fake.frontier() | {"above": False}
    final = {"reward": fake.point(0.99, 0.003), "kl": fake.point(0.4, 0.01), "regret": fake.point(-0.08, 0.02)}
    one = read_run(fake.write_run(tmp_path, "a", 0, summary={"frontier": flagged}))
    assert above_frontier(one) == (None, None, None)  # it says so, and no point that it kept shows it
    two = read_run(fake.write_run(tmp_path, "b", 0, final=final, summary={"frontier": flagged}))
    assert above_frontier(two) == pytest.approx((0.08, 4.0, None))
    three = read_run(fake.write_run(tmp_path, "c", 0, final=final, summary={"frontier": cleared}))
    assert above_frontier(three) is None


def along(root: Path, method: str, points: list[tuple[float, float]]) -> Run:
    """A run whose trajectory and end are these points of KL and judge; its frontier is a triangle, 0.2 to 1 over 2 nats."""
    whole = curve((0.0, 0.2), (2.0, 1.0)) | {"judge_at": {"kl": [0.0, 2.0], "judge": [0.2, 1.0]}}
    both = [{"kl": fake.point(kl, 0.01), "judge": fake.point(j, 0.01), "reward": fake.point(j, 0.01)} for kl, j in points]
    base = fake.BASE | {"judge": fake.point(0.2, 0.01)}
    dir = fake.write_run(root, method, 0, final=both[-1], summary={"frontier": whole, "base": base})
    rows = [{"update": i, "split": "test", "metrics": m} for i, m in enumerate([base, *both])]
    fake.dump_rows(dir / "trajectory.jsonl", rows)
    return read_run(dir)


def test_the_area_by_hand(tmp_path: Path) -> None:
    """The triangle of the frontier is 0.8. A line to 0.3 above the base at 1 nat, then level: 0.15 + 0.3."""
    run = along(tmp_path, "x", [(1.0, 0.5)])
    for key in ("judge", "reward"):
        assert share_of_area(run, key).value == pytest.approx(0.45 / 0.8)
        assert share_of_area(run, key).stderr == pytest.approx((0.005 + 0.01) / 0.8)
    beyond = along(tmp_path, "beyond", [(4.0, 0.8)])  # on the way to its end it is 0.3 above the base at the cap
    assert share_of_area(beyond, "judge").value == pytest.approx(0.3 / 0.8)
    uncapped = run.summary.frontier.model_copy(update={"kl_cap": None})
    none = run._replace(summary=run.summary.model_copy(update={"frontier": uncapped}))
    assert share_of_area(none, "judge").reason == "the task declares no KL cap"
    unjudged = run.summary.frontier.model_copy(update={"judge_at": None})
    none = run._replace(summary=run.summary.model_copy(update={"frontier": unjudged}))
    assert share_of_area(none, "judge").reason == "the frontier is not known"


def test_what_does_not_improve_has_no_area_above_the_base(tmp_path: Path) -> None:
    """The base policy's own noise, a policy that drifts by chance, and one that gets worse: a hypervolume ranks them above."""
    base = along(tmp_path, "base", [(0.0, 0.23), (0.0, 0.26)])
    assert share_of_area(base, "judge").value == 0
    noise = [(0.2, 0.22), (0.5, 0.18), (0.8, 0.21), (1.2, 0.185), (1.6, 0.205)]
    random_reward = share_of_area(along(tmp_path, "random_reward", noise), "judge")
    assert abs(random_reward.value) < 2 * random_reward.stderr
    assert share_of_area(along(tmp_path, "mle", [(0.5, 0.15), (1.0, 0.1)]), "judge").value < 0


@pytest.mark.parametrize(
    ("gap", "word"),
    [
        ((0.02, 0.01, 0.03), True),
        ((-0.02, -0.03, -0.01), False),
        ((0.02, -0.01, 0.05), None),
        ((0.0004, 0.0003, 0.0005), None),  # a full score beside a best-of-n of 0.9996 is no news
        ((0.02, None, None), None),
    ],
)
def test_a_difference_counts_beyond_its_interval_and_what_tables_show(gap: tuple, word: bool | None) -> None:
    assert beats(Interval(*gap)) is word


def test_ranks_and_the_least_difference_seen_by_simulated_seeds(tmp_path: Path) -> None:
    """Two methods that differ by exactly the effect named are told apart in about 80 of 100 draws of three seeds."""
    judged(tmp_path, {"a": [0.90, 0.91, 0.92], "b": [0.905, 0.915, 0.925], "c": [0.70, 0.71, 0.72]})
    group = only_group(tmp_path)
    assert {r.entry.name: r.ranks for r in group.ranks} == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    rng = np.random.default_rng(0)
    spread = 100 * 0.01 / 0.3  # one seed's, in percent of the base's 0.30
    a, b = rng.normal(0, spread, (4000, 3)), rng.normal(group.least_shown, spread, (4000, 3))
    pooled = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 3)
    assert np.mean(np.abs(b.mean(1) - a.mean(1)) / pooled > 2.776) == pytest.approx(0.8, abs=0.03)


def test_ranks_hold_the_error_over_prompts(tmp_path: Path) -> None:
    """Two methods whose seeds agree, on ten prompts that do not: apart by the seeds alone, not by the prompts too."""
    taste = np.random.default_rng(1).normal(0, 0.1, 10)
    judged(tmp_path, {"a": [0.900, 0.901, 0.902], "b": [0.880, 0.881, 0.882]})
    for i, dir in enumerate(sorted(p.parent for p in tmp_path.rglob("summary.json"))):
        level = read_run(dir).summary.final["judge"].value
        keep_prompts(dir, level + (taste - taste.mean()) * (1 if i < 3 else -1))
    group = only_group(tmp_path)
    assert {r.ranks for r in group.ranks} == {(1, 2)}
    assert group.removed_more(*group.entries).mean == pytest.approx(100 * 0.02 / 0.3, rel=0.01)


def keep_prompts(dir: Path, judge: np.ndarray) -> None:
    x = len(judge)
    names = {"id": list(map(str, range(x))), "kind": ["calm"] * x, "n_scored": [4] * x}
    none = dict.fromkeys(("reward", "kl", "nll_per_token"), [None] * x)
    scores = {"judge": judge.tolist(), "base_judge": [0.7] * x}
    fake.dump(dir / "prompts.json", {"schema_version": 1, "split": "test", **names, **none, **scores})
