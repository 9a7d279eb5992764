"""Which runs share a section of the page, what two sections of one task are called, and a section with degraded runs only."""

from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis.groups import unlike
from harness.analysis.study import Study
from harness.core.hashing import identity_hash
from harness.records.read import find_runs
from harness.report.build import _seeds, build
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


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the pictures that every page has: they are drawn elsewhere."""
    sheets = {n: Sheet(b"<svg></svg>", ["<svg></svg>"], b"") for n in ("pareto", "fluency", "compute", "overoptimisation")}
    monkeypatch.setattr("harness.report.build.pictures", lambda group, slug: (sheets, figure_data(group), []))


LONG = "politeness_of_forum_replies_v2"


def test_a_scorer_in_a_file_is_named_whole_with_the_first_digits_of_its_hash(tmp_path):
    judges = [{"name": LONG, "version": 1, "sha256": "0a" * 32}, {"name": LONG, "version": 1, "sha256": "1b" * 32}]
    for judge in (*judges, {"name": "vader", "version": "3.3.2", "direction": "positive"}):
        identity = fake.identity("toxicity", "quark", 0, scorers={"reward": {"name": "words"}, "judge": judge})
        fake.write_run(tmp_path, "quark", 0, manifest={"identity": identity}, id8=identity_hash(identity)[:8])
    said = sorted(heading.partition(": ")[2] for heading in Study(*find_runs([tmp_path])).headings)
    names = [f"scorers.judge {LONG} sha256 {digits}" for digits in ("0a0a0a0a", "1b1b1b1b")]
    assert said == [*names, "scorers.judge vader"]  # of another scorer its version and its options are not news


def test_a_file_that_was_edited_and_a_list_of_hashes_are_short_labels(tmp_path):
    edited = [{"name": "mine", "version": 1, "settings": {"lr": 1e-4}, "sha256": digit * 32} for digit in ("0a", "1b")]
    policies = [{"name": "eval", "version": 1, "policy": {"sha256": [digit * 32]}} for digit in ("2c", "3d")]
    for method in (*edited, *policies):
        identity = fake.identity("toxicity", "mine", 0, method=method)
        fake.write_run(tmp_path, str(method["name"]), 0, manifest={"identity": identity}, id8=identity_hash(identity)[:8])
    (group,) = Study(*find_runs([tmp_path])).groups
    names = ['eval (1: sha256=["2c2c2c2c"])', 'eval (2: sha256=["3d3d3d3d"])']
    assert [entry.name for entry in group.entries] == [
        *names, "mine (1: mine sha256 0a0a0a0a)", "mine (2: mine sha256 1b1b1b1b)"
    ]  # fmt: skip


def test_a_warning_says_which_of_several_sections_it_is_about(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    for task in ("toxicity", "sentiment"):
        fake.write_run(tmp_path, "quark", 0, task=task, status="failed")
    made = build(Study(*find_runs([tmp_path])), tmp_path / "page")
    heads = [state.partition(": ")[0] for state in made.unfinished]
    assert sorted(heads) == ["sentiment, preset micro", "toxicity, preset micro"]


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
    without_pictures(monkeypatch)
    made = build(Study(runs, problems), tmp_path / "page")
    for name in ("index.html", "report.md"):
        text = (tmp_path / "page" / name).read_text()
        assert "toxicity, preset micro" in text and "No verdict: no run is done" in text.replace("\\", "")
    assert made.exit_code == 4 and "quark, seed 0, is degraded" in made.unfinished[0]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([3], "seed 3, is"),
        ([0, 1], "seeds 0 and 1, are"),
        ([4, 2, 3], "seeds 2 to 4, are"),
        ([0, 2, 5], "seeds 0, 2, 5, are"),
        ([*range(0, 40, 2)], "seeds 0, 2, 4, 6, 8, 10, 12, 14 and 12 more, are"),
    ],
)
def test_seeds_of_one_state_are_named_together(seeds, said):
    assert _seeds(seeds) == said


def test_many_seeds_with_one_reason_are_one_line(tmp_path, monkeypatch):
    for seed in range(3):
        fake.write_run(tmp_path, "quark", seed, status="degraded" if seed else "done")
    runs, problems = find_runs([tmp_path])
    without_pictures(monkeypatch)
    (line,) = [s for s in build(Study(runs, problems), tmp_path / "page").unfinished if "degraded" in s]
    assert line.startswith("quark, seeds 1 and 2, are degraded: ")
