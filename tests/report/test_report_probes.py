"""The section on probes: numbers by seed, intervals, pairs told apart, the figure and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from harness.analysis.curves.probes import apart, apart_families, pairs, returns, yardstick
from harness.analysis.study import read_study
from harness.report.build import build
from harness.report.figures import sheets
from harness.report.figures.style import family
from harness.report.sections import probe_table, probe_words, yardstick_words

UNDRAWN = pytest.mark.usefixtures("undrawn")  # but for the figure of probes


def result(probe: str, judge: list[float | None], **more: Any) -> dict[str, Any]:
    """An invented line of probes.jsonl."""
    readings = [
        {"at": at, "label": "", "metrics": {"judge": {"value": value, "stderr": None, "n": 5}}}
        for at, value in zip((0, 5, 10, 20), judge, strict=False)
    ]
    known = [value for value in judge if value is not None]
    told = {"probe": probe, "version": 1, "settings": {"texts": 64}, "seed": 0, "unit": "updates", "number": "worst"}
    value = min(known) if len(known) == len(judge) else None
    return told | {"value": value, "readings": readings, "seconds": 1.0} | more


@pytest.fixture
def probed(tmp_path) -> Path:
    """Three seeds of two methods, probed: ppo falls, quark holds; unlikelihood is not probed."""
    for method, low in (("quark", 0.9), ("ppo", 0.4)):
        for seed in range(3):
            dir = fake.write_run(tmp_path, method, seed)
            rows = [result("relearn_habit", [1.0, 0.95, 0.92, low + 0.01 * seed])]
            rows += [result("quantize", [0.9, 0.9], unit="bits")] if method == "quark" else []
            (dir / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake.write_run(tmp_path, "unlikelihood", 0)
    return tmp_path


def group(dir: Path):
    return read_study([dir]).groups[0]


def test_numbers_are_by_seed_and_methods_are_told_apart(probed):
    found = {probing.probe: probing for probing in group(probed).probings[0]}
    relearn = found["relearn_habit"]
    assert relearn.at == ["0", "5", "10", "20"] and [m.method for m in relearn.methods] == ["ppo", "quark"]
    ppo = relearn.methods[0]
    assert ppo.values == pytest.approx([0.40, 0.41, 0.42]) and ppo.value is not None and ppo.value.mean == pytest.approx(0.41)
    assert ppo.points[0] == (1.0, 1.0, 1.0) and ppo.points[3] is not None and ppo.points[3].low is not None
    ((a, b, test),) = apart(relearn)
    assert (a, b) == ("ppo", "quark") and test.mean == pytest.approx(-0.5) and pairs(relearn) == 1
    assert apart(found["quantize"]) == [] and pairs(found["quantize"]) == 0


def test_the_table_has_a_row_for_each_probed_method(probed):
    table = probe_table(group(probed))
    assert table is not None and [row[0] for row in table.rows] == ["ppo", "quark"]
    by_title = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    relearn = next(column for title, column in by_title.items() if title.startswith("Learning from text with the habit"))
    rounded = next(column for title, column in by_title.items() if title.startswith("Rounded weights"))
    assert relearn[0].startswith("0.41 [0.39, 0.43]") and rounded == ("", "0.90 [0.90, 0.90]")
    words = probe_words(group(probed))[0]
    assert words.startswith(
        "Learning from text with the habit: 1 of 1 pairs of methods are told apart; the largest difference is"
    )
    assert words.endswith("0.50, between ppo and quark.")


def test_one_probe_at_two_settings_has_two_columns_that_say_so(probed):
    for path in probed.rglob("probes.jsonl"):
        with path.open("a") as f:
            f.write(json.dumps(result("relearn_habit", [1.0, 0.5], settings={"texts": 4}, seed=3)) + "\n")
    table = probe_table(group(probed))
    assert table is not None and sum("texts=4" in title for title in table.header) == 1
    assert sum("texts=64" in title for title in table.header) == 1


def test_a_policy_that_has_nothing_to_take_away_is_beside_those_that_have(tmp_path):
    """A probe that stops early, since there is no control token, is one row of the same column, its last points missing."""
    for method, judge in (("base", [0.6]), ("oracle", [1.0]), ("quark", [0.9, 0.8])):
        for seed in range(2):
            dir = fake.write_run(tmp_path, method, seed)
            (dir / "probes.jsonl").write_text(json.dumps(result("no_prefix", [j - 0.002 * seed for j in judge])) + "\n")
    (probing,) = group(tmp_path).probings[0]
    assert probing.at == ["0", "5"] and [m.method for m in probing.methods] == ["base", "oracle", "quark"]
    assert probing.methods[0].points[1] is None and probing.methods[2].points[1] is not None
    assert returns(probing, probing.methods[2]) == pytest.approx(0.5)
    table = probe_table(group(tmp_path))
    assert table is not None and len(table.header) == 2 and [row[1][:4] for row in table.rows] == ["0.60", "1.00", "0.80"]


def test_seeds_that_left_one_policy_count_as_one_and_the_seeds_of_the_probe_count_instead(tmp_path):
    """Under equal draws the same policy gives the same number: no interval comes of that, but of draws of the probe."""
    for method, weights in (("base", ["a", "a", "a"]), ("quark", ["b", "c", "d"])):
        for seed, name in enumerate(weights):
            files = {"policy/model.safetensors": name, "policy/config.json": str(seed), "policy/policy.json": "e"}
            dir = fake.write_run(tmp_path, method, seed, manifest={"files": files})
            rows = [result("prompt_search", [0.5 - 0.01 * seed])] if method == "quark" else [result("prompt_search", [0.35])]
            rows += [result("prompt_search", [0.20 + 0.01 * n], seed=n) for n in (1, 2)] if seed == 0 else []
            rows += [result("sample_more", [0.30])]
            (dir / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {probing.probe: {m.method: m for m in probing.methods} for probing in group(tmp_path).probings[0]}
    search, more = found["prompt_search"], found["sample_more"]
    assert search["base"].values == pytest.approx([0.35, 0.21, 0.22]) and search["base"].value.low is not None
    assert search["quark"].values == pytest.approx([(0.5 + 0.21 + 0.22) / 3, 0.49, 0.48])
    assert more["base"].values == [0.30] and more["base"].value == (0.30, None, None)
    assert more["quark"].values == [0.30] * 3 and more["quark"].value.low is not None


def test_a_trained_policy_of_one_seed_has_no_interval_from_the_draws_of_a_probe(tmp_path):
    for method in ("base", "quark"):
        dir = fake.write_run(tmp_path, method, 0, manifest={"files": {"policy/model.safetensors": method}})
        rows = [result("prompt_search", [0.20 + 0.01 * n], seed=n) for n in range(3)]
        (dir / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (probing,) = group(tmp_path).probings[0]
    assert [len(m.values) for m in probing.methods] == [3, 1]


def test_a_reading_without_a_score_is_missing(tmp_path):
    dir = fake.write_run(tmp_path, "quark", 0)
    (dir / "probes.jsonl").write_text(json.dumps(result("decode", [0.9, None])) + "\n")
    (probing,) = group(tmp_path).probings[0]
    assert probing.methods[0].value is None and probing.methods[0].points[1] is None
    table = probe_table(group(tmp_path))
    assert table is not None and table.rows == [["quark", ""]]


@UNDRAWN
def test_right_answers_are_not_called_the_judge(tmp_path):
    dir = fake.write_run(tmp_path, "quark", 0)
    (dir / "probes.jsonl").write_text(json.dumps(result("downstream", [0.75, 0.5], unit="task")) + "\n")
    build(read_study([tmp_path]), tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Its numbers are right answers, not scores of the judge" in page and "quark, 0 task: right answers 0.750" in page


@UNDRAWN
def test_the_page_has_the_section_only_where_something_was_probed(probed, tmp_path):
    build(read_study([probed]), tmp_path / "page")
    page, text = (tmp_path / "page" / "index.html").read_text(), (tmp_path / "page" / "report.md").read_text()
    assert "Does the habit come back?" in page and "### Does the habit come back?" in text
    assert 'aria-label="Learning from text with the habit"' in page and "ppo, 20 updates: judge 0.410" in page
    data = json.loads(next((tmp_path / "page" / "figures").glob("data-*.json")).read_text())
    assert [probing["probe"] for probing in data["probes"]] == ["relearn_habit", "quantize"]
    for path in probed.rglob("probes.jsonl"):
        path.unlink()
    build(read_study([probed]), tmp_path / "bare")
    assert "Does the habit come back?" not in (tmp_path / "bare" / "index.html").read_text()


def test_panels_have_room_for_the_probed_methods_alone(probed):
    methods = [{"name": name, "colour": "#000000"} for name in ("quark", "ppo", *(f"m{i}" for i in range(40)))]
    drawn = sheets.probes("x", group(probed).probings[0], methods, "x")
    assert all(f' {sheets.WIDE[1] * 72:g}"' in panel[:200] for panel in drawn.panels)


@UNDRAWN
def test_a_broken_file_is_a_problem_of_that_run(probed, tmp_path):
    path = next(probed.rglob("probes.jsonl"))
    path.write_text('{"probe": 3}\n')
    found = build(read_study([probed]), tmp_path / "page")
    assert any("probes.jsonl line 1" in problem.what for problem in found.problems) and found.exit_code == 4


def write(dir: Path, method: str, judge: list[list[float]]) -> None:
    """A method's readings of one probe, a list a seed."""
    for seed, readings in enumerate(judge):
        at = fake.write_run(dir, method, seed)
        (at / "probes.jsonl").write_text(json.dumps(result("relearn_habit", list(readings))) + "\n")


