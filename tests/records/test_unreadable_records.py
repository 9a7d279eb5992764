"""Records with pipes, devices, links, bombs and closed folders in them: each is named, none holds a command up."""

import json
import os
import signal
from pathlib import Path

import fake_records as fake
import pyarrow
import pyarrow.parquet
import pytest

import harness as package
from harness.analysis.groups import groups
from harness.cli import records
from harness.core import files
from harness.core.errors import CorruptRecord, Mismatch, MissingPrerequisite
from harness.core.files import held
from harness.records import read as reading
from harness.records import verify
from harness.records.dedup import digest, file_name
from harness.records.read import find_runs, read_run
from harness.records.samples import read
from harness.report import browser


@pytest.fixture(autouse=True)
def alarm():
    """An end for whatever waits on a pipe for ever."""

    def stop(number, frame):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """A record to spoil, and a sound one."""
    out = tmp_path / "out"
    dirs = fake.write_run(out, "quark", 0), fake.write_run(out, "ppo", 0)
    for dir in dirs:
        fake.write_samples(dir, dir.parent.name)
    return dirs


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, files.WEIGHTS_BYTES + 1)


ODD = {
    "pipe": (pipe, "it is not a regular file"),
    "device": (device, "leads out of the record"),
    "sparse": (sparse, "bytes; expected at most"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "trajectory.jsonl"])
def test_a_file_of_a_record_that_is_none_makes_a_problem_and_never_waits(name, odd, two):
    spoil, words = ODD[odd]
    spoil(two[0] / name)
    with pytest.raises(CorruptRecord, match=words):
        read_run(two[0])
    runs, problems = find_runs([two[0].parents[3]])
    assert [run.dir for run in runs] == [two[1]] and [p.path for p in problems] == [two[0]] and words in problems[0].what


@pytest.mark.parametrize("odd", ODD)
def test_scores_and_samples_that_are_no_files(odd, two):
    spoil, words = ODD[odd]
    spoil(two[0] / "prompts.json")
    spoil(two[0] / "samples" / "final.parquet")
    with pytest.raises(CorruptRecord, match=words):
        reading.prompt_scores(two[0])
    with pytest.raises(CorruptRecord, match=words):
        read(read_run(two[0]))


@pytest.mark.parametrize("spoil", [pipe, device])
def test_a_lock_that_is_none_holds_nobody_up(spoil, two):
    spoil(two[0] / ".lock")
    assert held(two[0]) is False


VERBS = (
    "list runs --out OUT", "status OUT", "show run RUN", "verify RUN", "samples RUN",
    "compare RUN SOUND", "compare quark ppo --out OUT",
)  # fmt: skip


@pytest.mark.parametrize("words", VERBS)
def test_every_verb_says_in_a_line_that_a_record_is_a_pipe(words, two, tmp_path, harness):
    pipe(two[0] / "manifest.json")
    places = {"RUN": two[0], "SOUND": two[1], "OUT": tmp_path / "out"}
    code, out, err = harness(*(places.get(word, word) for word in words.split()))
    assert code in (0, 1, 2, 4, 5) and len(err.splitlines()) <= 3
    assert "not a regular file" in out + err or (words.startswith("list") and "unreadable" in out)


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "../../../../x", "../ppo", "samples/../../x", "", ".", "samples", "a\0b", "gone", "link", "pipe", "sparse"],
)
def test_a_list_of_files_that_leads_anywhere_else_is_a_mismatch(name, two, tmp_path):
    (tmp_path / "x").write_text("x")
    device(two[0] / "link")
    pipe(two[0] / "pipe")
    sparse(two[0] / "sparse")
    manifest = json.loads((two[0] / "manifest.json").read_text())
    fake.dump(two[0] / "manifest.json", manifest | {"files": {name: "00" * 32}})
    checks = {check.what: check for check in verify.verify(read_run(two[0]))}
    assert checks[name].held is False
    with pytest.raises(Mismatch):
        records.verify_command([str(two[0])], tmp_path, False, False, False)


def test_a_small_table_that_unpacks_to_many_texts_is_refused_before_it_does(two):
    path = two[0] / "samples" / "final.parquet"
    text = "x" * 2**20
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300, pyarrow.int32()), pyarrow.array([text]))
    pyarrow.parquet.write_table(pyarrow.table({"response": column}), path)
    assert path.stat().st_size < 2**21
    with pytest.raises(CorruptRecord, match="unpacks to 314572800 bytes of text"):
        read(read_run(two[0]))


@pytest.mark.parametrize("limit", ["ROWS", "VALUES", "UNPACKED_BYTES"])
def test_a_footer_that_says_too_much_is_refused(limit, two, monkeypatch):
    monkeypatch.setattr(files, limit, 11)
    with pytest.raises(CorruptRecord, match=r"unpacks to .* at most"):
        read(read_run(two[0]))


