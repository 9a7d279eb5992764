"""The file of scored texts: held by another process, damaged, or on a disk that cannot be written."""

import logging
import sqlite3

import numpy as np
import pytest

from harness.core.errors import BadData, Interrupted, Unwritable
from harness.tasks.scorers import cache
from harness.tasks.scorers.cache import CachedScorer


class Half:
    def __init__(self, name="half"):
        self.identity, self.asked = {"name": name}, []

    def score(self, prompts, responses):
        self.asked += responses
        return np.full(len(responses), 0.5)


def score(scorer, *texts):
    return scorer.score([""] * len(texts), list(texts))


@pytest.fixture
def cached(tmp_path):
    made = CachedScorer(Half(), tmp_path)
    score(made, "a")
    return made


class LetsGo(logging.Handler):
    """Lets go of a held file when it is said that somebody waits for it."""

    def __init__(self, holder):
        super().__init__()
        self.holder, self.said = holder, []

    def emit(self, record):
        self.said.append(record.getMessage())
        self.holder.rollback()


@pytest.mark.parametrize("text", ["a", "b"])
def test_a_file_that_another_process_holds_is_waited_for_and_that_is_said(text, cached, monkeypatch):
    monkeypatch.setattr(cache, "WAIT", 0.01)
    holder = sqlite3.connect(cached.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    lets_go = LetsGo(holder)
    cache.log.addHandler(lets_go)
    try:
        assert score(cached, text).tolist() == [0.5]
    finally:
        cache.log.removeHandler(lets_go)
        holder.close()
    said = [line for line in lets_go.said if "waiting" in line]
    assert len(said) == 1 and f"another process that holds {cached.path}" in said[0]


def test_who_waits_for_a_file_can_be_interrupted(cached, monkeypatch):
    monkeypatch.setattr(cache, "WAIT", 0.01)
    holder = sqlite3.connect(cached.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    def interrupted(*_):
        raise Interrupted("at once")

    monkeypatch.setattr(cache.log, "warning", interrupted)
    with pytest.raises(Interrupted):
        score(cached, "b")
    holder.close()
    assert score(cached, "a").tolist() == [0.5] and cached._scorer.asked == ["a"]


@pytest.mark.parametrize("wrong", [7.46, -4.54, "good", b"\0", None, float("inf")])
def test_a_kept_value_that_is_no_score_is_never_read_as_one(wrong, cached):
    db = sqlite3.connect(cached.path)
    db.execute("CREATE TABLE other (key BLOB, score)")
    db.execute("INSERT INTO other SELECT key, ? FROM scores", (wrong,))
    db.execute("DROP TABLE scores")
    db.execute("ALTER TABLE other RENAME TO scores")
    db.commit()
    db.close()
    with pytest.raises(BadData, match=r"it holds the score .*, expected \[0, 1\]\); delete the file and run again$"):
        score(cached, "a")


@pytest.mark.parametrize("n", [0, 1, 100, 4000, 5000])
def test_a_file_that_was_cut_off_is_one_line_or_built_again(n, cached):
    whole = cached.path.read_bytes()
    cached.path.write_bytes(whole[:n])
    try:
        assert score(cached, "a").tolist() == [0.5]
    except BadData as e:
        assert "delete the file and run again" in str(e) and "\n" not in str(e)


def test_a_place_that_cannot_be_used_is_not_called_a_damaged_file(cached, tmp_path):
    cached.path.unlink()
    cached.path.mkdir()
    with pytest.raises(Unwritable, match=r"cannot use the score cache .*check its permissions and the disk"):
        score(cached, "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"cannot cache scores in .*; choose another --out"):
        score(CachedScorer(Half(), tmp_path / "file" / "below"), "a")


def test_a_name_with_other_characters_stays_inside_the_folder(tmp_path):
    made = CachedScorer(Half("../up/me\n"), tmp_path)
    score(made, "a")
    assert made.path.parent == tmp_path and made.path.is_file()
