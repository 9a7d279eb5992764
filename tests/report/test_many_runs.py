"""Reports of more runs, methods and groups than a page can show: it says what it leaves out, and the tables have all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import fake_records as fake
import pytest
from fake_reports import report, rows_of

from harness.analysis import groups, study
from harness.analysis.study import read_study
from harness.core.errors import CannotWrite
from harness.report import build, tables

pytestmark = pytest.mark.usefixtures("undrawn")


def page(root: Path, out: Path) -> str:
    build.build(read_study([root]), out)
    return (out / "index.html").read_text()


def choices(root: Path, method: str, rewards: list[float]) -> None:
    """One run for each choice of settings of a method, with another judge score."""
    for i, judge in enumerate(rewards):
        settings = {"name": method, "version": fake.VERSIONS.get(method, 1), "settings": {"lr": i / 10}}
        more = {"identity": fake.identity("toxicity", method, 0, method=settings)}
        fake.write_run(root, method, 0, manifest=more, final={"judge": fake.point(judge, 0.01)}, id8=f"{i:08x}")


def test_of_many_runs_the_first_seeds_are_drawn_and_the_means_are_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("quark", "ppo"):
        for seed in range(5):
            fake.write_run(tmp_path / "r", method, seed)
    whole = page(tmp_path / "r", tmp_path / "whole")
    assert "runs: of each method those of the lowest seeds" not in whole and "counts the seeds in each state" not in whole
    monkeypatch.setattr(study, "MOST_DRAWN", 6)
    monkeypatch.setattr(tables, "MOST_COLUMNS", 4)
    monkeypatch.setattr("harness.report.sections.MOST_COLUMNS", 4)
    for name, most in (("MOST_NAMED", 9), ("MOST_RECORDS", 9), ("MOST_LISTED", 1)):
        monkeypatch.setattr(build, name, most)
    part = page(tmp_path / "r", tmp_path / "part")
    assert "lists, 6 of 10 runs: of each method those of the lowest seeds" in part and "counts the seeds in each state" in part
    assert "6 records of 10, of each method those of the lowest seeds" in part and "if these folders hold no others" in part
    assert "1 more; <code>tables/cells.csv</code>" in part and part.count("stale<br><small>(seeds)") == 1
    data = [json.loads((tmp_path / of / "figures/data-micro-toxicity.json").read_text()) for of in ("whole", "part")]
    for one, two in zip(data[0]["methods"], data[1]["methods"], strict=True):
        assert two["runs"] == one["runs"][:3] and two["runs_left_out"] == 2 and two["mean"] == one["mean"]
    for name in ("methods", "runs", "cells", "optimum-micro-toxicity"):
        assert rows_of(tmp_path / f"whole/tables/{name}.csv") == rows_of(tmp_path / f"part/tables/{name}.csv")
    assert "4 more; of each method those of the lowest seeds are above" in (tmp_path / "part/report.md").read_text()


def test_of_many_choices_of_settings_the_best_of_each_method_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices(tmp_path / "r", "quark", [0.80, 0.95, 0.90])
    choices(tmp_path / "r", "ppo", [0.75, 0.72])
    monkeypatch.setattr(study, "MOST_METHODS", 3)
    found = read_study([tmp_path / "r"])
    assert [entry.name[:8] for entry in found.shown[0].entries] == ["ppo (1: ", "quark (2", "quark (3"]
    assert len(found.groups[0].entries) == 5 and found.shown[0].first(3) is found.shown[0]
    text = page(tmp_path / "r", tmp_path / "out")
    assert "This section has 3 of 5 choices of settings: of each method the best first" in text
    assert len(rows_of(tmp_path / "out/tables/methods.csv")) == 5 and len(rows_of(tmp_path / "out/tables/runs.csv")) == 5


def test_of_many_groups_those_without_a_section_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, task in enumerate(("toxicity", "sentiment", "repetition")):
        for seed in range(3 - i):
            fake.write_run(tmp_path / "r", "quark", seed, task=task)
    monkeypatch.setattr(study, "MOST_GROUPS", 2)
    text = page(tmp_path / "r", tmp_path / "out")
    assert "Of 3 groups the 2 with the most runs have a section" in text
    assert "<li>repetition, preset micro: 1 run</li>" in text and 'id="micro-repetition"' not in text
    assert {row["task"] for row in rows_of(tmp_path / "out/tables/methods.csv")} == {"toxicity", "sentiment", "repetition"}
    assert "repetition, preset micro: quark, seed 0, is stale" in text  # its cells count all the same


def test_many_problems_are_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    for seed in (1, 2, 3):
        (fake.write_run(tmp_path / "r", "quark", seed) / "summary.json").write_text("{")
    monkeypatch.setattr(build, "MOST_LISTED", 2)
    text = page(tmp_path / "r", tmp_path / "out")
    assert "3 problems with its records" in text and "1 more are in <code>tables/problems.csv</code>" in text
    assert len(rows_of(tmp_path / "out/tables/problems.csv")) == 3
    assert tables.listed(["a"] * (tables.MOST_LISTED + 2))[-1] == "and 2 more"


def test_equal_frontiers_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        fake.write_run(tmp_path / "r", "quark", seed)
    other = fake.frontier() | {"base_reward": 0.5}
    fake.write_run(tmp_path / "r", "ppo", 0, summary={"frontier": other})
    asked = []
    same = groups._one_frontier
    monkeypatch.setattr(groups, "_one_frontier", lambda a, b: asked.append(b) or same(a, b))
    assert [len(group.runs) for group in read_study([tmp_path / "r"]).groups] == [4, 1] and len(asked) == 1


def test_a_full_disk_is_a_failed_write_and_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWrite, match="No space left on device") as found:
        report(tmp_path / "r", tmp_path / "out")
    assert found.value.exit_code == 1 and not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
