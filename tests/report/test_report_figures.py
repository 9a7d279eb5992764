"""The figures of a report: what is drawn, what is named, and whether it can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fake_records as fake
import pytest
from fake_reports import curve, ended, only_group
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from harness.analysis.curves.attainment import attained
from harness.analysis.scalars import Trace
from harness.methods import METHODS
from harness.records.read import read_run
from harness.report.figures.attainment import draw_attained
from harness.report.figures.data import figure_data
from harness.report.figures.panels import COMPUTE, JUDGE_KL, REWARD_KL, REWARD_PPL, draw_panel
from harness.report.figures.pareto import draw, legend_entries, pareto, run_picture
from harness.report.figures.sheets import Dots, _dots
from harness.report.figures.style import GREY, HUES, INK, SHADE, families, looks, save
from harness.report.figures.ticks import Ticks
from harness.report.figures.training import draw_trace


def test_figures_are_whole_and_wide_enough(messy: tuple) -> None:
    out = messy[1]
    png = (out / "figures/pareto-micro-toxicity.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) == 1034 and 20_000 < len(png) < 120_000
    svg = ElementTree.parse(out / "figures/pareto-micro-toxicity.svg")
    assert sum(1 for e in svg.iter() if e.tag.endswith("path")) > 100
    data = json.loads((out / "figures/data-micro-toxicity.json").read_text())
    assert {m["name"] for m in data["methods"]} >= {"quark", "ppo", "nulls"} and data["frontier"]["solid"]


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


def on_validation(dir: Path) -> None:
    rows = [json.loads(line) | {"split": "validation"} for line in (dir / "trajectory.jsonl").read_text().splitlines()]
    fake.dump_rows(dir / "trajectory.jsonl", rows)


def names(entries: Iterable[tuple[Any, str]]) -> list[str]:
    return [name for _, name in entries]


def test_points_on_validation_prompts_are_dashed_and_in_the_legend(tmp_path: Path) -> None:
    on_validation(fake.write_run(tmp_path, "quark", 0))
    data = figure_data(only_group(tmp_path))
    (run,) = data["methods"][0]["runs"]
    assert run["path"] == [] and len(run["validation"]) == 7
    assert "dashed: training, on validation prompts" in names(legend_entries(data))
    ax = Figure().subplots()
    draw_panel(ax, data, REWARD_KL)
    lines = [c for c in ax.collections if isinstance(c, LineCollection) and len(c.get_segments()[0]) == 7]
    assert [c.get_linestyle()[0][1] is None for c in lines] == [False]  # not solid
    (hollow,) = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 7]
    assert hollow.get_facecolor().tolist()[0][:3] == [1.0, 1.0, 1.0]


def test_a_study_on_validation_prompts_says_so_and_draws_them_as_its_own(tmp_path: Path) -> None:
    identity = fake.identity("toxicity", "quark", 0, evaluation={"split": "validation"})
    on_validation(fake.write_run(tmp_path, "quark", 0, manifest={"identity": identity}))
    data = figure_data(only_group(tmp_path))
    (run,) = data["methods"][0]["runs"]
    assert len(run["path"]) == 7 and run["validation"] == [] and data["title"] == "toxicity, preset micro, validation prompts"


def test_the_legend_has_what_some_panel_shows_and_nothing_else(tmp_path: Path) -> None:
    fake.write_run(tmp_path, "quark", 0)
    data = figure_data(only_group(tmp_path))
    frontier = ["optimal frontier, 95% band", "upper bound beyond it", "best of n (n beside it)", "unattainable"]
    both = ["quark, 1 seed", "base policy"]
    assert names(legend_entries(data)) == [*both, *frontier, "reward's optimum, judged"]
    assert names(legend_entries(data, [JUDGE_KL])) == [*both, "reward's optimum, judged"]
    assert names(legend_entries(data, COMPUTE)) == both
    short_of = data | {"frontier": data["frontier"] | {"upper": [], "best_of_n": [], "judge_at": None}}
    assert names(legend_entries(short_of)) == [*both, frontier[0], frontier[3]]
    fake.write_run(tmp_path, "ppo", 0, status="failed")
    data = figure_data(only_group(tmp_path))
    assert names(legend_entries(data, COMPUTE))[-1] == "dotted: not finished"
    data["methods"][0]["runs"][0]["path"] = []
    assert names(legend_entries(data, COMPUTE))[-1] == "base policy"


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.4995, 0.5, 0.5005], ["0.4995", "0.5000", "0.5005"]),
        ([0.49999, 0.5, 0.50001], ["0.49999", "0.50000", "0.50001"]),
        ([0.85, 0.875, 0.9], ["0.850", "0.875", "0.900"]),
        ([-0.1, -1e-17, 0.1], ["-0.1", "0.0", "0.1"]),
        ([4, 8, 12], ["4", "8", "12"]),
        ([0, 15000, 2e6], ["0", "15k", "2M"]),
        ([0.5], ["0.5"]),
    ],
)
def test_ticks_have_the_decimals_that_their_spacing_needs(ticks: list[float], labels: list[str]) -> None:
    assert Ticks().format_ticks(ticks) == labels


def test_equal_values_have_ticks_of_different_labels(tmp_path: Path) -> None:
    ax = Figure().subplots()
    value = {"value": 0.5, "low": 0.5, "high": 0.5, "text": "x"}
    _dots(ax, [{"name": "quark", "colour": "#000000"}], Dots("Unique", "share", [value], 0.5), "t")
    ax.figure.canvas.draw()
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert len(labels) == len(set(labels)) > 2


def test_small_panels_name_their_axes(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake.write_run(tmp_path, "quark", seed)
    data = figure_data(only_group(tmp_path))
    one, two = Figure().subplots(1, 2)
    draw_attained(one, data, attained(data)[0])
    draw_trace(two, Trace("quark", "loss", [[(1, 0.5), (2, 0.4)]]), "#000000")
    assert two.get_ylim()[0] < 0.4 and two.get_ylim()[1] > 0.5  # both of two values are shown
    assert (one.get_xlabel(), one.get_ylabel(), two.get_xlabel()) == ("KL to base, nats", "reward attained", "update")


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
    every = [colour for family in families().values() for _, colour, _ in looks(family)] + list(HUES.values())
    assert all(contrast(colour[1:], "ffffff") >= 3 for colour in every)  # marks
    named = re.findall(r'<b style="color: #(\w{6})">', (messy[1] / "index.html").read_text())
    assert named and all(contrast(colour, "ffffff") >= 3 for colour in named)
    assert contrast(GREY[1:], "ffffff") >= 4.5 and contrast(INK[1:], SHADE[1:]) >= 4.5


def test_every_name_beside_a_point_can_be_read() -> None:
    every = [colour for family in families().values() for _, colour, _ in looks(family)] + list(HUES.values())
    assert {c for c in every if contrast(c[1:], "ffffff") < 4.5} == set()  # names in a figure are text, not marks


def test_methods_are_told_apart_without_colour() -> None:
    assert {name for family in families().values() for name in family} == set(METHODS)
    assert sum(map(len, families().values())) == len(METHODS)
    for family in families().values():
        assert len({look.marker for look in looks(family)}) == len(family)
    pairs = [look[1:] for look in looks([*METHODS, "mine", "yours"])]
    assert len(set(pairs)) == len(pairs)
