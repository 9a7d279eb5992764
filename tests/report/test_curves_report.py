"""The report of a study with curves: its verdict, first table, figures and files, and the page of older records as it was."""

import csv
import io
import json
import math
import re
from pathlib import Path

import fake_curves
import fake_records as fake
import pytest
from fake_reports import HOSTILE, Page, contents, only_group, report, rows_of, undraw
from PIL import Image

from harness.analysis.columns import BY_KEY
from harness.analysis.study import Study, StudyGroup
from harness.report.curves import curve_data, curve_verdict, curves_csv, first_table, over_optimised, score_table
from harness.report.figures import curves, sheets
from harness.report.figures.curves import spread
from harness.report.figures.data import figure_data
from harness.report.figures.style import SHADE
from harness.report.sections import pictures
from harness.report.tables import MISSING

SOME = ("base", "random_reward", "best_of_n", "quark", "ppo", "filtering")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_curves.write_study(tmp_path_factory.mktemp("curves"), SOME, ("toxicity",), prompts=40)


@pytest.fixture(scope="module")
def group(root: Path) -> StudyGroup:
    return only_group(root)


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    undraw(patch)
    top = tmp_path_factory.mktemp("out")
    assert report(root, top).exit_code == 0
    patch.undo()
    return top


def test_the_first_sentence_answers_the_question(group):
    first, *more = curve_verdict(group)
    assert first.startswith("quark removes 80% of the habit at the least drift: a KL of 0.") and "95% interval" in first
    assert "optimal for the reward, which is another scorer than the judge, need 0.59" in first and "FLOPs and takes" in first
    assert any("Not told apart from quark" in s or "more than quark" in s for s in more)
    assert any(s.startswith("3 of 6 methods remove 80%") and "base (" in s and "filtering (" in s for s in more)
    assert any("of 15 pairs of methods apart" in s for s in more)


def test_a_control_that_sees_the_judge_is_in_the_table_but_is_not_compared(tmp_path):
    study = fake_curves.write_study(tmp_path, ("base", "quark", "ppo", "oracle"), ("toxicity",), prompts=40)
    group, said = only_group(study), " ".join(curve_verdict(only_group(study)))
    assert said.startswith("quark removes 80%") and "oracle" not in said and "2 of 3 methods remove 80%" in said
    assert "of 3 pairs of methods apart" in said and "oracle" not in group.readings.ranks
    row = next(row for row in first_table(group).rows if row[0] == "oracle")
    shown = dict(zip(first_table(group).header, row, strict=True))
    assert "Not ranked: oracle, which sees the judge." in first_table(group).notes
    assert shown["Rank (by area)"] == MISSING and shown["More than the first (nats)"] == "" and shown["Reaches (KL)"] != MISSING


def test_the_page_says_which_method_is_over_optimised(group, out):
    said = over_optimised(group)
    assert said in curve_verdict(group) and "as a knob drifts further" in said
    assert said in (out / "report.md").read_text() and said in (out / "index.html").read_text()


def test_a_leader_without_training_is_followed_by_one_that_trains(tmp_path):
    said = " ".join(
        curve_verdict(only_group(fake_curves.write_study(tmp_path, ("best_of_n", "kto"), ("toxicity",), prompts=40)))
    )
    assert said.startswith("best_of_n removes 80%") and "it trains nothing" in said
    assert "Of the methods that train, kto needs the least" in said


def test_no_method_gets_there(tmp_path):
    found = curve_verdict(
        only_group(fake_curves.write_study(tmp_path, ("filtering", "random_reward"), ("toxicity",), prompts=20))
    )
    assert found[0].startswith("No method removes 80% of the habit: filtering comes nearest, with")


def test_no_run_is_done(tmp_path):
    for value in (1.0, 0.1, 0.01):
        identity = fake.identity("toxicity", "quark", 0)
        identity["method"]["settings"] = {"kl_coef": value}
        keys = {"identity": identity, "knob": "kl_coef"}
        fake.write_run(tmp_path, "quark", 0, status="running", manifest=keys, id8=f"{int(value * 100):08x}")
    assert curve_verdict(only_group(tmp_path))[0].startswith("No verdict") and len(first_table(only_group(tmp_path)).rows) == 2


def test_the_table_is_sorted_by_the_least_kl_and_says_what_is_missing(group):
    table = first_table(group)
    names = [row[0] for row in table.rows]
    assert names[:2] == ["frontier, judged", "quark"] and set(names[-2:]) == {"base", "random_reward"}
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    least, area = table.header[1], next(h for h in table.header if h.startswith("Area"))
    assert rows["frontier, judged"][least] == "0.59" and rows["filtering"][least].startswith("– (at most ")
    assert rows["quark"]["Knob (values, seeds)"] == "kl_coef 1, 0.3, 0.1, 0.03, 0.01; 2, 2, 5, 2, 2 seeds"
    assert rows["base"]["Knob (values, seeds)"] == "no knob, 5 seeds" and rows["quark"][area].startswith("0.9")
    assert rows["filtering"]["Removed at 1.5 nats\u00a0↑ (%)"] == "–" and "[" in rows["ppo"]["Removed at 1.5 nats\u00a0↑ (%)"]
    assert [row[0] for row in score_table(group).rows] == names[1:]


