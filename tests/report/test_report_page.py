"""The page of a report and its files: whole, the same each time, safe to open, and honest about what is wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fake_records as fake
import pytest
from fake_reports import HOSTILE, Page, contents, only_group, report, rows_of

from harness.analysis.study import Study
from harness.cli.records import report_command
from harness.core.errors import EmptySelection, Unwritable
from harness.methods import METHODS
from harness.records.read import find_runs
from harness.records.schema import Problem
from harness.report.browser import samples, text
from harness.report.build import build
from harness.report.cards import method_cards, task_card
from harness.report.figures.pareto import pareto

UNDRAWN = pytest.mark.usefixtures("undrawn")


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
        changed = {**nasty, "error": error, "identity": {"model": HOSTILE, HOSTILE: 1}, "provenance": {"device": HOSTILE}}
        fake.write_run(root, "_hidden", i, status=status, final=final, manifest=changed, summary=nasty)
    runs, problems = find_runs([root])
    assert len(runs) == 2
    build(Study(runs, [*problems, Problem(root / HOSTILE.replace("/", ""), HOSTILE)]), tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "{{ 7*7 }}" in page
    parsed = Page(page)
    assert parsed.tags.count("script") == 1 and page.count("</style>") == 1 and "alert(1)</script>" not in page
    assert "<script" not in (tmp_path / "out/report.md").read_text()
    for svg in (tmp_path / "out/figures").glob("*.svg"):
        assert "{http://www.w3.org/2000/svg}script" not in {e.tag for e in ElementTree.parse(svg).iter()}


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


@pytest.mark.parametrize("tasks", [1, pytest.param(3, marks=pytest.mark.long)])
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
        build(Study([]), tmp_path)
    with pytest.raises(EmptySelection, match="1 could not be read, first"):
        build(Study([], [Problem(tmp_path, "broken")]), tmp_path)
    with pytest.raises(EmptySelection, match="at least one run"):
        pareto([])


@UNDRAWN
def test_a_folder_that_takes_no_files_is_said(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(Unwritable, match="choose another folder"):
        report(tmp_path / "r", tmp_path / "out")


def test_a_report_imports_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    fake.write_run(tmp_path / "r", "quark", 0)
    program = """
import sys
from pathlib import Path
import harness.report
assert "matplotlib" not in sys.modules
from harness.records.read import find_runs
from harness.analysis.study import Study
from harness.report.build import build
build(Study(*find_runs([Path(sys.argv[1])])), Path(sys.argv[2]))
print([name for name in ("torch", "pandas", "matplotlib.pyplot") if name in sys.modules])
"""
    args = [sys.executable, "-c", program, str(tmp_path / "r"), str(tmp_path / "out")]
    assert subprocess.run(args, check=True, capture_output=True, text=True).stdout == "[]\n"
