"""A study as four Parquet tables: every value as it was, read like a folder of records, and safe to read from a stranger."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fake_records as fake
import pyarrow
import pyarrow.parquet as parquet
import pytest

import harness as package
from harness.analysis.select import select
from harness.analysis.study import Study
from harness.cli import listing, records, status
from harness.core import files
from harness.core.errors import CorruptRecord, EmptySelection, Mismatch, UnknownName
from harness.core.hashing import canonical
from harness.records import archive, verify
from harness.records.archive import place_of
from harness.records.read import find_runs, holds_records, locate, prompt_scores, read_run, source_of
from harness.records.samples import Wanted, read
from harness.records.schema import Run
from harness.records.tables import encode as encoding
from harness.records.tables import layout
from harness.report.build import build

NAMES = ("runs", "evaluations", "prompts", "samples")


def write_prompts(dir: Path, kl: float = 0.25) -> None:
    scores = {
        "reward": [0.5, None, 1.0],
        "judge": [0.25, 0.5, None],
        "kl": [kl, 0.470001, 1e-7],
        "nll_per_token": [1.5, None, 2.25],
    }
    record = {"schema_version": 1, "split": "test", "id": ["a1", "b2", "c3"], "kind": ["calm", "heated", "calm"]}
    (dir / "prompts.json").write_text(json.dumps(record | scores | {"n_scored": [16, 15, 16]}))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of records with what can be odd in one: samples, scores of prompts, whole numbers, further keys, no result."""
    root = tmp_path_factory.mktemp("source") / "runs"
    for method in ("quark", "ppo"):
        for seed in range(2):
            dir = fake.write_run(root, method, seed)
            fake.write_samples(dir, method)
            write_prompts(dir)
    fake.write_run(root, "npo", 0, status="failed", manifest={"further": [1, 1.0, None, {"a.b": "\x00"}]})
    odd = {"kl": {"value": 1, "stderr": None, "n": 3, "further": 2.0}, "ppl": {"value": 5.0, "stderr": 0.5, "n": 3}}
    fake.write_run(root, "dpo", 0, final=odd, summary={"further": {"x": None}})
    other = fake.write_run(root, "dpo", 1, status="degraded", task="sentiment")
    write_prompts(other, kl=0.1234567891)
    return root


@pytest.fixture
def study(source, tmp_path) -> Path:
    archive.write_study([source], tmp_path / "study", samples=3)
    return tmp_path / "study"


def plain(run: Run) -> list[Any]:
    """The JSON parts of a record as plain data."""
    prompts = source_of(run).prompts()
    summary = run.summary.plain() if run.summary else None
    return [run.manifest.plain(), summary, [row.plain() for row in run.trajectory], prompts.plain() if prompts else None]


def rewritten(study: Path, name: str, change, metadata: bool = True) -> None:
    """Write a table of a study anew, changed."""
    table = parquet.read_table(study / f"{name}.parquet")
    found = change(table)
    parquet.write_table(found.replace_schema_metadata(table.schema.metadata if metadata else None), study / f"{name}.parquet")


def with_column(name: str, values) -> object:
    return lambda table: table.set_column(table.column_names.index(name), name, values(table[name].to_pylist()))


def problem(study: Path) -> str:
    """The only problem of a study that cannot be read, one line."""
    runs, problems = find_runs([study])
    assert not runs and len(problems) == 1 and problems[0].path == study
    assert "\n" not in problems[0].what
    return problems[0].what


def test_every_value_is_as_it_was(source, study):
    old, _ = find_runs([source])
    new, problems = find_runs([study])
    assert not problems and len(old) == len(new) == 7
    frontiers = [run.summary.frontier for run in new if run.summary and run.summary.frontier]
    assert len(set(map(id, frontiers))) == len({canonical(found.plain()) for found in frontiers})  # read once
    assert sorted(p.name for p in study.iterdir()) == sorted(f"{name}.parquet" for name in NAMES)
    for a, b in zip(old, new, strict=True):
        kept = {"archive": {"samples": 3 if (a.dir / "samples").exists() else 0}}
        assert canonical(b.manifest.plain()) == canonical(a.manifest.plain() | kept)
        assert canonical(plain(b)[1:]) == canonical(plain(a)[1:])
        assert list(plain(b)[1] or {}) == list(plain(a)[1] or {})
        assert prompt_scores(b) == prompt_scores(a)
        assert b.dir == study / place_of(a) and not b.dir.exists()
    (quark,) = [run for run in new if run.dir.match("quark/*-s0")]
    first = {row["prompt_id"]: row for row in reversed(read(find_runs([source / "micro/toxicity/quark"])[0][0]))}
    assert [row == {k: first[row["prompt_id"]][k] for k in row} for row in read(quark)] == [True] * 3


