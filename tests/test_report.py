import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fake_records as fake
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.analysis.attainment import attained
from harness.analysis.columns import overoptimisation, removed
from harness.analysis.groups import Group, groups, measure
from harness.analysis.ranking import above_frontier, beats, beside_best_of_n, detectable, ranking, share_of_hypervolume
from harness.analysis.stats import Interval
from harness.cli.records import report_command
from harness.core.errors import EmptySelection, Unwritable, UsageError
from harness.methods import FAMILIES, METHODS
from harness.records.read import find_runs, read_run
from harness.records.schema import Problem, Run
from harness.report.browser import samples, text
from harness.report.build import BuildResult, build
from harness.report.cards import method_cards, task_card
from harness.report.figures import sheets
from harness.report.figures.attainment import draw_attained
from harness.report.figures.data import figure_data
from harness.report.figures.panels import REWARD_KL, REWARD_PPL, draw_panel
from harness.report.figures.pareto import draw, pareto, run_picture
from harness.report.figures.style import GREY, HUES, INK, SHADE, looks, save
from harness.report.tables import method_table, number, run_table, runs_csv
from harness.report.verdict import verdict

HOSTILE = "<script>alert(1)</script></style>\"'&$\\frac{|`{{ 7*7 }}\n# _x\ud800\u202e"


def report(root: Path, out: Path) -> BuildResult:
    return build(*find_runs([root]), out)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def only_group(root: Path) -> Group:
    (group,) = groups(find_runs([root])[0])
    return group


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets without marks, for tests of anything but the pictures: drawing takes most of the time of a report."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'

    def curves(data: dict[str, Any], panels: Sequence[Any], tag: str, columns: int = 2) -> sheets.Sheet:
        return sheets.Sheet(empty.encode(), [empty] * len(panels), b"")

    monkeypatch.setattr(sheets, "curves", curves)
    monkeypatch.setattr(sheets, "dots", lambda title, methods, panels, tag, columns=3: curves({}, panels, tag))
    monkeypatch.setattr(sheets, "bands", lambda data, methods, columns=4: curves({}, methods, ""))


UNDRAWN = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BuildResult]:
    """A report over everything that can go wrong at once."""
    top = tmp_path_factory.mktemp("messy")
    root = fake.write_study(top / "results")
    fake.write_run(root, "quark", 3, status="degraded")
    for method, status in (("ppo", "failed"), ("unlikelihood", "interrupted"), ("conditional", "running")):
        fake.write_run(root, method, 3, status=status)
    fake.write_run(root, "nulls", 0, final={k: fake.point(None, reason="SCORER-OFFLINE") for k in fake.BASE if k != "kl"})
    fake.write_run(root, "leaky", 0, final={"reward": fake.point(0.99, 0.003), "kl": fake.point(0.4, 0.01)})
    (fake.write_run(root, "corrupt", 0) / "summary.json").write_text("{]")
    (fake.write_run(root, "truncated", 0) / "trajectory.jsonl").write_text('{"update": 0')
    fake.write_run(root, "newer", 0, manifest={"schema_version": 9})
    fake.write_run(root / "copy", "quark", 0)
    return root, top / "report", report(root, top / "report")


def test_files_of_a_report(messy: tuple) -> None:
    _, out, result = messy
    drawn = ("pareto", "fluency", "compute", "overoptimisation", "optimum", "attainment", "collapse")
    figures = [f"figures/{name}-micro-toxicity.{kind}" for name in drawn for kind in ("svg", "png")]
    tables = [
        f"tables/{name}.csv" for name in ("methods", "runs", "cells", "optimum-micro-toxicity", "collapse-micro-toxicity")
    ]
    expected = {"index.html", "report.md", "figures/data-micro-toxicity.json", *tables, *figures}
    assert {str(p.relative_to(out)) for p in result.files} == expected == set(contents(out))


def test_every_problem_is_named_and_returned(messy: tuple) -> None:
    _, out, result = messy
    words = ["corrupt/", "truncated/", "newer/", "leaky/", "copy/micro/toxicity/quark/", "schema_version 9", "not strict JSON"]
    page, text = (out / "index.html").read_text(), (out / "report.md").read_text()
    assert len(result.problems) == 5
    for word in words:
        assert word in page and word.replace("_", "\\_") in text, word


def test_a_column_is_named_with_its_arrow_in_markdown_too(messy: tuple) -> None:
    text = (messy[1] / "report.md").read_text()
    assert "| Reward\u00a0↑ (0 to 1) |" in text and "\ufffd" not in text


def test_every_state_is_in_the_matrix(messy: tuple) -> None:
    _, out, _ = messy
    page = (out / "index.html").read_text()
    for state in ("done", "degraded", "failed", "partial", "running", "missing", "done, 2 records"):
        assert f">{state}</td>" in page, state
    assert "NotFinite: the loss is nan at update 12" in page


def test_same_records_same_bytes_wherever_they_lie(messy: tuple, tmp_path: Path) -> None:
    root, out, _ = messy
    shutil.copytree(root, tmp_path / "else/where")
    report(tmp_path / "else/where", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)


