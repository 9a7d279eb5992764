"""Which runs form a curve, in what order, what it is called, and the numbers of the first table against a known truth."""

import json
from pathlib import Path

import fake_curves
import fake_records as fake
import pytest
from fake_reports import only_group

from harness.analysis.cells import counts
from harness.analysis.curves.knobs import curves, knob_of
from harness.analysis.study import Study, StudyGroup
from harness.records.read import find_runs
from harness.records.schema import Manifest
from harness.report.curves import first_table

SOME = ("base", "mle", "random_reward", "best_of_n", "quark", "ppo", "dexperts")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyGroup:
    root = tmp_path_factory.mktemp("curves")
    return only_group(fake_curves.write_study(root, SOME, ("toxicity",), prompts=60))


def write(
    root: Path, value: object, seed: int = 0, method: str = "quark", knob: object = "kl_coef", kl: float = 0.5, **more: object
):
    identity = fake.identity("toxicity", method, seed)
    identity["method"]["settings"] = {"lr": 1e-4, "kl_coef": value, **more}
    keys = {"identity": identity, "knob": knob}
    final = {"kl": fake.point(kl, 0.01)}
    fake.write_run(root, method, seed, manifest=keys, final=final, id8=f"{abs(hash((str(value), str(more)))) % 16**8:08x}")


def test_runs_that_differ_in_knob_and_seed_form_a_curve_from_weak_to_strong(study):
    found = {curve.name: [point.value for point in curve.points] for curve in study.curves}
    assert list(found) == sorted(SOME) and found["best_of_n"] == [2, 4, 8, 16, 32]
    assert found["quark"] == [1.0, 0.3, 0.1, 0.03, 0.01]  # the KL grows as the coefficient falls
    assert found["base"] == [None]


def test_the_middle_is_the_value_with_the_most_seeds(study):
    group = study.at_middle
    assert [entry.name for entry in group.entries] == sorted(SOME) and {len(entry.runs) for entry in group.entries} == {5}
    quark = next(entry for entry in group.entries if entry.name == "quark")
    assert quark.runs[0].manifest.identity["method"]["settings"]["kl_coef"] == 0.1


def test_seeds_that_a_value_of_the_knob_was_not_meant_to_have_are_not_missing(study, tmp_path):
    cells = Study(study.runs).cells
    assert {state for cell in cells for state in counts(cell)} == {"done"}
    root = fake_curves.write_study(tmp_path, ("quark", "ppo"), ("toxicity",), prompts=4)
    for dir in (root / "micro/toxicity/quark").iterdir():
        if (
            json.loads((dir / "manifest.json").read_text())["identity"]["method"]["settings"]["kl_coef"] == 0.01
            and dir.name[-1] == "1"
        ):
            (dir / "summary.json").unlink()
            (dir / "manifest.json").unlink()
    assert sum(counts(cell).get("missing", 0) for cell in Study(find_runs([root])[0]).cells) == 1


def test_two_values_are_no_curve_and_other_settings_make_another_one(tmp_path):
    for value, kl in ((1.0, 0.1), (0.1, 0.5)):
        write(tmp_path, value, kl=kl)
    assert curves(only_group(tmp_path)) == [] and only_group(tmp_path).at_middle.entries[0].name.startswith("quark (1")
    for value, kl in ((0.01, 0.9), (1.0, 0.1), (0.1, 0.5)):
        write(tmp_path, value, kl=kl, quantiles=9 if value != 0.01 else 5)
    write(tmp_path, 0.01, kl=0.9)
    found = curves(only_group(tmp_path))
    assert sorted(len(curve.points) for curve in found) == [1, 2, 3]
    assert all("quantiles" in curve.name for curve in found) and not any("kl_coef" in curve.name for curve in found)


def test_values_that_are_no_numbers_are_ordered_by_kl(tmp_path):
    for value, kl in (("wild", 0.9), ("calm", 0.1), ("brisk", 0.4)):
        write(tmp_path, value, kl=kl)
    assert [point.value for point in curves(only_group(tmp_path))[0].points] == ["calm", "brisk", "wild"]


@pytest.mark.parametrize(
    "method,knob,expected",
    [("quark", ..., "kl_coef"), ("best_of_n", ..., "n"), ("base", ..., None), ("unheard", ..., None),
     ("quark", None, None), ("unheard", "beta", "beta")],
)  # fmt: skip
def test_an_older_record_has_the_knob_of_its_method(method, knob, expected):
    said = {} if knob is ... else {"knob": knob}
    same = {"schema_version": 1, "run_id": "a", "status": "done", "preset": "micro", "task": "t", "seed": 0, "identity": {}}
    assert knob_of(Manifest(method=method, **same, **said)) == expected