def test_scores_of_six_digits_take_four_bytes_and_others_eight(source, tmp_path):
    archive.write_study([source / "micro/toxicity"], tmp_path / "short")
    archive.write_study([source], tmp_path / "long")
    kinds = [parquet.read_schema(tmp_path / name / "prompts.parquet").field("kl").type for name in ("short", "long")]
    assert kinds == [pyarrow.float32(), pyarrow.float64()]


def test_the_report_is_the_same(undrawn, source, study, tmp_path):
    before = find_runs([source / "micro/toxicity/quark", source / "micro/toxicity/ppo"])
    build(Study(*before), tmp_path / "page-a")
    archive.write_study([source], tmp_path / "b" / "runs", samples=8)
    build(Study(*find_runs([tmp_path / "b/runs/micro/toxicity" / name for name in ("quark", "ppo")])), tmp_path / "page-b")
    pages = [{p.name: p.read_bytes() for p in (tmp_path / page).rglob("*.*")} for page in ("page-a", "page-b")]
    assert pages[0].keys() == pages[1].keys()
    assert not [name for name in pages[0] if pages[0][name] != pages[1][name] and name != "index.html"]


def test_names_within_a_study_select_as_folders_do(study, tmp_path):
    run = study / "micro/toxicity/quark/5e5e5e5e-s1"
    assert locate(str(run), tmp_path).dir == read_run(run).dir == run
    assert locate("5e5e5e5e-s1", study / "micro/sentiment").manifest.task == "sentiment"
    assert len(listing.runs(study / "micro/sentiment")) == 1
    assert len(find_runs([study / "micro/toxicity"])[0]) == 6 and len(find_runs([run, run, run.parent])[0]) == 2
    assert holds_records(str(run)) and not holds_records(str(study / "micro/nothing"))
    assert [side.seeds for side in select([str(run.parent), "ppo"], study)] == [[0, 1], [0, 1]]
    with pytest.raises(CorruptRecord, match="has no record of that name"):
        read_run(study / "micro/toxicity/quark")
    runs, problems = find_runs([study / "micro/nothing"])
    assert not runs and "has no record of that name" in problems[0].what
    with pytest.raises(UnknownName):
        locate("quark", study)


def test_every_command_reads_a_study(study, capsys):
    assert len(package.load(study)) == 7
    with pytest.warns(UserWarning, match="no samples"):
        assert len(package.load_samples(study)) == 12
    assert len(listing.runs(study)) == 7 and status.status([study]).cells
    assert listing.find_run(str(study / "micro/toxicity/ppo/5e5e5e5e-s0"), study)["method"] == "ppo"
    records.samples_command(str(study / "micro/toxicity/ppo/5e5e5e5e-s0"), study, "final", Wanted(n=2), False, True)
    assert records.compare_command("quark:task=toxicity", str(study / "micro/toxicity/ppo"), [], [], study, False) in (0, 4)
    capsys.readouterr()
    with pytest.raises(Mismatch):  # the identities of these records were made up
        records.verify_command([str(study / "micro/toxicity")], study, False, False, False)
    assert capsys.readouterr().out.count("checks held") == 6


def test_two_studies_do_not_collide_and_one_below_records_is_left_out(source, study, tmp_path):
    shutil.copytree(study, tmp_path / "another")
    runs, problems = find_runs([study, tmp_path / "another"])
    assert len({run.dir for run in runs}) == 14 and len(problems) == 7 and "a second record" in problems[0].what
    fake.write_run(tmp_path / "study/more", "quark", 5)
    assert len(find_runs([study])[0]) == 8  # what lies beside the tables is read too
    assert find_runs([tmp_path])[0] == []


