"""A study computes each number once, whoever asks for it."""

import sys
from collections import Counter
from functools import wraps
from pathlib import Path

import fake_records as fake
import pytest

from harness.analysis import cells, groups, ranking, scalars, select
from harness.analysis.columns import BY_KEY, COLLAPSE, COLUMNS, JUDGE, SCORER_CALLS
from harness.analysis.study import Study, read_study
from harness.records import read
from harness.report import build, sections
from harness.report.figures.data import figure_data


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """The number of calls of each computation of a study by its arguments, from every module that has its name."""
    counted: Counter = Counter()
    for function, argument in {
        groups.groups: lambda *_: None, groups.headings: lambda *_: None, cells.cells: lambda *_: None,
        groups.world: id, ranking.above_frontier: id,
        ranking.ranking: lambda sound, test=None: tuple(id(entry) for entry, _ in sound),
        scalars.traces: id, groups.estimate: lambda entry, of, key="", prompts=None: (id(entry), key or of.__code__),
        read.find_runs: lambda dirs, **kept: tuple(dirs),
    }.items():  # fmt: skip

        @wraps(function)
        def counting(*args, function=function, argument=argument, **more):
            counted[function.__name__, argument(*args, **more)] += 1
            return function(*args, **more)

        for name, module in list(sys.modules.items()):
            if name.startswith("harness.") and getattr(module, function.__name__, None) is function:
                monkeypatch.setattr(module, function.__name__, counting)
    return counted


def test_a_report_computes_each_number_once(tmp_path: Path, calls: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_study(tmp_path / "records")
    fake.write_run(tmp_path / "records", "quark", 0, task="repetition")
    drawn = {
        name: sections.sheets.Sheet(b"<svg></svg>", ["<svg></svg>"], b"")
        for name in ("pareto", "fluency", "compute", "overoptimisation")
    }
    monkeypatch.setattr(build, "pictures", lambda group, slug: (drawn, figure_data(group), scalars.traces(group)[1]))
    study = read_study([tmp_path / "records"])
    build.build(study, tmp_path / "page")
    for group in study.groups:
        for column in (*sections.OPTIMUM, *COLLAPSE, *group.kinds):
            sections._dots(group, column)  # what the dot plots show
    assert len(study.groups) == 2 and set(calls.values()) == {1}, calls.most_common(5)
    names = Counter(name for name, _ in calls)
    assert names["groups"] == names["headings"] == names["cells"] == names["find_runs"] == 1
    assert names["ranking"] == names["world"] == names["traces"] == 2 and names["above_frontier"] == len(study.runs)
    assert names["estimate"] >= sum(len(group.entries) for group in study.groups) * len(COLUMNS)


def test_a_comparison_reads_the_records_once(tmp_path: Path, calls: Counter) -> None:
    for method in ("quark", "ppo"):
        fake.write_run(tmp_path, method, 0)
    a, b = select.select(["quark", "ppo"], tmp_path)
    assert (a.seeds, b.seeds) == ([0], [0]) and calls["find_runs", (tmp_path,)] == 1


def test_a_column_key_stands_for_one_column() -> None:
    for column in (*COLUMNS, *COLLAPSE, *sections.OPTIMUM, JUDGE, SCORER_CALLS):
        known = BY_KEY.get(column.key, column)
        assert known is column or (known.title, known.unit, known.digits) == (column.title, column.unit, column.digits)


def test_a_study_says_which_records_are_stale_and_whose_process_is_gone(tmp_path: Path) -> None:
    running = fake.write_run(tmp_path, "quark", 0, status="running")
    study = read_study([tmp_path])
    assert study.dead == {running} and [cell.state for cell in study.cells] == ["stale"] and running in study.outdated
    assert Study(study.runs, dead={running}).cells[0].state == "partial"