def test_page_markdown_and_csv_have_the_curves(out):
    page, text = (out / "index.html").read_text(), (out / "report.md").read_text()
    assert page.index("Curves: judge and reward") < page.index("<h3>Cells") < page.index("middle value of its knob")
    assert "<details><summary>How to read" in page and 'data-family="' in page
    assert "](figures/curves-micro-toxicity.png)" in text and "| quark | 0." in text and "](figures/families-" in text
    rows = {row["method"]: row for row in rows_of(out / "tables/curves.csv")}
    assert float(rows["quark"]["least_kl_low"]) < float(rows["quark"]["least_kl"]) < float(rows["quark"]["least_kl_high"])
    assert rows["base"]["least_kl"] == "" and rows["base"]["knob"] == "" and rows["quark"]["values"] == "1 0.3 0.1 0.03 0.01"
    assert len(rows_of(out / "tables/methods.csv")) == 5 * 5 + 1  # every value of every knob


def test_the_data_have_bands_about_the_lines(out):
    data = json.loads((out / "figures/data-micro-toxicity.json").read_text())
    quark = next(curve for curve in data["curves"] if curve["name"] == "quark")
    band = quark["bands"]["judge"]
    assert len(quark["points"]) == 5 and quark["knob"] == "kl_coef"
    assert all(low <= mean <= high for low, mean, high in zip(band["low"], band["mean"], band["high"], strict=True))
    assert band["kl"][0] == 0 and band["mean"][0] == pytest.approx(data["base_point"]["judge"], abs=1e-5)


