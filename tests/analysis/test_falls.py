"""Over-optimisation along a knob."""

from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import only_group

from harness.report.curves import falls_table, over_optimised

VALUES = (1.0, 0.3, 0.1)


def knob(root: Path, method: str, judges: list[float], rewards: list[float], seeds: int = 3) -> None:
    """Runs of a method at three values of kl_coef whose seeds scatter by 0.01; prompts are not kept."""
    for i, (value, judge, reward) in enumerate(zip(VALUES, judges, rewards, strict=True)):
        for seed in range(seeds):
            identity = fake.identity("toxicity", method, seed)
            identity["method"]["settings"] = {"lr": 1e-4, "kl_coef": value}
            off = 0.01 * (seed - 1)
            final = {"judge": fake.point(judge + off), "reward": fake.point(reward + off), "kl": fake.point(0.3 + i)}
            manifest = {"identity": identity, "knob": "kl_coef"}
            fake.write_run(root, method, seed, final=final, manifest=manifest, id8=f"{i:08d}")


def test_a_judge_that_falls_while_the_reward_rises_is_shown(tmp_path):
    """By hand: three seeds of sd 0.01 a side; Welch's t of a fall of 0.1 is 0.1 / (0.01 sqrt(2/3)) = 12.2 at 4 degrees of
    freedom, p 0.000255, and so of the rise; of six tests the smallest p counts six times. ppo's judge falls with its reward,
    quark's rises, and neither is over-optimised."""
    knob(tmp_path, "reinforce", [0.8, 0.9, 0.8], [0.6, 0.7, 0.8])
    knob(tmp_path, "ppo", [0.8, 0.9, 0.8], [0.6, 0.9, 0.8])
    knob(tmp_path, "quark", [0.7, 0.8, 0.9], [0.6, 0.7, 0.8])
    (fall,) = (group := only_group(tmp_path)).falls
    assert (fall.name, fall.value, fall.weakest) == ("reinforce", 0.3, 0.1) and fall.shown
    assert fall.judge.mean == pytest.approx(-0.1) and fall.reward.mean == pytest.approx(0.1)
    assert fall.p == pytest.approx(6 * 0.000255, rel=0.01)
    assert "reinforce (kl_coef from 0.3 to 0.1)" in over_optimised(group)
    ((name, where, reward, judge, _),) = falls_table(group).rows
    assert (name, where) == ("reinforce", "kl_coef 0.3 to 0.1") and reward.startswith("+0.100 [") and judge.startswith("−0.100")


def test_a_fall_within_the_error_or_of_one_seed_is_listed_and_not_shown(tmp_path):
    knob(tmp_path / "a", "reinforce", [0.8, 0.9, 0.89], [0.6, 0.7, 0.8])
    knob(tmp_path / "b", "reinforce", [0.8, 0.9, 0.5], [0.6, 0.7, 0.8], seeds=1)
    for folder in ("a", "b"):
        group = only_group(tmp_path / folder)
        (fall,) = group.falls
        assert fall.value == 0.3 and not fall.shown and over_optimised(group).startswith("No judge score falls")
    assert fall.p == 1.0


def test_a_value_without_a_score_is_no_test(tmp_path):
    knob(tmp_path, "reinforce", [0.8, 0.9, 0.8], [0.6, 0.7, 0.8])
    for seed in range(3):
        path = next(tmp_path.glob(f"micro/toxicity/reinforce/00000001-s{seed}/summary.json"))
        text = path.read_text().replace('"judge":', '"judged":')
        path.write_text(text)
    assert only_group(tmp_path).falls == []


def test_without_curves_nothing_is_said(tmp_path):
    fake.write_run(tmp_path, "quark", 0)
    group = only_group(tmp_path)
    assert group.falls == [] and falls_table(group) is None and over_optimised(group) == ""
