"""The table of trials, and the rule that chooses among them."""

import shutil
import subprocess
import sys

import fake_records
import pytest

from harness.analysis.study import Study
from harness.core.errors import EmptySelection
from harness.records.read import find_runs
from harness.report import trials


def test_trials_of_two_choices_of_a_setting(tmp_path):
    """Numbers worked by hand: judges 0.7 and 0.9 for one choice, 0.6 and no second seed for the other; a failed run is none."""
    evaluation = {"n": 200, "split": "validation"}

    def record(method: str, seed: int, kl_coef: float, judge: float, status: str = "done") -> None:
        settings = {"name": method, "version": 1, "settings": {"lr": 1e-4, "kl_coef": kl_coef}}
        identity = fake_records.identity("toxicity", method, seed, method=settings, evaluation=evaluation)
        final, id8 = {"judge": fake_records.point(judge)}, f"{int(100 * kl_coef):08d}"
        fake_records.write_run(tmp_path, method, seed, status=status, final=final, manifest={"identity": identity}, id8=id8)

    record("quark", 0, 0.1, 0.7)
    record("quark", 1, 0.1, 0.9)
    record("quark", 0, 0.3, 0.6)
    record("quark", 1, 0.3, 0.2, status="failed")
    record("ppo", 0, 0.3, 0.5)
    runs, problems = find_runs([tmp_path])
    (group,) = Study(runs).groups
    rows = {(row[0], row[1]): row[2:] for row in trials.trials_table(group).rows}
    assert not problems and list(rows) == [("ppo", ""), ("quark", "kl_coef=0.1"), ("quark", "kl_coef=0.3")]
    assert rows["quark", "kl_coef=0.1"][0] == "0, 1" and rows["quark", "kl_coef=0.1"][2].startswith("0.800 [")
    assert rows["quark", "kl_coef=0.3"][0] == "0" and rows["quark", "kl_coef=0.3"][2] == "0.600"
    text = trials.page(Study(runs))
    assert "### toxicity, preset micro, validation prompts" in text and "Trials: ppo 1, quark 2." in text


def test_the_rule_takes_the_highest_judge_at_the_cap(tmp_path):
    """The cap of the invented task is 1.5 nats, the base's judge 0.5. Beyond the cap a share of responses is the policy's: of
    ppo 0.5 + 0.45 x 1.5 / 1.6 = 0.922 beats 0.9, of grpo 0.5 + 0.4 x 1.5 / 2 = 0.8 beats 0.5 + 0.3 x 1.5 / 1.9 = 0.737, of awr
    0.5 + 0.49 x 1.5 / 7 = 0.605 loses to 0.7; of quark's two best the first is taken.
    """

    def record(method: str, lr: float, judge: float, kl: float, split: str) -> None:
        identity = fake_records.identity(
            "toxicity", method, 0, method={"name": method, "version": 1, "settings": {"lr": lr}}, evaluation={"split": split}
        )
        final = {"judge": fake_records.point(judge), "kl": fake_records.point(kl)}
        told = {"manifest": {"identity": identity}, "summary": half(), "id8": f"{int(lr):08d}"}
        fake_records.write_run(tmp_path, method, 0, final=final, **told)

    for split in ("validation", "test"):
        for method, lr, judge, kl in [("ppo", 1, 0.9, 1.4), ("ppo", 2, 0.95, 1.6), ("ppo", 3, 0.8, 0.1)]:
            record(method, lr, judge, kl, split)
        for lr, judge, kl in [(1, 0.7, 0.2), (2, 0.99, 7.0)]:
            record("awr", lr, judge, kl, split)
        for lr, judge, kl in [(1, 0.9, 2.0), (2, 0.8, 1.9)]:
            record("grpo", lr, judge, kl, split)
        for lr, judge in [(1, 0.7), (2, 0.8), (3, 0.8)]:
            record("quark", lr, judge, 1.5, split)
        (group,) = Study(*find_runs([tmp_path])).groups
        found = [(row[0], row[1]) for row in trials.trials_table(group, rule=True).rows if row[-1] == "chosen"]
        assert found == [("awr", "lr=1"), ("grpo", "lr=1"), ("ppo", "lr=2"), ("quark", "lr=2")]
        shutil.rmtree(tmp_path / "micro")
    text = trials.page(Study(group.runs))
    assert "test prompts" in text and "rule" not in text.lower()  # nothing is chosen there