def test_a_table_that_is_none_is_refused(two):
    (two[0] / "samples" / "final.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptRecord, match="cannot be read"):
        read(read_run(two[0]))
    (two[0] / "samples" / "final.parquet").unlink()
    with pytest.raises(MissingPrerequisite, match="it has base"):
        read(read_run(two[0]))


def test_values_within_values_without_end_are_refused(two):
    deep = json.loads("[" * 80 + "]" * 80)
    manifest = json.loads((two[0] / "manifest.json").read_text())
    fake.dump(two[0] / "manifest.json", manifest | {"note": deep})
    with pytest.raises(CorruptRecord, match="nested more than 64 levels deep"):
        read_run(two[0])


def test_references_that_stand_for_more_than_a_record_can_hold_are_refused(two):
    value = "x" * 2**20
    shared = two[0].parents[3] / file_name(digest(value))
    shared.parent.mkdir()
    shared.write_text(json.dumps(value))
    manifest = json.loads((two[0] / "manifest.json").read_text())
    fake.dump(two[0] / "manifest.json", manifest | {"note": [{"shared": digest(value)}] * 10})
    assert read_run(two[0]).manifest.note == [value] * 10
    fake.dump(two[0] / "manifest.json", manifest | {"note": [{"shared": digest(value)}] * 100})
    with pytest.raises(CorruptRecord, match="stand for more than"):
        read_run(two[0])
    pipe(shared)
    with pytest.raises(CorruptRecord, match="is missing"):
        read_run(two[0])


@pytest.fixture
def closed(two, monkeypatch) -> Path:
    """`samples` of the first record may not be searched. The tests may run as root, who may search anything: so by hand."""
    folder = str(two[0] / "samples")
    stat, scandir = os.stat, os.scandir

    def refuse(path) -> None:
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(folder):
            inner = str(path) != folder
            if inner or refuse.lists:
                raise PermissionError(13, "Permission denied", str(path))

    refuse.lists = False
    monkeypatch.setattr(os, "stat", lambda path, **more: (refuse(path), stat(path, **more))[1])

    def listed(path="."):
        refuse.lists = True
        refuse(path)
        refuse.lists = False
        return scandir(path)

    def once(path="."):
        try:
            return listed(path)
        finally:
            refuse.lists = False

    monkeypatch.setattr(os, "scandir", once)
    return two[0]


@pytest.mark.parametrize("words", VERBS)
def test_a_folder_of_samples_that_may_not_be_searched_is_named_and_the_others_are_shown(words, closed, two, tmp_path, harness):
    places = {"RUN": two[0], "SOUND": two[1], "OUT": tmp_path / "out"}
    code, out, err = harness(*(places.get(word, word) for word in words.split()))
    assert "Traceback" not in err
    if words.startswith("samples"):
        assert code == 1 and f"{two[0]}: samples/final.parquet cannot be read: Permission denied" in err
    elif words.startswith("verify"):
        assert code == 5 and "samples/final.parquet cannot be read: Permission denied" in out
    elif not words.startswith("show"):
        assert "ppo" in out and str(two[0]) in out + err and code in (0, 4)


def test_a_report_names_a_folder_that_may_not_be_searched_and_shows_the_other(closed, two, tmp_path):
    runs, problems = find_runs([tmp_path / "out"])
    shown, more = browser.samples(groups(runs)[0])
    assert [problem.path for problem in problems] == [two[0]] and "samples cannot be read" in problems[0].what
    assert {row["name"] for row in shown["rows"]} == {"base (untrained)", "ppo"}
    assert {problem.path for problem in more} == {two[0]} and "Permission denied" in more[0].what


def test_verify_looks_at_the_others_where_one_cannot_be_read(two, harness):
    pipe(two[0] / "manifest.json")
    code, out, err = harness("verify", two[0], two[1])
    assert code == 5 and "it is not a regular file" in out and f"{two[1]}: " in out and len(err.splitlines()) == 1


def test_frames_name_a_folder_that_may_not_be_searched(closed, two, tmp_path):
    with pytest.warns(UserWarning, match="problems with records"):
        frame = package.load_samples(tmp_path / "out")
    assert set(frame["method"]) == {"ppo"} and any("Permission denied" in problem for problem in frame.attrs["problems"])


def test_records_below_a_linked_folder_are_found_once_and_links_in_a_circle_end(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    made = fake.write_run(elsewhere, "quark", 0)
    plain = fake.write_run(out / "plain", "ppo", 0, id8="11111111")
    (out / "micro").symlink_to(elsewhere / "micro")
    (elsewhere / "micro" / "round").symlink_to(elsewhere / "micro")
    (out / "again").symlink_to(elsewhere / "micro")
    (out / "up").symlink_to(tmp_path)
    (out / "all").symlink_to("/")
    (made / "inner").symlink_to(elsewhere / "micro")
    fake.write_run(tmp_path / "other", "npo", 0, id8="22222222")
    (plain / "more").symlink_to(tmp_path / "other" / "micro")  # a record has no other within it
    runs, problems = find_runs([out])
    assert sorted(run.manifest.method for run in runs) == ["ppo", "quark"] and not problems


@pytest.mark.parametrize("words", ["list runs --out OUT", "status OUT"])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_what_is_written_through_a_link_is_seen(words, level, tmp_path, harness):
    dir = fake.write_run(tmp_path / "elsewhere", "quark", 0)
    target = dir.parents[4 - level - 1] if level < 4 else dir
    link = tmp_path / "out" / target.relative_to(tmp_path / "elsewhere")
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    code, out, err = harness(*({"OUT": tmp_path / "out"}.get(w, w) for w in words.split()))
    assert code in (0, 4) and "quark" in out and "error" not in err