def test_the_same_command_again_adds_what_is_missing(source, study, tmp_path):
    before = {p.name: p.read_bytes() for p in study.iterdir()}
    again = archive.write_study([source], study)  # without samples: those that were kept stay
    assert len(again.unchanged) == 7 and {p.name: p.read_bytes() for p in study.iterdir()} == before
    fake.write_run(tmp_path / "more", "quark", 2)
    fake.write_run(tmp_path / "more", "quark", 0, manifest={"further": 1})
    done = archive.write_study([tmp_path / "more"], study)
    assert [p.name for p in done.added] == ["5e5e5e5e-s2"] and [p.name for p in done.updated] == ["5e5e5e5e-s0"]
    assert len(find_runs([study])[0]) == 8
    folders = archive.archive([study], tmp_path / "folders")
    assert len(folders.added) == 8
    assert len(archive.write_study([tmp_path / "folders"], study).unchanged) == 8


def test_what_no_table_holds_is_left_out(source, tmp_path):
    fake.write_run(tmp_path / "odd", "quark", 2**70)
    with pytest.raises(EmptySelection, match="to keep"):
        archive.write_study([tmp_path / "nothing"], tmp_path / "study")
    fake.write_run(tmp_path / "odd", "quark", 1)
    done = archive.write_study([tmp_path / "odd"], tmp_path / "study")
    assert len(done.added) == 1 and "no table holds it" in done.problems[0].what
    (tmp_path / "study/runs.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptRecord, match="choose another study"):
        archive.write_study([source], tmp_path / "study")


def test_the_records_of_a_study_are_verified(study):
    run = read_run(study / "micro/toxicity/quark/5e5e5e5e-s0")
    files = {name: verify._hash(run, name) for name in ("summary.json", "trajectory.jsonl", "prompts.json")}
    more = {"samples/final.parquet": "0" * 64, "policy/x": "0"}
    sound = run._replace(manifest=run.manifest.model_copy(update={"files": files | more}))
    checks = {check.what: check.held for check in verify._files(sound)}
    assert {name: checks[name] for name in files} == dict.fromkeys(files, True)
    assert checks["samples/final.parquet"] is None and checks["policy/x"] is None


@pytest.mark.parametrize("name", NAMES)
def test_a_table_that_is_cut_off_gone_or_leads_out_is_named(name, study, tmp_path):
    path = study / f"{name}.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{name}.parquet cannot be read" in problem(study) and "copy the study again" in problem(study)
    os.replace(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the record" in problem(study)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in problem(study)
    path.rmdir()
    if name != "runs":
        assert f"{name}.parquet is missing" in problem(study)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_another_study_or_with_other_columns_is_refused(name, study):
    path = study / f"{name}.parquet"
    whole = path.read_bytes()
    column = layout.COLUMNS[name][-1].name
    for change, words in (
        (lambda t: t.drop_columns([column]), f"has no column '{column}'"),
        (lambda t: t.set_column(0, "run", pyarrow.array(["x"] * len(t))), "in column 'run', expected int"),
        (lambda t: t.set_column(0, "run", pyarrow.array([None] * len(t), pyarrow.int64())), "rows without 'run'"),
        (lambda t: t.set_column(0, "run", pyarrow.array([99] * len(t))), "number its rows|rows of unknown run 99"),
    ):
        rewritten(study, name, change)
        assert any(word in problem(study) for word in words.split("|"))
        path.write_bytes(whole)
    rewritten(study, name, lambda table: table, metadata=False)
    assert "are of different studies" in problem(study)
    path.write_bytes(whole)
    rewritten(study, name, lambda table: table.append_column("more", [[["a", "b"]] * len(table)]))  # of a later version
    assert len(find_runs([study])[0]) == 7


def test_numbers_that_are_not_finite_and_text_that_is_none_are_refused(study):
    whole = (study / "evaluations.parquet").read_bytes()
    rewritten(study, "evaluations", with_column("value", lambda v: pyarrow.array([float("inf"), *v[1:]])))
    assert "not finite in column 'value'" in problem(study)
    (study / "evaluations.parquet").write_bytes(whole)

    def not_utf8(values: list[str]) -> pyarrow.Array:
        raw = pyarrow.array([b"\xff", *(v.encode() for v in values[1:])])
        return pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())

    rewritten(study, "samples", with_column("response", not_utf8))
    assert "cannot be read" in problem(study)


def test_a_table_that_unpacks_to_too_much_is_refused(study, monkeypatch):
    monkeypatch.setattr(layout, "ROWS", 10)
    assert "rows; expected at most 10 in a record" in problem(study)
    monkeypatch.undo()
    rewritten(study, "samples", with_column("response", lambda v: pyarrow.array(["x" * 1000] * len(v))))
    monkeypatch.setattr(files, "TABLE_BYTES", 10_000 + (study / "runs.parquet").stat().st_size)
    assert "bytes of text" in problem(study)


@pytest.mark.parametrize(
    "column, text, words",
    [
        ("manifest", "{", "is not strict JSON"),
        ("manifest", "[1]", "is not a JSON object"),
        ("manifest", "{}", "no schema_version"),
        ("manifest", '{"schema_version": 99}', "install a newer one"),
        ("identity", '{"a": NaN}', "NaN is not a JSON number"),
        ("identity", "[" * 70 + "]" * 70, "nested more than 64 levels deep"),
        ("status", "lost", "manifest.json is not a record: status"),
        ("summary", None, "summary.json is missing"),
        ("summary", '{"schema_version": 1, "run_id": "5e5e5e5e-s0"}', "summary.json is not a record"),
        ("base_point", None, "summary.json is not a record: base"),
        ("frontier", "{}", "the frontier of summary.json is not a record: base_reward"),
    ],
)
def test_one_broken_record_of_a_study_is_named_and_the_others_are_read(column, text, words, study):
    table = parquet.read_table(study / "runs.parquet").to_pydict()
    at = list(zip(table["method"], table["seed"], strict=True)).index(("quark", 0))
    rewritten(study, "runs", with_column(column, lambda v: pyarrow.array([*v[:at], text, *v[at + 1 :]])))
    runs, problems = find_runs([study])
    assert len(runs) == 6
    assert [(p.path.name, words in p.what) for p in problems] == [("5e5e5e5e-s0", True)], problems


def test_names_in_a_study_stay_inside_it(study, tmp_path):
    for column, name in (("preset", ".."), ("task", "/etc"), ("run_id", "../../..")):
        rewritten(study, "runs", with_column(column, lambda v, name=name: pyarrow.array([name, *v[1:]])))
    runs, problems = find_runs([study])
    paths = [*(run.dir for run in runs), *(p.path for p in problems)]
    assert all(path.is_relative_to(study) and ".." not in path.parts for path in paths) and len(runs) == 6


def test_a_record_that_a_study_has_twice_is_shown_once(study):
    nothing = [None] * 7
    for column, values in (("seed", [0] * 7), ("run_id", ["5e5e5e5e"] * 7), ("status", ["failed"] * 7), ("summary", nothing)):
        array = pyarrow.array(values, pyarrow.string()) if values is nothing else pyarrow.array(values)
        rewritten(study, "runs", with_column(column, lambda v, array=array: array))
    runs, problems = find_runs([study])
    assert sum("has this record twice" in p.what for p in problems) == 2 and len(runs) == 5


def test_a_value_that_columns_change_is_kept_as_text():
    exact = {"value": 0.5, "stderr": None, "n": 3, "n_unscored": 0}
    assert encoding._metric(exact) == exact and "exact" not in encoding._metric({"value": None, "stderr": None, "n": 0})
    for odd in ({**exact, "value": 1}, {**exact, "reason": None}, {**exact, "more": 1}, {"value": 1.0}, {**exact, "n": True}):
        assert list(encoding._metric(odd)) == ["exact"]
    assert encoding._six_digits(0.470001) and not encoding._six_digits(0.1234567) and not encoding._six_digits(1e300)


def test_an_archive_of_the_old_layout_is_read_and_verified_as_before(tmp_path):
    old = Path(__file__).parents[1] / "fixtures" / "old_archive"
    runs, problems = find_runs([old])
    assert len(runs) == 2 and not problems
    archive.write_study([old], tmp_path / "study", samples=8)
    again, _ = find_runs([tmp_path / "study"])
    for a, b in zip(runs, again, strict=True):
        checks = [[tuple(check) for check in verify.verify(run)] for run in (a, b)]
        assert not [c for c in checks[0] if c[1] is False] and checks[1] == checks[0]
        assert canonical(plain(a)) == canonical(plain(b))
        assert read(a, "base") == read(b, "base") and read(a) == read(b)
    build(Study(runs), tmp_path / "page")
    assert (tmp_path / "page/report.md").exists()
