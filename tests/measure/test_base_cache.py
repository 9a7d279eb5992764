"""The cache of base responses: whatever lies there, a run either uses what it expects or makes it again, and runs nothing."""

import pickle
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
import toy_base
from tiny import tiny_gpt2
from toy_base import N, Task, known

from harness.core.errors import BadData, CannotWrite, Degraded, Unwritable
from harness.measure import base_responses
from harness.measure.base_responses import Cache
from harness.tasks.scorers.cache import CachedScorer

RESPONSES, SCORES = (3, N, 5), (3, N)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """What is found without a cache, and the files that it leaves."""
    out, said = tmp_path_factory.mktemp("out"), []
    found = known(out, say=said.append)
    return found, {path.name: path.read_bytes() for path in (out / ".cache").iterdir()}, said


@pytest.fixture
def out(first, tmp_path) -> Path:
    """A copy to break."""
    (tmp_path / ".cache").mkdir()
    for name, content in first[1].items():
        (tmp_path / ".cache" / name).write_bytes(content)
    return tmp_path


def file(out: Path, kind: str) -> Path:
    (found,) = (out / ".cache").glob(f"{kind}-*.npz")
    return found


def test_how_much_will_be_drawn_is_said_before_it_is(first):
    assert f"{N} for each of 3 prompts, {3 * N} in total" in first[2][0] and "left" in first[2][1]
    assert base_responses._left(30) == "about 30 s left" and base_responses._left(1000) == "about 17 min left"
    assert base_responses._left(10_000) == "about 2.8 hours left"


def test_what_was_kept_is_used_without_a_word(first, out):
    said = []
    again = known(out, say=said.append)
    assert said == [] and (again.responses == first[0].responses).all() and np.array_equal(again.reward, first[0].reward)


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def arrays(path: Path, **changes) -> bytes:
    with np.load(path) as old:
        content = dict(old) | changes
    np.savez_compressed(path, **{name: value for name, value in content.items() if value is not None})
    return path.read_bytes()


def objects(path: Path, mark: Path) -> bytes:
    name = "responses" if path.name.startswith("responses") else "reward"
    return arrays(path, **{name: np.array([Payload(mark)], dtype=object)})


def zeros(responses: tuple, reward: tuple, kinds: str = "if", add: float = 0.0):
    """Damage that puts other arrays there."""
    kind = {"i": np.int32, "f": np.float64}
    return lambda path, mark: arrays(
        path, responses=np.full(responses, add).astype(kind[kinds[0]]), reward=np.full(reward, add).astype(kind[kinds[1]])
    )


DAMAGE = {
    "nothing": lambda path, mark: b"",
    "cut off": lambda path, mark: path.read_bytes()[:-40],
    "a byte changed": lambda path, mark: (
        path.read_bytes()[:100] + bytes([path.read_bytes()[100] ^ 255]) + path.read_bytes()[101:]
    ),
    "a pickle": lambda path, mark: pickle.dumps(Payload(mark)),
    "objects": objects,
    "another shape": zeros((3, N, 4), (2, N)),
    "another dtype": zeros(RESPONSES, SCORES, "fi"),
    "numbers too high": zeros(RESPONSES, SCORES, add=12.0),
    "numbers below zero": zeros(RESPONSES, SCORES, add=-1.0),
    "other names": lambda path, mark: arrays(path, responses=None, reward=None, more=np.zeros(2)),
}