def test_records_without_a_knob_keep_their_page(tmp_path, monkeypatch):
    undraw(monkeypatch)
    report(fake.write_study(tmp_path / "r"), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "Curves: judge" not in page and "quark removes the most" in page and "curves.csv" not in page
    assert not [name for name in contents(tmp_path / "out") if "curves" in name]


def test_every_curve_is_drawn_named_and_told_on_hover(group):
    data = figure_data(group.at_middle)
    drawn = sheets.knobs(data | curve_data(group, data), "x")
    svg = drawn.svg.decode()
    assert len(drawn.panels) == 4 and all(f">{name}</text>" in svg for name in SOME)
    assert "quark, kl_coef 0.1, 5 seeds: KL 0.6" in drawn.panels[0] and 'class="m m0"' in drawn.panels[0]
    assert 'class="m m3 band"' in drawn.panels[0] and " band" not in drawn.panels[2]
    shade = tuple(bytes.fromhex(SHADE[1:]))  # of the largest area, and grey
    assert shade in {colour for _, colour in Image.open(io.BytesIO(drawn.png)).convert("RGB").getcolors(1 << 24)}
    by_family = sheets.families(data | curve_data(group, data), "y")
    assert len(by_family.panels) == len({method["family"] for method in data["methods"]})


def test_one_seed_is_a_seed(tmp_path):
    group = only_group(fake_curves.write_study(tmp_path, ("quark", "base"), ("toxicity",), (2, 1, 1, 1, 1), prompts=6))
    knobs = {row[0]: row[-1] for row in first_table(group).rows[1:]}
    assert knobs == {"quark": "kl_coef 1, 0.3, 0.1, 0.03, 0.01; 2, 1, 1, 1, 1 seed", "base": "no knob, 2 seeds"}


def test_panels_grow_with_the_names_beside_them(group):
    """Forty names of 8.7 points each need 4.8 inches, and labels above and below the panel 1.1."""
    data = figure_data(group.at_middle)
    data |= curve_data(group, data)
    panel = sheets.knobs(data | {"curves": [data["curves"][0] | {"name": f"m{i}"} for i in range(40)]}, "x").panels[0]
    assert float(re.search(r'viewBox="\S+ \S+ \S+ (\S+)"', panel)[1]) / 72 == pytest.approx(5.9, abs=0.01)
    assert sheets._wide(len(data["curves"])) == sheets.WIDE
    names = [float(y) for y in re.findall(r'y="(\S+)"[^>]*>m\d+</text>', panel)]
    assert len(names) == 40 and min(names) > 72 and max(names) < 72 + 4.83 * 72 + 10  # beside the panel, or a line below


def test_a_band_over_the_whole_panel_is_wide():
    """Heights 0.1, 0.5 and 0.3, cut to the panel: their mean is half of its 0.6. What lies right of it counts for nothing."""
    band = {"kl": [0.0, 1.0, 2.0, 9.0], "low": [0.5, -4.0, 0.5, -9.0], "high": [0.6, 0.9, 0.8, 9.0]}
    assert curves._wide(band, ((0.0, 2.0), (0.4, 1.0)))
    assert not curves._wide(band | {"low": [0.5, 0.8, 0.6, -9.0]}, ((0.0, 2.0), (0.4, 1.0)))
    assert not curves._wide(band | {"low": []}, ((0.0, 2.0), (0.4, 1.0))) and not curves._wide(None, ((0.0, 2.0), (0.4, 1.0)))


def test_a_curve_is_named_where_it_leaves_the_panel():
    """From (2, 0.5) straight to (4, 0.9) on a log axis: reward 0.7 is reached halfway, at 2 * sqrt(2)."""
    points = [{"ppl": 4.0, "reward": 0.9}, {"ppl": 8.0, "reward": 0.9}]
    data, curve = {"base_point": {"ppl": 2.0, "reward": 0.5}}, {"points": points}
    leaves = curves._end(data, curve, curves.PPL_REWARD, ((1.0, 16.0), (0.4, 0.7)))
    assert leaves == pytest.approx((2 * 2**0.5, 0.7))
    assert curves._end(data, curve, curves.PPL_REWARD, ((1.0, 3.0), (0.4, 1.0))) == pytest.approx(
        (3.0, 0.5 + 0.4 * math.log2(1.5))
    )
    assert curves._end(data, curve, curves.PPL_REWARD, ((1.0, 16.0), (0.4, 1.0))) == (8.0, 0.9)
    assert curves._end(data, curve, curves.PPL_REWARD, ((16.0, 32.0), (0.4, 1.0))) is None


def test_labels_are_spread_without_overlap():
    assert spread([0, 1, 50], 10, -20, 100) == pytest.approx([-4.5, 5.5, 50])
    assert spread([95, 99], 10, 0, 100) == pytest.approx([90, 100]) and spread([], 10, 0, 1) == []
    assert spread([1, 2, 3], 10, 0, 100) == pytest.approx([0, 10, 20])


def test_hostile_names_of_methods_and_knobs_are_text(tmp_path, monkeypatch):
    undraw(monkeypatch)
    root = fake_curves.write_study(tmp_path / "r", ("quark",), ("toxicity",), prompts=6)
    for path in root.rglob("manifest.json"):
        record = json.loads(path.read_text())
        settings = record["identity"]["method"]["settings"]
        settings[HOSTILE] = settings.pop("kl_coef")
        fake.dump(path, record | {"knob": HOSTILE, "method": HOSTILE})
        summary = json.loads((path.parent / "summary.json").read_text())
        fake.dump(path.parent / "summary.json", summary | {"method": HOSTILE})
    report(root, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)" not in "".join(Page(page).links) and "&lt;script&gt;alert" in page


def test_several_tasks_have_an_overview_by_the_least_kl(tmp_path, monkeypatch):
    undraw(monkeypatch)
    report(fake_curves.write_study(tmp_path / "r", ("quark", "base"), ("toxicity", "sentiment"), prompts=20), tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "(least KL for 80%; area)" in text and "| quark | " in text


def test_times_of_different_machines_are_left_out(group, tmp_path, monkeypatch):
    undraw(monkeypatch)
    root = fake_curves.write_study(tmp_path, ("quark", "best_of_n"), ("toxicity",), prompts=6)
    at = next(i for i, title in enumerate(first_table(group).header) if title.startswith("Time"))
    assert all(row[at] for row in first_table(group).rows[1:])
    for path in (path for path in root.rglob("manifest.json") if "quark" in path.parts):
        record = json.loads(path.read_text())
        fake.dump(path, record | {"provenance": record.get("provenance", {}) | {"device": "cuda:0"}})
    mixed = only_group(root)
    assert not mixed.one_machine and {row[at] for row in first_table(mixed).rows} == {"", MISSING}
    assert "different machines" in first_table(mixed).notes[0]
    said = " ".join(curve_verdict(mixed))
    assert "FLOPs" in said and "takes" not in said
    times = BY_KEY["seconds"]
    assert all(mixed.estimate(entry, times).interval is None for entry in mixed.entries)
    assert all(group.estimate(entry, times).interval for entry in group.entries)
    assert {row["seconds"] for row in csv.DictReader(io.StringIO(curves_csv(Study(mixed.runs))))} == {""}
    assert "" not in {row["seconds"] for row in csv.DictReader(io.StringIO(curves_csv(Study(group.runs))))}
    assert "Reward against wall-clock time" not in str(pictures(mixed, "x")[0]["compute"].png)
    assert "Reward against wall-clock time" in str(pictures(group, "x")[0]["compute"].png)
