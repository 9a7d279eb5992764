import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import fake_curves
import fake_records as fake
import methods_page
import pytest

from harness.analysis import ranking
from harness.analysis.study import Study
from harness.core.errors import EmptySelection, MissingPrerequisite
from harness.core.settings import resolve
from harness.records.read import find_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three seeds of two methods: one far below the best-of-n curve of the synthetic frontier, one on it."""
    for seed in range(3):
        small = 0.002 * seed
        final = {"kl": fake.point(0.636294, 0.01), "reward": fake.point(0.70 + small, 0.004)}
        fake.write_run(tmp_path, "quark", seed, final=final)
        on_curve = fake.frontier()["best_of_n"][2]  # n = 4
        final = {"kl": fake.point(on_curve["kl"], 0.01), "reward": fake.point(on_curve["reward"] + small - 0.002, 0.004)}
        fake.write_run(tmp_path, "ppo", seed, final=final)
    return tmp_path


def runs(root: Path) -> list:
    return find_runs([root])[0]


def test_reward_beside_best_of_n_is_read_off_its_curve_at_equal_kl(root):
    """n = 4 has log 4 - 3/4 nats in the synthetic record, so between points of the curve nothing is interpolated."""
    (group,) = Study(runs(root)).groups
    found = {run.manifest.method: ranking.beside(run).value for run in group.runs if run.manifest.seed == 1}
    assert found["ppo"] == pytest.approx(0.0, abs=1e-9)
    at_four = fake.frontier()["best_of_n"][2]["reward"]
    assert found["quark"] == pytest.approx(0.702 - at_four, abs=1e-6)


def test_who_loses_to_best_of_n_is_said(root):
    (group,) = Study(runs(root)).groups
    lose, open_ = methods_page.beside(group)
    assert lose.startswith("Lower reward than best-of-n at equal KL: quark (−")
    assert open_ == "No significant difference from best-of-n at equal KL: ppo (+0.000)."


def test_one_seed_is_judged_by_its_error_over_prompts_as_on_the_report(tmp_path):
    fake.write_run(tmp_path, "quark", 0, final={"kl": fake.point(0.636294, 0.01), "reward": fake.point(0.70, 0.004)})
    (said,) = methods_page.beside(Study(runs(tmp_path)).groups[0])
    assert said.startswith("Lower reward than best-of-n at equal KL: quark (−")


def test_a_record_without_the_curve_has_no_such_number(root):
    (run, *_) = runs(root)
    frontier = run.summary.frontier.model_copy(update={"best_of_n": []})
    run = run._replace(summary=run.summary.model_copy(update={"frontier": frontier}))
    assert ranking.beside(run).value is None and "no best-of-n curve" in ranking.beside(run).reason


def test_runs_above_the_frontier_are_counted(root):
    assert (
        methods_page.above(Study(runs(root)).groups[0]) == "None of the 6 runs lies above the frontier by more than its error."
    )
    fake.write_run(root, "leaky", 0, final={"reward": fake.point(0.99, 0.003), "kl": fake.point(0.4, 0.01)})
    assert "1 of 7 runs lie above the frontier" in methods_page.above(Study(runs(root)).groups[0])


def test_what_a_method_needs_is_what_its_runs_were_charged_for(root):
    lines = methods_page.needs_table(runs(root)).split("\n")
    assert lines[0].startswith("| Method | samples from the policy | calls the reward in training |")
    assert "| quark | yes |  |  |  |" in lines and "| base |  |  |  |  |" in lines


def test_the_page_is_written_by_its_command_and_says_what_is_not_there(root, tmp_path):
    out = tmp_path / "methods.md"
    where = [f"--{name}={root}" for name in ("finals", "trials", "shapes")] + [f"--picture={tmp_path}/figures/one.png"]
    with pytest.raises(MissingPrerequisite, match="no picture"):
        methods_page.main([str(out), *where])
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.png").touch()
    done = subprocess.run([sys.executable, methods_page.__file__, str(out), *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    lines = text.split("\n")
    assert all(before == "" or before.startswith("- ") for before, line in pairwise(lines) if line.startswith("- "))
    assert "](one.png)\n" in text and (tmp_path / "one.png").is_file()
    assert "Methods without records: awr, base, best_of_n" in text
    assert "| quark | 0, 1, 2 |" in text and "Trials: ppo 1, quark 1." in text
    assert out.read_text() == text


def test_a_page_without_runs_that_vary_a_setting_says_what_was_not_shown(root):
    text = methods_page.page(runs(root), runs(root), [], "x")
    assert "## The papers' claims" in text and "[Claims](claims.md)" in text
    assert "## Ablations" not in text


def test_a_task_without_trials_of_its_own_says_whose_settings_it_has(tmp_path):
    for task in ("toxicity", "sentiment"):
        fake.write_run(tmp_path, "quark", 0, task=task)
    found = runs(tmp_path)
    text = methods_page.page(found, [run for run in found if run.manifest.task == "toxicity"], [], "x")
    said = "No trials were run on this task; its settings are the preset's for every task."
    assert text.count(said) == 1 and said in text[text.index("## sentiment") :].split("\n## ")[0]


def test_no_records_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(EmptySelection, match="harness sweep"):
        methods_page.page([], [], [], "x")


def test_of_a_study_with_curves_a_method_has_one_row_at_the_middle_of_its_knob(tmp_path):
    found = runs(fake_curves.write_study(tmp_path, ("quark", "ppo"), ("toxicity",), prompts=20))
    text = methods_page._results(Study(found).groups[0], [])
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith(("| ppo", "| quark"))]
    assert sorted(name.strip() for name, _ in rows) == ["ppo", "quark"] and {seeds.strip() for _, seeds in rows} == {
        "0, 1, 2, 3, 4"
    }
    assert methods_page.MIDDLE in text


def test_trials_at_other_settings_than_the_presets_are_shown_and_choose_nothing(tmp_path):
    """Of the two trials of quark, at the same learning rate, the one at another kl_coef has the higher judge."""
    preset = resolve("micro", "quark", "toxicity").model_dump()
    for i, (coef, judge) in enumerate([(preset["method"]["kl_coef"], 0.8), (9.0, 0.9)]):
        method = {"name": "quark", "version": 1, "settings": preset["method"] | {"kl_coef": coef}}
        identity = fake.identity("toxicity", "quark", 0, method=method, evaluation={"split": "validation"})
        settings = preset | {"method": preset["method"] | {"kl_coef": coef}}
        told = {"final": {"judge": fake.point(judge)}, "manifest": {"identity": identity, "settings": settings}}
        fake.write_run(tmp_path / "trials", "quark", 0, id8=f"{i:08d}", **told)
    fake.write_run(tmp_path / "finals", "quark", 0)
    text = methods_page.page(runs(tmp_path / "finals"), runs(tmp_path / "trials"), [], "make tables")
    chose, other = text[text.index("## Trials") :].split("### At other settings")
    assert "Trials: quark 1." in chose and "| 0.800 |" in chose and "| 0.900 |" not in chose
    assert "| 0.900 |" in other.partition("## The papers")[0] and "chosen" not in other.partition("## The papers")[0]