def test_nothing_of_the_machine_is_in_a_report(messy: tuple) -> None:
    root, out, _ = messy
    for name, content in contents(out).items():
        assert str(root.parent).encode() not in content, name


class Page(HTMLParser):
    """The tags of a page and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.alt = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]
        self.alt += dict(attrs).get("alt") or ""


def test_the_page_needs_nothing_else(messy: tuple) -> None:
    page = Page((messy[1] / "index.html").read_text())
    assert page.tags.count("script") == 1 and "link" not in page.tags and page.tags.count("style") == 1
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert re.search(r"quark: reward 0\.\d+, judge 0\.\d+, kl 0\.", (messy[1] / "index.html").read_text())


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "results"
    nasty: dict[str, Any] = {"method": HOSTILE, "task": HOSTILE, "preset": HOSTILE, "run_id": HOSTILE}
    final = {"judge": fake.point(None, reason=HOSTILE), "ppl": fake.point(None, reason=HOSTILE)}
    error = {"type": HOSTILE, "message": HOSTILE}
    for i, status in enumerate(("done", "failed")):
        changed = {**nasty, "error": error, "identity": {"model": HOSTILE, HOSTILE: 1}, "provenance": {HOSTILE: HOSTILE}}
        fake.write_run(root, "_hidden", i, status=status, final=final, manifest=changed, summary=nasty)
    runs, problems = find_runs([root])
    assert len(runs) == 2
    build(runs, [*problems, Problem(root / HOSTILE.replace("/", ""), HOSTILE)], tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "{{ 7*7 }}" in page
    parsed = Page(page)
    assert parsed.tags.count("script") == 1 and page.count("</style>") == 1 and "alert(1)</script>" not in page
    assert "<script" not in (tmp_path / "out/report.md").read_text()
    for svg in (tmp_path / "out/figures").glob("*.svg"):
        assert "{http://www.w3.org/2000/svg}script" not in {e.tag for e in ElementTree.parse(svg).iter()}


def test_figures_are_whole_and_wide_enough(messy: tuple) -> None:
    out = messy[1]
    png = (out / "figures/pareto-micro-toxicity.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) == 1034 and 20_000 < len(png) < 120_000
    svg = ElementTree.parse(out / "figures/pareto-micro-toxicity.svg")
    assert sum(1 for e in svg.iter() if e.tag.endswith("path")) > 100
    data = json.loads((out / "figures/data-micro-toxicity.json").read_text())
    assert {m["name"] for m in data["methods"]} >= {"quark", "ppo", "nulls"} and data["frontier"]["solid"]


def test_a_missing_metric_is_never_a_number(messy: tuple) -> None:
    _, out, _ = messy
    rows = list(csv.DictReader(io.StringIO((out / "tables/methods.csv").read_text())))
    nulls = next(row for row in rows if row["method"] == "nulls")
    assert nulls["reward"] == nulls["undesired"] == nulls["ppl"] == "" and nulls["kl"] != ""
    assert "reward: seed 0: SCORER-OFFLINE" in nulls["missing"]
    data = json.loads((out / "figures/data-micro-toxicity.json").read_text())
    (run,) = next(m for m in data["methods"] if m["name"] == "nulls")["runs"]
    assert run["final"]["judge"] == {"value": None, "stderr": None, "reason": "SCORER-OFFLINE"}
    page = (out / "index.html").read_text()
    assert "Reward: SCORER-OFFLINE" in page and re.search(r">– [¹²³⁴-⁹⁰]+<", page)


def test_means_are_over_the_seeds_that_are_done(tmp_path: Path) -> None:
    for seed, value in enumerate((0.90, 0.92, 0.97)):
        fake.write_run(tmp_path, "quark", seed, final={"reward": fake.point(value, 0.001)})
    fake.write_run(tmp_path, "quark", 3, status="degraded", final={"reward": fake.point(0.1, 0.001)})
    table = method_table(only_group(tmp_path))
    row = dict(zip(table.header, table.rows[-1]))
    assert (
        row["Seeds"] == "3" and row["Reward\u00a0↑ (0 to 1)"] == "0.930 [0.840, 1.000]"
    )  # t(2) = 4.303, s = 0.0361: 1.020, but no reward is above 1


def test_intervals_end_where_the_metric_does(tmp_path: Path) -> None:
    """Nothing below no drift, above all of the habit, or beyond 0 and 1; what is a difference may have either sign."""
    for seed, (judge, kl) in enumerate([(0.99, 0.1), (1.0, 1.0), (0.97, 4.0)]):
        final = {"judge": fake.point(judge, 0.001), "kl": fake.point(kl, 0.1), "excess_kl": fake.point(kl - 0.1, 0.1)}
        fake.write_run(tmp_path, "quark", seed, final=final)
    table = method_table(only_group(tmp_path))
    row = {title.split("\u00a0")[0]: text for title, text in zip(table.header, table.rows[-1])}
    assert row["Undesired"].startswith("0.013 [0.000, ") and row["Removed"].endswith(", 100.0]")
    assert row["KL"].startswith("1.700 [0.000, ") and row["Excess KL"].startswith("1.600 [−")
    drawn = figure_data(only_group(tmp_path))["methods"][0]["mean"]
    assert drawn["kl"]["low"] == 0.0 and drawn["judge"]["high"] == 1.0


def test_seeds_that_are_all_the_same_have_no_interval(tmp_path: Path) -> None:
    """[0.9, 0.9] would read as certainty; one value that differs in the last place shown is an interval."""
    for seed in range(3):
        final = {"reward": fake.point(0.9, 0.001), "kl": fake.point(0.5 + 1e-6 * seed, 0.001)}
        fake.write_run(tmp_path, "base", seed, final=final)
    table = method_table(only_group(tmp_path))
    row = dict(zip(table.header, table.rows[-1]))
    reward, kl = (next(text for title, text in row.items() if title.startswith(name)) for name in ("Reward", "KL"))
    note = next(note for note in table.notes if "every seed gives the same value" in note)
    assert reward == f"0.900 {note[0]}" and kl == "0.500 [0.500, 0.500]"


def test_two_records_of_a_seed_count_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake.write_run(tmp_path / name, "quark", 0)
    group = only_group(tmp_path)
    assert method_table(group).rows[-1][1] == "1" and len(run_table(group).rows) == 2


def test_removed_and_overoptimisation_by_hand(tmp_path: Path) -> None:
    final = {"judge": fake.point(0.94, 0.003), "reward": fake.point(0.92, 0.003)}
    run = read_run(fake.write_run(tmp_path, "quark", 0, final=final))
    assert removed(run).value == pytest.approx(80)  # 0.30 -> 0.06
    assert overoptimisation(run).value == pytest.approx(0.30 - 0.24)


def test_nothing_to_remove_is_said(tmp_path: Path) -> None:
    base = {**fake.BASE, "judge": fake.point(1.0, 0.0)}
    found = removed(read_run(fake.write_run(tmp_path, "quark", 0, summary={"base": base})))
    assert found.value is None and found.reason == "the base shows nothing to remove"


def test_what_was_not_recorded_or_has_not_finished_says_so(tmp_path: Path) -> None:
    done = read_run(fake.write_run(tmp_path, "quark", 0))
    failed = read_run(fake.write_run(tmp_path, "quark", 1, status="failed"))
    assert measure(done, "nonsense").reason == "not recorded"
    assert measure(failed, "kl").reason == "the run is failed"


@pytest.mark.parametrize("change", [{"model": "other"}, {"data": "other"}, {"scorers": "other"}, {"evaluation": {"n": 9}}])
def test_runs_of_two_worlds_are_kept_apart(change: dict, tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "ppo", 0, manifest={"identity": fake.identity("toxicity", "ppo", 0, **change)})
    runs, _ = find_runs([tmp_path])
    assert len(groups(runs)) == 2
    with pytest.raises(UsageError, match="2 different worlds"):
        pareto(runs)


@UNDRAWN
def test_sections_of_a_report_of_several_worlds(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    fake.write_run(tmp_path / "r", "quark", 0, task="sentiment")
    other = fake.frontier() | {"base_reward": 0.5}
    fake.write_run(tmp_path / "r", "ppo", 0, task="sentiment", summary={"frontier": other})
    report(tmp_path / "r", tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<section id=") == 3 + 4 and "cannot all be compared" in page
    names = {p.name for p in (tmp_path / "out/figures").glob("pareto*.png")}
    assert names == {f"pareto-micro-{task}.png" for task in ("toxicity", "sentiment-1", "sentiment-2")}


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


def study(root: Path, judges: dict[str, list[float]]) -> list[str]:
    for method, values in judges.items():
        for seed, value in enumerate(values):
            fake.write_run(root, method, seed, final={"judge": fake.point(value, 0.002)})
    return verdict(only_group(root))


def test_verdict_names_the_leader_with_its_numbers(tmp_path: Path) -> None:
    said = " ".join(study(tmp_path, {"quark": [0.96, 0.97, 0.98], "unlikelihood": [0.80, 0.81, 0.82]}))
    assert (
        "quark removes most of the habit: the undesired score falls from 0.300 to 0.030, 90% (95% interval 82 to 98%)" in said
    )
    assert (
        "over 3 seeds" in said
        and "Every other method is ruled out as the best" in said
        and "optimal policy would reach the same reward" in said
    )


def test_verdict_says_ties(tmp_path: Path) -> None:
    said = " ".join(
        study(tmp_path, {"quark": [0.96, 0.97, 0.98], "unlikelihood": [0.93, 0.95, 0.97], "ppo": [0.7, 0.71, 0.72]})
    )
    assert re.search(
        r"Tied with quark, as the tests do not rule them out as the best \(.*Holm.*\): unlikelihood \(83%\)\.", said
    )


def test_verdict_of_one_seed_claims_no_order(tmp_path: Path) -> None:
    said = " ".join(study(tmp_path, {"quark": [0.97], "ppo": [0.8]}))
    assert "One seed gives no interval over seeds (quark, ppo); the order of these may be chance." in said


def test_verdict_on_no_gain(tmp_path: Path) -> None:
    assert study(tmp_path, {"quark": [0.64]})[0].startswith("No method removes the habit")


def test_verdict_on_a_gain_that_may_be_none(tmp_path: Path) -> None:
    assert "The interval of quark includes no change at all." in study(tmp_path, {"quark": [0.6, 0.85]})


def test_verdict_without_a_judge_or_a_finished_run(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "a", "quark", 0, final={"judge": fake.point(None, reason="offline")})
    fake.write_run(tmp_path / "b", "quark", 0, status="failed")
    assert "(seed 0: offline)" in verdict(only_group(tmp_path / "a"))[0]
    assert verdict(only_group(tmp_path / "b")) == [
        "No run is done, so there is no verdict.",
        "Left out of means and order: 1 failed.",
    ]


def test_a_run_above_the_frontier_is_a_suspect_and_not_a_winner(messy: tuple) -> None:
    root, out, result = messy
    leaky = read_run(root / "micro/toxicity/leaky/5e5e5e5e-s0")
    assert above_frontier(leaky).reward == pytest.approx(0.99 - fake.best_reward(0.4), abs=0.002)
    assert any(p.path == leaky.dir and "suspected bug in the suite" in p.what for p in result.problems)
    assert "Suspected bug in the suite, not a good method: leaky seed 0" in (out / "index.html").read_text()


def place(root: Path, kl: float, reward: float, frontier: dict[str, Any] | None = None) -> Run:
    final = {"kl": fake.point(kl, 0.01), "reward": fake.point(reward, 0.004)}
    return read_run(fake.write_run(root, "x", 0, final=final, summary={"frontier": frontier or fake.frontier()}))


def test_within_its_error_above_the_frontier_is_no_suspect(tmp_path: Path) -> None:
    assert above_frontier(place(tmp_path, 0.5, fake.best_reward(0.5) + 0.008)) is None


def test_beyond_the_solid_frontier_the_upper_bound_counts(tmp_path: Path) -> None:
    assert above_frontier(place(tmp_path / "a", 2.0, fake.best_reward(2.0) + 0.005)) is None
    assert above_frontier(place(tmp_path / "b", 2.0, fake.best_reward(2.0) + 0.06)) is not None


def test_where_no_frontier_is_known_nothing_is_suspected(tmp_path: Path) -> None:
    none_solid = fake.frontier() | {"curve": [], "upper": []}
    assert above_frontier(place(tmp_path / "a", 0.5, 1.0, none_solid)) is None
    assert above_frontier(place(tmp_path / "b", 30.0, 1.0)) is None


def test_figures_of_odd_records_are_drawn(tmp_path: Path) -> None:
    """Collapse to 40 nats, no frontier, no judge line, nothing measured, nothing finished."""
    cases = [
        fake.write_run(tmp_path / "a", "ppo", 0, final={"kl": fake.point(40.0, 1.0), "ppl": fake.point(300.0, 5.0)}),
        fake.write_run(tmp_path / "b", "ppo", 0, summary={"frontier": None}),
        fake.write_run(tmp_path / "c", "ppo", 0, summary={"frontier": fake.frontier() | {"judge_at": None, "best_of_n": []}}),
        fake.write_run(tmp_path / "d", "ppo", 0, summary={"final": {}, "base": {}, "frontier": None}),
        fake.write_run(tmp_path / "e", "ppo", 0, status="running"),
        fake.write_run(tmp_path / "f", "ppo", 0, summary={"frontier": fake.frontier() | {"curve": [], "upper": []}}),
    ]
    (cases[3] / "trajectory.jsonl").write_text("")
    for dir in cases:
        assert save(run_picture(read_run(dir)), "png").startswith(b"\x89PNG"), dir


@pytest.mark.parametrize("name", ["methods", "best of n"])
def test_no_two_labels_of_twenty_methods_overlap(name: str, tmp_path: Path) -> None:
    """As drawn: the boxes of the texts in a panel, by the renderer's own measure; two ended beyond the edge at one height."""
    best = [{"n": 2**i, "kl": 0.65 * (1 - 0.6**i), "reward": 0.95 - 0.3 * 0.4**i} for i in range(6)]  # crowded at its end
    for i, method in enumerate(sorted(METHODS)[:20]):
        kl = 30.0 if i < 2 else 4.3 if i == 2 else 0.4 + 0.01 * (i % 5)  # a crowd: not all can be named
        final = {"kl": fake.point(kl, 0.01), "reward": fake.point(0.70 + 0.004 * (i // 5), 0.003)}
        summary = {"frontier": fake.frontier() | {"best_of_n": best}}
        for seed in range(2):
            fake.write_run(tmp_path, method, seed, final=final, summary=summary)
    figure = Figure(figsize=(4.7, 3.9))
    ax = figure.add_axes((0.14, 0.14, 0.82, 0.72))
    draw_panel(ax, figure_data(only_group(tmp_path)), REWARD_KL, name_methods=True)
    renderer = FigureCanvasAgg(figure).get_renderer()
    wanted = [
        t for t in ax.texts if (t.get_text().split(", KL")[0] in METHODS if name == "methods" else t.get_text().isdigit())
    ]
    assert len([t for t in ax.texts if t.get_text().endswith(", KL 30")]) == 2
    boxes = [text.get_window_extent(renderer) for text in wanted]
    assert len(boxes) >= 3 and all(ax.get_window_extent(renderer).overlaps(box) for box in boxes)
    assert not any(a.padded(-1).overlaps(b.padded(-1)) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_run_that_strays_far_and_comes_back_squeezes_no_other(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0, final={"kl": fake.point(0.5, 0.01), "ppl": fake.point(6.0, 0.05)})
    data = figure_data(only_group(tmp_path))
    (run,) = data["methods"][0]["runs"]
    run["path"][1] |= {"kl": 55.0, "ppl": 900.0}
    for panel, most in ((REWARD_KL, 2), (REWARD_PPL, 10)):
        ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
        draw_panel(ax, data, panel)
        assert ax.get_xlim()[1] < most
    run["final"], run["path"][1]["kl"] = None, 3.0  # it has not ended: where it has been is all there is
    ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    draw_panel(ax, data, REWARD_KL)
    assert ax.get_xlim()[1] > 3


def test_what_ended_far_off_is_named_at_the_edge(tmp_path: Path) -> None:
    """The cap is 1.5 nats; the means of ppo and dpo are far beyond, of npo a seed only."""
    for seed in range(2):
        fake.write_run(tmp_path, "quark", seed, final={"kl": fake.point(0.5, 0.01)})
        fake.write_run(tmp_path, "ppo", seed, final={"kl": fake.point(20.0 if seed else 0.7, 0.01)})
        fake.write_run(tmp_path, "dpo", seed, final={"kl": fake.point(29.0 + 2 * seed, 0.01)})
        fake.write_run(tmp_path, "npo", seed, final={"kl": fake.point(7.0 if seed else 0.9, 0.01)})
    ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    notes = draw_panel(ax, figure_data(only_group(tmp_path)), REWARD_KL, "p-")
    words = sorted(t.get_text() for t in ax.texts if ", KL" in t.get_text())
    assert ax.get_xlim()[1] < 5 and words == ["dpo, KL 30", "ppo, KL 10.3"]  # the mean of ppo is beyond the edge too
    told = {note.gid: note.texts for note in notes if note.gid.endswith("-f")}
    assert sorted(len(texts) for texts in told.values()) == [1, 1, 1] and "mean of 2 seeds: kl 30" in str(told)


@pytest.mark.parametrize("ppl", [4.9, 5.3, 7.0, 60.0, 4000.0])
def test_an_axis_of_perplexity_names_several_values_however_short_it_is(ppl: float, tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0, final={"ppl": fake.point(ppl, 0.05)})
    ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    draw_panel(ax, figure_data(only_group(tmp_path)), REWARD_PPL)
    ticks, (low, high) = ax.get_xticks(), ax.get_xlim()
    assert 3 <= len(ticks) <= 9 and all(low <= tick <= high for tick in ticks)


def test_a_figure_is_its_data(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    group = only_group(tmp_path)
    data = json.loads(json.dumps(figure_data(group)))
    assert save(draw(data), "svg") == save(pareto(group.runs), "svg")


def test_only_the_test_split_is_drawn(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "quark", 0)
    rows = [json.loads(line) | {"split": "validation"} for line in (dir / "trajectory.jsonl").read_text().splitlines()]
    fake.dump_rows(dir / "trajectory.jsonl", rows)
    assert figure_data(only_group(tmp_path))["methods"][0]["runs"][0]["path"] == []


def told(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code of the command, what it warned of, and the page."""
    code = report_command([root], out)
    return code, capsys.readouterr().err, (out / "index.html").read_text()


def hostile(root: Path, what: str) -> str:
    """One record that is wrong in one way, beside sound ones; returns words that must be said of it."""
    if what == "above the frontier":
        final = {"regret": fake.point(-0.05, 0.01)}
        fake.write_run(root, "leaky", 0, final=final, summary={"frontier": fake.frontier() | {"above": True}})
        return "above the optimal frontier by 0.050 reward, 5.0 standard errors"
    if what == "unscored":
        final = {"judge": fake.point(0.9, 0.01) | {"n_unscored": 200}}
        fake.write_run(root, "quark", 1, status="degraded", final=final)
        return "quark, seed 1, is degraded: 200 scores missing"
    if what == "missing seed":
        fake.write_run(root, "ppo", 1)
        return "quark, seed 1, is missing"
    if what == "two records":
        fake.write_run(root / "copy", "quark", 0)
        return "a second record of the cell of"
    if what == "newer schema":
        fake.write_run(root, "quark", 1, manifest={"schema_version": 9})
        return "schema_version 9"
    (fake.write_run(root, "quark", 1) / "trajectory.jsonl").write_text('{"update": 0')
    return "trajectory.jsonl is truncated"


WRONG = {
    "above the frontier": 5, "unscored": 4, "missing seed": 4, "two records": 4, "newer schema": 4, "truncated file": 4,
}  # fmt: skip


@UNDRAWN
@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_is_wrong_is_named_counted_and_averaged_nowhere(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.records.stale.outdated", lambda runs: {})  # invented records are of no version
    root = tmp_path / "r"
    for method in ("quark", "ppo"):
        fake.write_run(root, method, 0)
    sound = told(root, tmp_path / "sound", capsys)
    assert sound[:2] == (0, "") and "partial" not in sound[2].split("</style>")[1]
    words = hostile(root, what)
    code, warned, page = told(root, tmp_path / "out", capsys)
    assert code == WRONG[what] and words in warned and words in page and "This report is partial" in page
    rows = {folder: rows_of(tmp_path / folder / "tables/methods.csv") for folder in ("sound", "out")}
    before, after = (next(row for row in rows[folder] if row["method"] == "quark") for folder in ("sound", "out"))
    assert [after[key] for key in ("reward", "reward_n", "kl")] == [before[key] for key in ("reward", "reward_n", "kl")]


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


@UNDRAWN
def test_the_update_at_which_a_run_was_above_is_said(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path, "a", 0, summary={"frontier": fake.frontier() | {"above": True}})
    rows = [json.loads(line) for line in (dir / "trajectory.jsonl").read_text().splitlines()]
    rows[2]["metrics"]["regret"] = fake.point(-0.03, 0.01)
    fake.dump_rows(dir / "trajectory.jsonl", rows)
    (problem,) = build(*find_runs([tmp_path]), tmp_path / "out").impossible
    assert "by 0.030 reward, 3.0 standard errors, at update 20: a suspected bug" in problem.what


@UNDRAWN
def test_a_few_unscored_responses_are_said_though_the_run_counts(tmp_path: Path) -> None:
    final = {"judge": fake.point(0.9, 0.01) | {"n_unscored": 3}}
    fake.write_run(tmp_path / "r", "quark", 0, final=final)
    result = report(tmp_path / "r", tmp_path / "out")
    assert "quark, seed 0: responses without a score (judge 3)" in (tmp_path / "out/index.html").read_text()
    assert result.exit_code == 0


def curve(*points: tuple[float, float], cap: float = 2.0) -> dict[str, Any]:
    """A frontier of straight lines through the points (KL, reward), the first the base, and a best-of-2 halfway below."""
    solid = [{"kl": kl, "reward": reward, "reward_stderr": 0.0, "solid": True} for kl, reward in points]
    best = [{"n": 1, "kl": 0.0, "reward": points[0][1]}, {"n": 2, "kl": 1.0, "reward": 0.5}]
    return fake.frontier() | {"base_reward": points[0][1], "kl_cap": cap, "curve": solid, "upper": [], "best_of_n": best}


def ended(root: Path, method: str, kl: float, rewards: list[float], frontier: dict[str, Any]) -> None:
    for seed, reward in enumerate(rewards):
        final = {"kl": fake.point(kl, 0.01), "reward": fake.point(reward, 0.01)}
        dir = fake.write_run(root, method, seed, final=final, summary={"frontier": frontier})
        rows = (dir / "trajectory.jsonl").read_text().splitlines()
        fake.dump_rows(dir / "trajectory.jsonl", [json.loads(rows[-1])])


def test_hypervolume_by_hand(tmp_path: Path) -> None:
    """A triangle of 2 nats by 0.8 reward: area 0.8. One point at 1 nat, 0.3 above the base: a rectangle of 1 by 0.3."""
    ended(tmp_path, "x", 1.0, [0.5], curve((0.0, 0.2), (2.0, 1.0)))
    ended(tmp_path, "far", 3.0, [0.9], curve((0.0, 0.2), (2.0, 1.0)))
    runs = {run.manifest["method"]: run for run in find_runs([tmp_path])[0]}
    assert share_of_hypervolume(runs["x"]).value == pytest.approx(0.3 / 0.8)
    assert share_of_hypervolume(runs["far"]).value == 0  # beyond the cap
    none = runs["x"]._replace(summary={**runs["x"].summary, "frontier": curve((0.0, 0.2), (2.0, 1.0)) | {"kl_cap": None}})
    assert share_of_hypervolume(none).reason == "the task declares no KL cap"


def test_attainment_of_two_seeds_by_hand(tmp_path: Path) -> None:
    """Two seeds end at 1 nat with 0.5 and 0.4: both attain 0.4 there, one 0.5; one that left the cap keeps the base."""
    world = curve((0.0, 0.2), (2.0, 1.0))
    ended(tmp_path, "two", 1.0, [0.5, 0.4], world)
    ended(tmp_path, "lost", 1.0, [0.5, 0.4], world)
    ended(tmp_path, "single", 1.0, [0.5], world)
    left = {"kl": fake.point(3.0, 0.01), "reward": fake.point(0.9, 0.01)}
    dir = fake.write_run(tmp_path, "lost", 2, final=left, summary={"frontier": world})
    (dir / "trajectory.jsonl").write_text("")
    good = {"kl": fake.point(1.0, 0.01), "reward": fake.point(0.9, 0.01)}
    fake.write_run(tmp_path, "two", 2, status="degraded", final=good, summary={"frontier": world})
    data = figure_data(only_group(tmp_path)) | {"base": {"reward": {"value": 0.2}}}
    for method in data["methods"]:
        for run in method["runs"]:
            run["path"] = []
    base = [0.0, 0.2]
    two, lost = attained(data)  # one seed has no share
    assert (two["name"], two["n"]) == ("two", 2) and (lost["name"], lost["n"]) == ("lost", 3)
    assert two["every"] == [base, [1.0, 0.4]]
    assert two["half"] == two["one"] == [base, [1.0, 0.5]]
    assert (lost["every"], lost["half"], lost["one"]) == ([base], [base, [1.0, 0.4]], [base, [1.0, 0.5]])
    ax = Figure().subplots()
    draw_attained(ax, data, lost)
    assert ax.lines[-1].get_xydata().tolist() == [[0.0, 0.2], [1.0, 0.4], [2.0, 0.4]]  # half of three, to the cap
    band = ax.collections[-1].get_paths()[0].vertices
    assert {tuple(v) for v in band if v[0] == 2.0} == {(2.0, 0.2), (2.0, 0.5)}  # every seed below, one above
    unsaid = [m | {"runs": [r | {"final": None} for r in m["runs"]]} for m in data["methods"]]
    assert attained(data | {"methods": unsaid}) == []  # their summaries are gone
    assert attained(data | {"frontier": None}) == [] == attained(data | {"base": None})


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


def test_a_leader_beyond_the_cap_is_said_so(tmp_path: Path) -> None:
    for seed in range(2):
        fake.write_run(tmp_path, "wild", seed, final={"judge": fake.point(0.99, 0.01), "kl": fake.point(9.0, 0.1)})
        fake.write_run(tmp_path, "mild", seed, final={"judge": fake.point(0.91, 0.01), "kl": fake.point(0.9, 0.1)})
    first = verdict(only_group(tmp_path))[0]  # the overview has this sentence alone
    assert first.startswith("wild removes most")
    assert first.endswith("That is beyond the task's cap of 1.5 nats; within it, mild removes most, 70%.")


def test_ranks_and_the_least_difference_seen_by_simulated_seeds(tmp_path: Path) -> None:
    """Two methods that differ by exactly the effect said are told apart in about 80 of 100 draws of three seeds."""
    study(tmp_path, {"a": [0.90, 0.91, 0.92], "b": [0.905, 0.915, 0.925], "c": [0.70, 0.71, 0.72]})
    ranks = {r.entry.name: r.ranks for r in ranking(only_group(tmp_path))}
    assert ranks == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    effect, n = detectable(ranking(only_group(tmp_path))) or (0.0, 0)
    assert n == 3
    rng = np.random.default_rng(0)
    spread = 100 * 0.01 / 0.3  # one seed's, in percent of the base's 0.30
    a, b = rng.normal(0, spread, (4000, 3)), rng.normal(effect, spread, (4000, 3))
    pooled = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 3)
    assert np.mean(np.abs(b.mean(1) - a.mean(1)) / pooled > 2.776) == pytest.approx(0.8, abs=0.03)


def test_kinds_of_prompts_have_a_figure_and_a_table(tmp_path: Path) -> None:
    final = {f"judge@{kind}": fake.point(value, 0.01) for kind, value in (("calm", 0.95), ("heated", 0.6))}
    fake.write_run(tmp_path / "r", "quark", 0, final=final, summary={"base": fake.BASE | final})
    report(tmp_path / "r", tmp_path / "out")
    assert (tmp_path / "out/figures/kinds-micro-toxicity.svg").exists()
    (row,) = [r for r in rows_of(tmp_path / "out/tables/kinds-micro-toxicity.csv") if r["Method"] == "quark"]
    assert [row["calm ↓ (undesired)"], row["heated ↓ (undesired)"]] == ["0.050", "0.400"]


def test_samples_are_the_same_prompts_and_the_first_answers(tmp_path: Path) -> None:
    for method in ("quark", "ppo"):
        fake.write_samples(fake.write_run(tmp_path, method, 0), method)
    data, problems = samples(only_group(tmp_path))
    assert problems == [] and [p["kind"] for p in data["prompts"]] == ["calm", "heated"] * 3
    assert [row["name"] for row in data["rows"]] == ["base (untrained)", "ppo", "quark"]
    for row in data["rows"][1:]:
        assert all(a["text"] == f"answer 0 of {row['name']}\n" for a in row["answers"])


@UNDRAWN
def test_samples_that_cannot_be_read_are_a_problem(tmp_path: Path) -> None:
    dir = fake.write_run(tmp_path / "r", "quark", 0)
    fake.write_samples(dir, "quark")
    (dir / "samples/final.parquet").write_bytes(b"PAR1 no")
    result = report(tmp_path / "r", tmp_path / "out")
    assert any("samples/final.parquet cannot be read" in p.what for p in result.problems) and result.exit_code == 4


def test_seeds_that_lack_a_number_for_one_reason_are_one_note(tmp_path: Path) -> None:
    for seed in range(5):
        why = "the scorer was away" if seed < 4 else "no response ended"
        fake.write_run(tmp_path, "quark", seed, final={"ppl": fake.point(None, reason=why)})
    notes = [note.split(" ", 1)[1] for note in method_table(only_group(tmp_path)).notes]
    assert notes == ["Perplexity: 4 seeds: the scorer was away", "Perplexity: seed 4: no response ended"]


def test_a_long_or_hostile_text_is_cut_and_boxed() -> None:
    assert text("a\tb\nc\u202e\ud800\x1b[31m") == "a\tb\nc\ufffd\ufffd\ufffd[31m"
    assert text("x" * 5000).endswith("… (cut: 5000 characters)") and len(text("x" * 5000)) < 1300


def test_cards_say_what_a_method_is_and_what_ran(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "mine", 0)
    mine, quark = method_cards(only_group(tmp_path))
    assert "Lu et al. 2022" in quark.line and "Quark" in quark.doc and ("lr", "0.0001") in quark.facts
    assert "not installed here" in mine.line and mine.doc == ""
    assert "insults" in task_card(only_group(tmp_path)).line


@pytest.mark.parametrize("tasks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_page_of_a_benchmark_is_not_heavy(tasks: int, tmp_path: Path) -> None:
    """20 methods, 3 tasks, a run each: the page is drawn from means, so seeds add little."""
    for method in sorted(METHODS)[:20]:
        for task in ("toxicity", "sentiment", "repetition")[:tasks]:
            fake.write_run(tmp_path / "r", method, 0, task=task)
    report(tmp_path / "r", tmp_path / "out")
    assert (tmp_path / "out/index.html").stat().st_size < tasks * 5_000_000 / 3
    page = (tmp_path / "out/index.html").read_text()
    assert ('id="overview"' in page or tasks == 1) and page.count('class="plot"') >= tasks * 12


def test_no_run_is_an_empty_selection(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="no run to report on"):
        build([], [], tmp_path)
    with pytest.raises(EmptySelection, match="1 could not be read, first"):
        build([], [Problem(tmp_path, "broken")], tmp_path)
    with pytest.raises(EmptySelection, match="at least one run"):
        pareto([])


@UNDRAWN
def test_a_folder_that_takes_no_files_is_said(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(Unwritable, match="choose another folder"):
        report(tmp_path / "r", tmp_path / "out")


def test_a_formula_in_a_name_is_text_in_csv(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "=1+1", 0)
    assert ",'=1+1," in runs_csv([only_group(tmp_path)])


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(-0.0001, ".3f", "0.000"), (-1.5, ".1f", "−1.5"), (3.1e13, ".2g", "3.1e13")]
)
def test_numbers_read_well(value: float, digits: str, text: str) -> None:
    assert number(value, digits) == text


def test_a_report_imports_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    program = """
import sys
from pathlib import Path
import harness.report
assert "matplotlib" not in sys.modules
from harness.records.read import find_runs
from harness.report.build import build
build(*find_runs([Path(sys.argv[1])]), Path(sys.argv[2]))
print([name for name in ("torch", "pandas", "matplotlib.pyplot") if name in sys.modules])
"""
    args = [sys.executable, "-c", program, str(tmp_path / "r"), str(tmp_path / "out")]
    assert subprocess.run(args, check=True, capture_output=True, text=True).stdout == "[]\n"


def contrast(one: str, two: str) -> float:
    def light(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(c * 2 for c in colour)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_their_ground(messy: tuple) -> None:
    style = (messy[1] / "index.html").read_text().split("</style>")[0]
    cells = re.findall(r"background: #(\w{3,6}); color: #(\w{3,6});", style)
    assert len(cells) == 6 and all(contrast(*pair) >= 4.5 for pair in cells)  # five states and a chosen method
    grounds = ("fff", "f5f5f3", "fdf1f2")
    assert all(contrast(text, ground) >= 4.5 for text in ("222", "555", "005a8f") for ground in grounds)
    every = [colour for family in FAMILIES.values() for _, colour, _ in looks(family)] + list(HUES.values())
    assert all(contrast(colour[1:], "ffffff") >= 3 for colour in every)  # marks
    named = re.findall(r'<b style="color: #(\w{6})">', (messy[1] / "index.html").read_text())
    assert named and all(contrast(colour, "ffffff") >= 3 for colour in named)
    assert contrast(GREY[1:], "ffffff") >= 4.5 and contrast(INK[1:], SHADE[1:]) >= 4.5


def test_every_name_beside_a_point_can_be_read() -> None:
    every = [colour for family in FAMILIES.values() for _, colour, _ in looks(family)] + list(HUES.values())
    assert {c for c in every if contrast(c[1:], "ffffff") < 4.5} == set()  # names in a figure are text, not marks


def test_methods_are_told_apart_without_colour() -> None:
    assert {name for family in FAMILIES.values() for name in family} == set(METHODS)
    assert sum(map(len, FAMILIES.values())) == len(METHODS)
    for family in FAMILIES.values():
        assert len({look.marker for look in looks(family)}) == len(family)
    pairs = [look[1:] for look in looks([*METHODS, "mine", "yours"])]
    assert len(set(pairs)) == len(pairs)
