"""Plug-ins of other packages that cannot be used: listed with their error, in nobody's way, a line where they are used."""

import json
from typing import NamedTuple

import pytest

from harness.core import registry
from harness.core.errors import BadData, MissingPrerequisite

SOUND = """
import numpy as np
class Sound:
    def score(self, prompts, responses):
        return np.ones(len(responses))
class Odd:
    def score(self):
        ...
"""


class Point(NamedTuple):
    name: str
    value: str
    dist: None = None


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Scorers of other packages: one works, the others fail each in its own way."""
    (tmp_path / "sound_pack.py").write_text(SOUND)
    (tmp_path / "stops_pack.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        Point("sound", "sound_pack:Sound"), Point("vader", "sound_pack:Sound"), Point("odd", "sound_pack:Odd"),
        Point("gone", "no_such_pack:X"), Point("stops", "stops_pack:X"), Point("missing", "sound_pack:Missing"),
        Point("twice", "sound_pack:Sound"), Point("twice", "sound_pack:Odd"), Point("x.py", "sound_pack:Sound"),
        Point("insult_judge", "sound_pack:Sound"),
    ]  # fmt: skip
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "harness.scorers" else [])


WRONG = {
    "odd": (BadData, "has no score that takes prompts and responses; expected a method score"),
    "gone": (MissingPrerequisite, "cannot be imported: ModuleNotFoundError"),
    "stops": (MissingPrerequisite, "cannot be imported: SystemExit: 3"),
    "missing": (MissingPrerequisite, "cannot be imported: AttributeError"),
    "twice": (BadData, "cannot be used: the name is already taken by sound_pack:"),
}


def test_broken_ones_are_listed_with_their_error_and_the_others_as_ever(harness, installed):
    code, out, err = harness("list", "scorers", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert {"name": "sound", "what": "from sound_pack:Sound"} in rows
    assert sum(row["name"] == "vader" and "error" not in row for row in rows) == 1
    broken = [(row["name"], row["error"]) for row in rows if "error" in row]
    names = ["gone", "insult_judge", "missing", "odd", "stops", "twice", "twice", "vader", "x.py"]
    assert [name for name, _ in broken] == names
    for name, (_, said) in WRONG.items():
        assert all(said in error for found, error in broken if found == name)
    assert "already taken by harness.tasks" in dict(broken)["insult_judge"] and "that of a file" in dict(broken)["x.py"]
    code, out, _ = harness("list", "scorers")
    assert code == 0 and "broken, from " in out and harness("list", "methods")[0] == 0


@pytest.mark.parametrize("name", WRONG)
def test_using_a_broken_one_is_one_line(installed, name):
    error, said = WRONG[name]
    with pytest.raises(error, match=said) as found:
        registry.load("scorer", name)
    assert "\n" not in str(found.value)


def test_a_clash_leaves_ours_as_it_is(installed):
    assert registry.load("scorer", "vader").__module__ == "harness.tasks.scorers.rules"
    assert registry.canonical("scorer", "insult_judge") == "insult-judge"
    assert registry.load("scorer", "sound")().score([], ["a"]).tolist() == [1]


def test_data_sets_and_tasks_have_shapes_too(monkeypatch, tmp_path):
    (tmp_path / "shapeless.py").write_text("class D:\n    rows = items = len\ndef f(): ...\nf.needs = f.rows = f.items = len\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("d", "shapeless:D"), Point("f", "shapeless:f")])
    for kind, name, said in (
        ("dataset", "d", "has no needs; expected a class with the methods needs, rows, items"),
        ("dataset", "f", "is no class"),
        ("task", "d", "has no version"),
        ("method", "d", "has no Settings"),
    ):
        with pytest.raises(BadData, match=said):
            registry.load(kind, name)
