"""Samples in the terminal: the right ones, in the right order, hidden, and without power over the terminal."""

import json
import subprocess
import sys

import fake_records as fake
import pandas as pd
import pytest

from harness.cli import listing
from harness.cli.records import samples_command, text
from harness.core import text as masking
from harness.core.errors import CorruptRecord, EmptySelection, MissingPrerequisite, UnknownName, UsageError
from harness.records import read as records_read
from harness.records.read import read_run
from harness.records.samples import Wanted, choose, read

HOSTILE = "\x1b[2Jcleared\x07 \u202egnp.exe\r\n\tand \ud800 more"
ROWS = [
    {"prompt_id": i // 2, "kind": "calm" if i < 4 else "heated", "prompt": f"Prompt {i // 2}?", "response": f"Reply {i}.",
     "reward": reward, "judge": judge, "kl": kl, "tokens": [1, 2]}
    for i, (reward, judge, kl) in enumerate(
        [(0.9, 0.5, 0.1), (0.8, None, 0.7), (0.1, 0.2, 0.3), (0.5, 0.9, 0.2), (0.6, 0.0, 0.9), (0.7, 1.0, 0.0)]
    )
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    dir = fake.write_run(tmp_path, "quark", 0)
    (dir / "samples").mkdir()
    pd.DataFrame(ROWS).to_parquet(dir / "samples" / "final.parquet")
    return dir


def replies(rows) -> list[int]:
    return [int(row["response"].split()[1][:-1]) for row in rows]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(3, worst=True), [4, 2, 0]),  # by the judge, lowest first
        (Wanted(3, best=True), [5, 3, 0]),
        (Wanted(9, best=True), [5, 3, 0, 2, 4, 1]),  # what was not judged is last in both orders
        (Wanted(9, worst=True), [4, 2, 0, 3, 5, 1]),
        (Wanted(2, sort="reward"), [2, 3]),
        (Wanted(2, sort="reward", best=True), [0, 1]),
        (Wanted(2, sort="kl"), [4, 1]),  # far from the base is worse
        (Wanted(2, sort="kl", best=True), [5, 0]),
        (Wanted(9, kind="heated"), [4, 5]),
        (Wanted(9, prompt="pROMPT 1"), [2, 3]),
        (Wanted(9, search="reply 3"), [3]),
        (Wanted(9), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_ones_that_are_asked_for(run, wanted, expected):
    assert replies(choose(read(read_run(run)), wanted)) == expected


def test_a_draw_is_that_of_its_seed(run):
    rows = read(read_run(run))
    drawn = [replies(choose(rows, Wanted(2, seed=seed))) for seed in range(40)]
    assert drawn == [replies(choose(rows, Wanted(2, seed=seed))) for seed in range(40)]
    assert {i for pair in drawn for i in pair} == set(range(6)) and all(a < b for a, b in drawn)


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (Wanted(best=True, worst=True), UsageError, "exclude each other"),
        (Wanted(kind="heatd"), UnknownName, "did you mean 'heated'"),
        (Wanted(sort="juge"), UnknownName, "did you mean 'judge'"),
        (Wanted(sort="nll"), MissingPrerequisite, "older than this score"),
        (Wanted(search="nowhere"), EmptySelection, "none of 6"),
    ],
)
def test_what_cannot_be_meant(run, wanted, error, said):
    with pytest.raises(error, match=said):
        choose(read(read_run(run)), wanted)


def test_records_without_samples_or_with_broken_ones(run, tmp_path):
    with pytest.raises(MissingPrerequisite, match="no samples 'base': it has final"):
        read(read_run(run), "base")
    archived = read_run(fake.write_run(tmp_path, "ppo", 0))
    with pytest.raises(MissingPrerequisite, match="not kept in an archive") as stopped:
        read(archived)
    assert stopped.value.exit_code == 3
    path = run / "samples" / "final.parquet"
    pd.DataFrame(ROWS).drop(columns=["judge"]).to_parquet(path)
    with pytest.raises(CorruptRecord, match="it has no judge"):
        read(read_run(run))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(CorruptRecord, match="cannot be read"):
        read(read_run(run))


def test_texts_are_hidden_unless_asked_for(run, capsys):
    for as_json in (False, True):
        samples_command(str(run), run, "final", Wanted(), False, as_json)
        hidden = capsys.readouterr().out
        assert "Reply" not in hidden and "Prompt" not in hidden and "(hidden: 2 words, 8 characters)" in hidden
        samples_command(str(run), run, "final", Wanted(), True, as_json)
        plain = capsys.readouterr().out
        assert "Reply 4." in plain and "(hidden" not in plain
    found = json.loads(plain)
    assert found["samples"][1]["judge"] is None and found["samples"][0]["reward"] == 0.9 and found["n_samples"] == 6


def test_text_cannot_command_the_terminal(run):
    row = ROWS[0] | {"prompt": HOSTILE, "response": HOSTILE, "kind": HOSTILE}
    for unmask in (False, True):
        said = text([row], unmask, 40)
        assert all(c.isprintable() or c == "\n" for c in said) and all(len(line) <= 40 for line in said.splitlines()[1:])
    assert "cleared" in said and "and   more" in said and "    and" in said


def test_long_text_is_wrapped_and_loses_nothing():
    whole = "def f(x):\n    return x  # " + "word " * 30 + "\n\nlast"
    made = masking.lines(whole, 24)
    assert all(len(line) <= 24 for line in made) and made[0] == "def f(x):" and made[1].startswith("    return x")
    assert made[-2:] == ["", "last"]
    assert " ".join(made).split() == whole.split()
    assert masking.lines("", 24) == [""] and masking.mask("x") == "(hidden: 1 word, 1 character)"


def test_a_run_by_the_beginning_of_its_id(tmp_path):
    for seed, id8 in enumerate(("aa11", "aa22", "bb33")):
        fake.write_run(tmp_path, "quark", seed, id8=id8)
    fake.write_run(tmp_path / "copy", "quark", 2, id8="bb33")

    def find(name: str) -> str:
        return records_read.locate(name, tmp_path).dir.name

    assert find("aa1") == find("aa11-s0") == find(str(tmp_path / "micro/toxicity/quark/aa11-s0")) == "aa11-s0"
    with pytest.raises(UsageError, match="'aa' matches 2 runs"):
        find("aa")
    with pytest.raises(UsageError, match="'bb33-s2' matches 2 runs"):
        find("bb33-s2")
    for name in ("cc", "5"):
        with pytest.raises(UnknownName):
            find(name)
    with pytest.raises(EmptySelection):
        records_read.locate("aa", tmp_path / "none")
    with pytest.raises(CorruptRecord):
        find(str(tmp_path))
    assert listing.find_run("aa1", tmp_path)["seed"] == 0


def test_the_command(run, tmp_path):
    code = "import sys, harness.cli.main\ntry: harness.cli.main.main()\nfinally: assert 'torch' not in sys.modules"
    words = ["samples", "5e5e", "--out", tmp_path, "-n", "1", "--worst", "--unmask"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "Reply 4." in done.stdout and "1 of 6 samples" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", code, *words[:4], "--of", "base"], capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.startswith("error: ") and done.stdout == ""
