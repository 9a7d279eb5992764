"""Which runs share a section of the page, what two sections of one task are called, and a section with degraded runs only."""

from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis.groups import unlike
from harness.analysis.study import Study
from harness.core.hashing import identity_hash
from harness.records.read import find_runs
from harness.report.build import build
from harness.report.cards import task_card
from harness.report.figures.data import figure_data
from harness.report.figures.sheets import Sheet

RULER = {"samples": 4, "points": 8, "point_samples": 2, "seed": 0, "version": 5}


def write(out: Path, method: str, **evaluation: int) -> None:
    identity = fake.identity("toxicity", method, 0, evaluation=RULER | evaluation)
    fake.write_run(out, method, 0, manifest={"identity": identity}, id8=identity_hash(identity)[:8])


@pytest.mark.parametrize("key", ["points", "point_samples"])
def test_runs_that_were_looked_at_more_often_on_their_way_share_a_section(key, tmp_path):
    write(tmp_path, "ppo")
    write(tmp_path, "quark")
    write(tmp_path, "quark", **{key: 3})
    runs, _ = find_runs([tmp_path])
    study = Study(runs)
    (group,) = study.groups
    assert [entry.name.partition(":")[2] for entry in group.entries] == ["", *sorted(f" {key}={n})" for n in (3, RULER[key]))]
    assert study.headings == ["toxicity, preset micro"]
    shared = {k: v for k, v in RULER.items() if k not in ("points", "point_samples")}
    assert group.world["evaluation"] == shared and f'"{key}"' not in dict(task_card(group).facts)["evaluation"]
    assert {cell.group for cell in study.cells} == {0}


@pytest.mark.parametrize("key", ["samples", "seed", "version"])
def test_runs_measured_by_another_ruler_have_a_section_that_says_how(key, tmp_path):
    write(tmp_path, "ppo")
    write(tmp_path, "quark")
    write(tmp_path, "quark", **{key: 77})
    study = Study(*find_runs([tmp_path]))
    found = study.groups
    assert study.headings == [
        f"toxicity, preset micro, world {n}: evaluation.{key} {value}" for n, value in ((1, RULER[key]), (2, 77))
    ]
    assert unlike(found) == f"evaluation.{key} ({RULER[key]} and 77)"
    assert [group.world["evaluation"] for group in found] == [RULER, RULER | {key: 77}]


def test_sections_apart_by_their_frontier_alone_say_so(tmp_path):
    fake.write_run(tmp_path, "quark", 0)
    fake.write_run(tmp_path, "ppo", 0, summary={"frontier": fake.frontier() | {"base_reward": 0.1}})
    fake.write_run(tmp_path, "npo", 0, task="sentiment")
    found = Study(*find_runs([tmp_path])).headings
    assert sorted(found) == [
        "sentiment, preset micro", "toxicity, preset micro, world 1: another frontier",
        "toxicity, preset micro, world 2: another frontier",
    ]  # fmt: skip


def test_a_page_shows_a_section_of_degraded_runs_only(tmp_path, monkeypatch):
    kinds = {f"{name}@{kind}": fake.point(0.5, 0.01) for name in ("reward", "judge", "kl") for kind in ("calm", "heated")}
    fake.write_run(tmp_path, "quark", 0, status="degraded", final=kinds, summary={"base": fake.BASE | kinds})
    runs, problems = find_runs([tmp_path])
    always = ("pareto", "fluency", "compute", "overoptimisation")  # drawn elsewhere: here it is about what cannot be drawn
    sheets = {name: Sheet(b"<svg></svg>", ["<svg></svg>"], b"") for name in always}
    monkeypatch.setattr("harness.report.build.pictures", lambda group, slug: (sheets, figure_data(group)))
    made = build(Study(runs, problems), tmp_path / "page")
    for name in ("index.html", "report.md"):
        text = (tmp_path / "page" / name).read_text()
        assert "toxicity, preset micro" in text and "No verdict: no run is done" in text.replace("\\", "")
    assert made.exit_code == 4 and "quark, seed 0, is degraded" in made.unfinished[0]