def test_a_curve_without_terms_by_prompt_has_intervals(tmp_path):
    root = fake_curves.write_study(tmp_path, ("quark",), ("toxicity",), prompts=30)
    for path in root.rglob("prompts.json"):
        path.unlink()
    (row,) = only_group(root).readings.rows
    interval = row.interval("removed", 0.25)
    assert interval.low < interval.mean < interval.high


def test_the_numbers_are_about_the_truth(study):
    for reading in study.readings.rows:
        for share in (0.25, 0.5, 1.0):
            if (found := reading.interval("removed", share)) is not None:
                truth = 100 * fake_curves.share(reading.name, share * fake_curves.CAP)
                assert found.low - 6 < truth < found.high + 6, (reading.name, share)  # the truth bends between two points


def test_the_order_is_by_least_kl_then_by_area(study):
    names = [reading.name for reading in study.readings.rows]
    assert names[0] == "quark"
    reached = [reading.least.value is not None for reading in study.readings.rows]
    assert reached == sorted(reached, reverse=True) and set(names[-3:]) == {"base", "mle", "random_reward"}


def test_controls_have_no_area_and_no_method_more_than_the_frontier(study):
    for reading in study.readings.rows:
        low, high = reading.area.interval()[1:]
        assert low <= 1.0
        if reading.name in ("base", "mle", "random_reward"):
            assert low <= 0 <= high or abs(reading.area.value) < 0.05


def test_pairs_told_apart_are_counted_and_ranks_agree_with_them(study):
    told, pairs = study.readings.pairs
    assert pairs == 21 and told >= 12
    assert study.readings.ranks["quark"][1] < study.readings.ranks["random_reward"][0]


def test_a_method_with_one_seed_takes_no_rank_from_the_others(tmp_path):
    """Without an error over seeds it could have any rank, and so could every other beside it."""
    fake_curves.write_study(tmp_path, ("quark", "random_reward"), ("toxicity",), prompts=12)
    before = only_group(tmp_path).readings
    fake_curves.write_study(tmp_path, ("dpo",), ("toxicity",), seeds=(1, 1, 1, 1, 1), prompts=12)
    after = only_group(tmp_path).readings
    assert next(r for r in after.rows if r.name == "dpo").area is not None
    assert [r.name for r in after.rows if r not in after.ranked] == ["dpo"]
    assert after.ranks == before.ranks == {"quark": (1, 1), "random_reward": (2, 2)} and after.pairs == before.pairs == (1, 1)
    fake_curves.write_study(tmp_path, ("best_of_n",), ("toxicity",), prompts=12)
    (further,) = (more for more in only_group(tmp_path).readings.beyond.values() if more.more.p is not None)
    assert further.adjusted == further.more.p  # the other difference cannot be tested, so one test is made
    assert "Not ranked: dpo, with one seed so far." in first_table(only_group(tmp_path)).notes


def test_where_all_have_one_seed_none_is_told_apart(tmp_path):
    fake_curves.write_study(tmp_path, ("quark", "ppo"), ("toxicity",), seeds=(1, 1, 1, 1, 1), prompts=12)
    assert only_group(tmp_path).readings.ranks == {"quark": (1, 2), "ppo": (1, 2)}


def test_the_cost_is_that_of_a_run(study):
    quark = next(r for r in study.readings.rows if r.name == "quark")
    assert quark.cost("flops").mean == pytest.approx(3e13, rel=0.05) and quark.cost("seconds").low > 60


def test_a_study_without_a_finished_run_has_rows_without_numbers(tmp_path):
    for value in (1.0, 0.1, 0.01):
        identity = fake.identity("toxicity", "quark", 0)
        identity["method"]["settings"] = {"kl_coef": value}
        fake.write_run(
            tmp_path,
            "quark",
            0,
            status="running",
            manifest={"identity": identity, "knob": "kl_coef"},
            id8=f"{int(value * 100):08x}",
        )
    (row,) = only_group(tmp_path).readings.rows
    assert row.reach is row.least is row.area is row.interval("judge", 0.5) is None and row.cost("flops") is None
    assert only_group(tmp_path).readings.pairs == (0, 0)