def half():
    """The summary's base policy with a judge of 0.5."""
    return {"base": fake_records.BASE | {"judge": fake_records.point(0.5)}}


def tried(root, rows, prompts=None):
    """The learning rate chosen among trials (judge, standard error, KL), with scores of prompts where given: [X] each."""
    for i, (judge, stderr, kl) in enumerate(rows, 1):
        method = {"name": "quark", "version": 1, "settings": {"lr": i}}
        identity = fake_records.identity("toxicity", "quark", 0, method=method, evaluation={"split": "validation"})
        final = {"judge": fake_records.point(judge, stderr), "kl": fake_records.point(kl, 0.01)}
        told = {"manifest": {"identity": identity}, "summary": half(), "id8": f"{i:08d}"}
        folder = fake_records.write_run(root, "quark", 0, final=final, **told)
        if prompts:
            columns = {"id": ["a", "b", "c", "d"], "kind": ["heated"] * 4, "n_scored": [16] * 4, "judge": prompts[i - 1]}
            columns |= {key: prompts[i - 1] for key in ("reward", "kl", "nll_per_token")}
            columns |= {key: [0.5] * 4 for key in ("base_reward", "base_judge")}
            fake_records.dump(folder / "prompts.json", {"schema_version": 1, "split": "validation", **columns})
    (group,) = Study(*find_runs([root])).groups
    best = trials.chosen(group, group.entries)
    return best and best.runs[0].manifest.identity["method"]["settings"]["lr"]


def test_within_one_standard_error_of_the_best_the_lower_kl_wins(tmp_path):
    """Errors of 0.03 and 0.04 are 0.05 for the difference: a judge of 0.85 ties with 0.9, one of 0.84 does not."""
    assert tried(tmp_path / "a", [(0.9, 0.03, 1.0), (0.8501, 0.04, 0.5)]) == 2
    assert tried(tmp_path / "b", [(0.9, 0.03, 1.0), (0.84, 0.04, 0.5)]) == 1
    assert tried(tmp_path / "c", [(0.9, None, 1.0), (0.9, None, 0.5), (0.9, None, 0.7)]) == 2
    assert tried(tmp_path / "d", [(None, None, 1.0), (0.9, None, None)]) is None


def test_the_error_of_the_difference_pairs_prompts(tmp_path):
    """Both move with the prompt, so that the differences are 0.05 +- 0.01: no tie, though each error is far larger."""
    one, two = [0.99, 0.79, 0.59, 0.39], [0.95, 0.73, 0.55, 0.33]
    rows = [(sum(one) / 4, 0.13, 1.0), (sum(two) / 4, 0.13, 0.5)]
    assert tried(tmp_path / "a", rows) == 2 and tried(tmp_path / "b", rows, [one, two]) == 1


def test_beyond_the_cap_the_error_is_that_of_the_mixtures(tmp_path):
    """At 3 nats half of the responses are the policy's: a mean judge of 0.8 counts as 0.65, prompt by prompt 0.02 more than the
    second trial's 0.63 though the policies differ by 0.26 to 0.12. As independent means of error 0.05 and 0.1 they tie."""
    far, near = [0.98, 0.82, 0.70, 0.70], [0.72, 0.64, 0.58, 0.58]
    rows = [(sum(far) / 4, 0.1, 3.0), (sum(near) / 4, 0.1, 1.0)]
    assert tried(tmp_path / "a", rows, [far, near]) == 1
    assert tried(tmp_path / "b", rows) == 2


def test_trials_without_records(tmp_path):
    with pytest.raises(EmptySelection, match="harness sweep"):
        trials.page(Study([]))
    words = [sys.executable, "-m", "harness.report.trials", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no records")