@pytest.mark.parametrize("kind", ["responses", "scores"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_made_again_and_never_run(first, out, kind, damage):
    path, mark, said = file(out, kind), out / "mark", []
    path.write_bytes(DAMAGE[damage](path, mark))
    again = known(out, say=said.append)
    assert str(path) in said[0] and "computed again" in said[0] and said[0].isprintable()
    assert (again.responses == first[0].responses).all() and np.array_equal(again.reward, first[0].reward)
    assert not mark.exists() and known(out, say=pytest.fail)


def test_an_array_that_claims_to_be_huge_is_never_allocated(out):
    path = file(out, "responses")
    with zipfile.ZipFile(path, "w") as archive, archive.open("responses.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<i4", "fortran_order": False, "shape": (10**6, 10**6, 5)})
    said = []
    known(out, say=said.append)
    assert "expected i [3, 50, 5]" in said[0]


def test_a_cache_that_is_a_file_is_said_before_the_work(tmp_path):
    (tmp_path / ".cache").write_text("")
    said = []
    with pytest.raises(Unwritable, match=r"cannot write to .*\.cache: File exists; choose another folder with --out"):
        known(tmp_path, say=said.append)
    assert said == []


def test_a_folder_in_the_place_of_a_file_is_said_before_the_work(out):
    path, said = file(out, "responses"), []
    path.unlink()
    path.mkdir()
    with pytest.raises(Unwritable, match="it is a folder; move it"):
        known(out, say=said.append)
    assert said == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_kept_leaves_nothing_half_written(tmp_path, monkeypatch, error):
    def write(file, **content):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(np, "savez_compressed", write)
    with pytest.raises(CannotWrite if isinstance(error, OSError) else KeyboardInterrupt):
        Cache(tmp_path).put("scores", {"of": "a model"}, reward=np.ones(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_a_prompt_whose_responses_nobody_can_score_is_named_before_training(tmp_path, monkeypatch, name):
    task = Task()
    monkeypatch.setattr(task, name, lambda rollout: rollout.response[:, 0].float() * float("nan"))
    with pytest.raises(
        Degraded, match=rf"the {name} could score no base response to 3 of 3 prompts \(prompt_id 0 is the first\)"
    ):
        known(tmp_path, task=task)
    chosen = task.prompts("test")
    monkeypatch.setattr(task, "prompts", lambda split: chosen._replace(places=["a.csv, line 9"] * 3))
    with pytest.raises(Degraded, match=r"a.csv, line 9 is the first"):
        known(tmp_path, task=task)


class Constant:
    """A scorer of no effort."""

    identity = {"name": "constant"}  # noqa: RUF012

    def score(self, prompts, responses):
        return np.full(len(responses), 0.5)


def test_a_kept_score_that_is_no_number_is_refused_in_one_line(tmp_path):
    cached = CachedScorer(Constant(), tmp_path)
    assert cached.score([""], ["a"]).tolist() == cached.score([""], ["a"]).tolist() == [0.5]
    with sqlite3.connect(cached.path) as db:
        db.execute("UPDATE scores SET score = 'high'")
    with pytest.raises(BadData, match=r"it holds the score 'high', expected \[0, 1\].; delete the file and run again"):
        cached.score([""], ["a"])


def test_what_ships_is_read_where_the_folder_has_none_and_never_written(tmp_path):
    ships, of = tmp_path / "ships", {"of": "a model"}
    Cache(ships).put("scores", of, reward=np.ones(3))
    before = {path: path.read_bytes() for path in ships.iterdir()}
    cache = Cache(tmp_path / "own", shipped=ships)
    assert cache.get("scores", of)["reward"].sum() == 3 and cache.get("scores", {"of": "another"}) is None
    cache.put("scores", of, reward=np.zeros(3))
    assert cache.get("scores", of)["reward"].sum() == 0
    assert {path: path.read_bytes() for path in ships.iterdir()} == before


def test_a_damaged_file_that_ships_is_named_and_computed_again(first, tmp_path, monkeypatch):
    ships = tmp_path / "ships"
    ships.mkdir()
    for name in first[1]:
        (ships / name).write_bytes(b"nothing")
    monkeypatch.setattr(toy_base, "Cache", lambda folder: Cache(folder, ships))
    said = []
    again = known(tmp_path, say=said.append)
    assert str(ships) in said[0] and "computed again" in said[0] and np.array_equal(again.reward, first[0].reward)
    known(tmp_path, say=pytest.fail)


def test_several_prompts_in_a_batch_are_answered_as_one_at_a_time(monkeypatch):
    """The draws of a prompt do not depend on how many prompts are read together."""
    drawn, calls, sample = [], [], base_responses.sample
    monkeypatch.setattr(base_responses, "sample", lambda *a, **kw: calls.append(len(a[1].tokens)) or sample(*a, **kw))
    for rows in (N, 2 * N, N - 1):
        monkeypatch.setattr(base_responses, "ROWS", rows)
        drawn.append(base_responses._draw(Task(), tiny_gpt2(), Task().prompts("test"), N, lambda line: None))
    assert calls == [1, 1, 1, 2, 1, 1, 1, 1] and drawn[0].shape == RESPONSES
    assert all(np.array_equal(found, drawn[0]) for found in drawn)