@UNDRAWN
def test_base_and_oracle_are_the_yardsticks_of_the_others(tmp_path):
    """First in the table; the others stand at a share of the way from the oracle's number to the base policy's."""
    write(tmp_path, "quark", [[1.0, 0.6], [1.0, 0.7]])
    write(tmp_path, "base", [[0.5, 0.5]])
    write(tmp_path, "oracle", [[1.0, 0.89], [1.0, 0.91]])
    (probing,) = group(tmp_path).probings[0]
    shares = {method.method: returns(probing, method) for method in probing.methods}
    assert shares == pytest.approx({"base": 1.0, "oracle": 0.0, "quark": (0.9 - 0.65) / 0.4})
    table = probe_table(group(tmp_path))
    assert table is not None and [row[0] for row in table.rows] == ["base", "oracle", "quark"]
    assert table.rows[0][1] == "0.50 (100%)" and table.rows[2][1].endswith(" (63%)")
    assert yardstick_words(group(tmp_path)).endswith("from the oracle's number (0%) to the base policy's (100%).")
    build(read_study([tmp_path]), tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "oracle was trained as the base policy was" in page and "oracle, 5 updates: judge 0.900" in page


@pytest.mark.parametrize("oracle", [[[1.0, 0.9]], [[1.0, 0.2], [1.0, 0.99]], []])
def test_no_share_of_the_way_back_without_an_oracle_that_stands_out(tmp_path, oracle):
    write(tmp_path, "base", [[0.5, 0.5]])
    write(tmp_path, "quark", [[1.0, 0.6]])
    write(tmp_path, "oracle", oracle)
    (probing,) = group(tmp_path).probings[0]
    assert [returns(probing, method) for method in probing.methods] == [None] * (2 + bool(oracle))
    assert (yardstick(probing, "oracle") is None) is (not oracle)
    assert "In brackets" not in yardstick_words(group(tmp_path))


def test_families_are_told_apart_over_their_methods(tmp_path):
    """Two families of three methods, one seed each: the spread within a family is the error; controls do not count."""
    far = {"ppo": 0.80, "rloo": 0.82, "reinforce": 0.84, "filtering": 0.30, "awr": 0.32, "rwr": 0.34}
    for method, judge in {**far, "oracle": 0.99, "mle": 0.1, "dpo": 0.5}.items():
        write(tmp_path, method, [[1.0, judge]])
    (probing,) = group(tmp_path).probings[0]
    ((a, b, test),), n = apart_families(probing, family)
    assert {a, b} == {"policy gradients", "likelihood, weighted or conditioned"} and n == 1  # dpo is alone in its family
    assert abs(test.mean) == pytest.approx(0.5) and test.df == pytest.approx(4)
    assert "Families are told apart (t tests over their methods): " in probe_words(group(tmp_path))[0]


def test_families_that_overlap_are_said_not_to_differ(tmp_path):
    for method, judge in {"ppo": 0.2, "rloo": 0.8, "filtering": 0.3, "awr": 0.7}.items():
        write(tmp_path, method, [[1.0, judge]])
    assert "None of 1 pair of families is told apart" in probe_words(group(tmp_path))[0]


def test_what_readers_ask_first_comes_first(tmp_path):
    dir = fake.write_run(tmp_path, "quark", 0)
    rows = [result(name, [1.0, 0.9]) for name in ("decode", "a_probe_of_mine", "relearn_clean", "relearn_habit")]
    (dir / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p.probe for p in group(tmp_path).probings[0]] == ["relearn_habit", "relearn_clean", "decode", "a_probe_of_mine"]
