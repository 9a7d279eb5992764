"""What a report says in words: who leads, who ties, what is no gain, and what is suspected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import curve, ended, judged, only_group, report

from harness.analysis.ranking import above_frontier, beside_best_of_n
from harness.analysis.study import Study
from harness.records.read import find_runs, read_run
from harness.report.build import build
from harness.report.sections import optimum_table
from harness.report.verdict import verdict

UNDRAWN = pytest.mark.usefixtures("undrawn")


def test_verdict_names_the_leader_with_its_numbers(tmp_path: Path) -> None:
    said = " ".join(judged(tmp_path, {"quark": [0.96, 0.97, 0.98], "unlikelihood": [0.80, 0.81, 0.82]}))
    assert "quark removes the most: the undesired score falls from 0.300 to 0.030, 90% (95% interval 82 to 98%)" in said
    assert (
        "over 3 seeds" in said
        and "Every other method is ruled out as the best" in said
        and "optimal policy would reach the same reward" in said
    )


def test_a_control_that_sees_the_judge_is_a_yardstick_and_does_not_lead(tmp_path: Path) -> None:
    """The oracle removes more than any method may; it is in the tables, not in the ranking."""
    scores = {"oracle": [1.0, 0.999, 1.0], "quark": [0.96, 0.97, 0.98], "unlikelihood": [0.80, 0.81, 0.82]}
    said = " ".join(judged(tmp_path, scores))
    assert said.startswith("quark removes the most") and "Every other method is ruled out" in said and "oracle" not in said
    group = only_group(tmp_path)
    assert [(r.entry.name, r.ranks) for r in group.ranks] == [("quark", (1, 1)), ("unlikelihood", (2, 2))]
    table = optimum_table(group)
    rank = table.header.index("Rank (by removed)")
    assert {row[0]: row[rank] for row in table.rows}["oracle"] == "not ranked"


def test_alone_it_is_reported_as_any_other(tmp_path: Path) -> None:
    assert " ".join(judged(tmp_path, {"oracle": [1.0, 0.999, 1.0]})).startswith("oracle is the only method with a result")


def test_verdict_says_ties(tmp_path: Path) -> None:
    said = " ".join(
        judged(tmp_path, {"quark": [0.96, 0.97, 0.98], "unlikelihood": [0.93, 0.95, 0.97], "ppo": [0.7, 0.71, 0.72]})
    )
    assert re.search(
        r"Tied with quark, as the tests do not rule them out as the best \(.*Holm.*\): unlikelihood \(83%\)\.", said
    )


def test_verdict_of_one_seed_claims_no_order(tmp_path: Path) -> None:
    said = " ".join(judged(tmp_path, {"quark": [0.97], "ppo": [0.8]}))
    assert "One seed gives no interval over seeds (quark, ppo); the order of these may be chance." in said


def test_verdict_on_no_gain(tmp_path: Path) -> None:
    assert judged(tmp_path / "less", {"quark": [0.64]})[0].startswith("No method removes the habit")
    said = judged(tmp_path / "same", {"quark": [0.7001], "ppo": [0.64]})[0]  # of .3, .0001: less than one percent
    assert said.startswith("No method removes the habit: the best, quark, changes the undesired score by +0%")


def test_verdict_on_a_gain_that_may_be_none(tmp_path: Path) -> None:
    assert "The interval of quark includes no change at all." in judged(tmp_path, {"quark": [0.6, 0.85]})


def test_verdict_without_a_judge_or_a_finished_run(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "a", "quark", 0, final={"judge": fake.point(None, reason="offline")})
    fake.write_run(tmp_path / "b", "quark", 0, status="failed")
    assert "(seed 0: offline)" in verdict(only_group(tmp_path / "a"))[0]
    assert verdict(only_group(tmp_path / "b")) == [
        "No verdict: no run is done.",
        "Left out of means and ranking: 1 failed.",
    ]


def test_a_run_above_the_frontier_is_a_suspect_and_not_a_winner(messy: tuple) -> None:
    root, out, result = messy
    leaky = read_run(root / "micro/toxicity/leaky/5e5e5e5e-s0")
    assert above_frontier(leaky).reward == pytest.approx(0.99 - fake.best_reward(0.4), abs=0.002)
    assert any(p.path == leaky.dir and "suspected bug in the suite" in p.what for p in result.problems)
    assert "Suspected bug in the suite, not a good method: leaky seed 0" in (out / "index.html").read_text()


@UNDRAWN
def test_the_update_at_which_a_run_was_above_is_said(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "a", 0, summary={"frontier": fake.frontier() | {"above": True}})
    rows = [json.loads(line) for line in (dir / "trajectory.jsonl").read_text().splitlines()]
    rows[2]["metrics"]["regret"] = fake.point(-0.03, 0.01)
    fake.dump_rows(dir / "trajectory.jsonl", rows)
    (problem,) = build(Study(*find_runs([tmp_path])), tmp_path / "out").impossible
    assert "by 0.030 reward, 3.0 standard errors, at update 20: a suspected bug" in problem.what


@UNDRAWN
def test_a_few_unscored_responses_are_said_though_the_run_counts(tmp_path: Path) -> None:
    final = {"judge": fake.point(0.9, 0.01) | {"n_unscored": 3}}
    fake.write_run(tmp_path / "r", "quark", 0, final=final)
    result = report(tmp_path / "r", tmp_path / "out")
    assert "quark, seed 0: responses without a score (judge 3)" in (tmp_path / "out/index.html").read_text()
    assert result.exit_code == 0


def test_who_loses_to_best_of_n_is_said(tmp_path: Path) -> None:
    """At half a nat best-of-n lies halfway between the base (0.2) and its n = 2 (0.5): 0.35."""
    world = curve((0.0, 0.2), (2.0, 1.0))
    for method, rewards in {"low": [0.30, 0.31, 0.32], "high": [0.38, 0.39, 0.40], "even": [0.33, 0.35, 0.37]}.items():
        ended(tmp_path, method, 0.5, rewards, world)
    group = only_group(tmp_path)
    gaps = {entry.name: beside_best_of_n(entry) for entry in group.entries}
    assert {name: round(gap.mean, 9) for name, gap in gaps.items() if gap} == {"low": -0.04, "high": 0.04, "even": 0.0}
    said = verdict(group)
    assert "Less reward than the best of n base responses at the same KL, which needs no training: low." in said
    assert "More reward than the best of n base responses at the same KL: high." in said


def test_a_leader_beyond_the_cap_is_said_so(tmp_path: Path) -> None:
    for seed in range(2):
        fake.write_run(tmp_path, "wild", seed, final={"judge": fake.point(0.99, 0.01), "kl": fake.point(9.0, 0.1)})
        fake.write_run(tmp_path, "mild", seed, final={"judge": fake.point(0.91, 0.01), "kl": fake.point(0.9, 0.1)})
    first = verdict(only_group(tmp_path))[0]  # the overview has this sentence alone
    assert first.startswith("wild removes the most")
    assert first.endswith("That is beyond the task's cap of 1.5 nats; within it, mild removes most, 70%.")
