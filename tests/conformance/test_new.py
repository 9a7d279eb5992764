"""`harness new method` and `harness check method`, as a user meets them."""

import importlib
import json
import re
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
from places import ROOT

from harness.conformance import play, rules
from harness.conformance.scaffold import new_plugin
from harness.core import registry
from harness.core.errors import BadSetting, UnknownName, Unwritable


def test_a_new_method_passes_its_check_and_its_test(harness, tmp_path, monkeypatch):
    """The check is made once, for the command and for the generated test; at its full length by the slow test below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(play, "LONG", 25)  # updates; enough for this method to gain
    check = cache(lambda path: rules.check_class(registry.load("method", str(path))))
    monkeypatch.setattr(rules, "check_method", lambda name: check(Path(name).resolve()))
    code, out, err = harness("new", "method", "my-way")
    assert (code, err) == (0, "") and "harness check method ./my_way.py" in out
    assert "class MyWaySettings(Settings)" in (tmp_path / "my_way.py").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my_way.py", "test_my_way.py"]

    code, out, _ = harness("check", "method", "./my_way.py", "--json")
    held = {c["name"]: c["held"] for c in json.loads(out)["checks"]}
    assert code == 0 and set(held.values()) == {True} and "reward rises" in held

    monkeypatch.syspath_prepend(tmp_path)
    tests = {k: v for k, v in vars(importlib.import_module("test_my_way")).items() if k.startswith("test_")}
    assert len(tests) == 2
    for test in tests.values():
        test()
    del sys.modules["test_my_way"], sys.modules["my_way"]  # a monkeypatch would put them back


@pytest.mark.slow
def test_the_test_of_a_new_method_is_run_by_pytest(tmp_path):
    new_plugin("method", "my-way", tmp_path)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_way.py"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


WRONG = (
    ("self.settings.kl_coef * drift", "0.1 * drift"),
    ("trial.update(nll", "next(trial.reference.parameters()).data.add_(1e-3)\n        trial.update(nll"),
    ("reward = trial.reward(rollout)", "rollout.response[0] = 12\n            reward = trial.reward(rollout)"),
    ("rows_of(rollout, best))\n", "rows_of(rollout, best[best > 0]))\n            if scalars:\n                continue\n"),
    ('"base_returns": {"lr": 1e-3, "kl_coef": 100.0},', ""),
    ('"reward_rises": {"batch_prompts": 32},', ""),
)


def test_each_fault_of_a_broken_method_is_one_line(harness, tmp_path):
    """Ignores its budget and a setting, scores control tokens, changes the base: all at once; it claims nothing."""
    new_plugin("method", "broken", tmp_path)
    path = tmp_path / "broken.py"
    text = path.read_text()
    for old, new in WRONG:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    code, out, err = harness("check", "method", path)
    faults = {line.split("  ")[1].strip() for line in out.splitlines() if line.startswith("FAILS")}
    assert code == 5 and faults == {"settings used", "budget", "control tokens", "base weights"}
    assert err.splitlines()[-1].startswith("error: ") and "does not hold 4 of 15 rules" in err


def test_the_scaffold_imports_the_door_only():
    text = (resources.files("harness.conformance") / "templates" / "new_method.py").read_text()
    assert re.findall(r"(?:from|import) (harness[\w.]*)", text) == ["harness.api"]


def test_a_file_may_have_a_choice_among_its_settings(harness, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "methods" / "quark.py").read_text())
    assert registry.load("method", str(mine)).Settings(variant="code").variant == "code"
    code, out, _ = harness("show", "method", mine)
    assert code == 0 and "2205.13636" in out and "variant" in out


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(Unwritable, match=r"test_mine.py already exists"):
        new_plugin("method", "mine", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine.py"] and (tmp_path / "test_mine.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["2fast", "Mine", "my way", "class", "", "../mine", "a.b"])
def test_names_that_cannot_be_a_module(tmp_path, name):
    with pytest.raises(BadSetting, match="lower-case letters"):
        new_plugin("method", name, tmp_path)


@pytest.mark.parametrize("name", ["quark", "best-of-n", "json", "torch", "harness"])
def test_names_that_are_taken(tmp_path, name):
    with pytest.raises(BadSetting, match="is taken"):
        new_plugin("method", name, tmp_path)


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="--out"):
        new_plugin("method", "mine", tmp_path / "file")


def test_what_can_be_started_and_checked(harness, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'method'"):
        new_plugin("metod", "mine", tmp_path)
    for words, code, said in (
        (("check", "preset", "micro"), 2, "cannot check 'preset': no such kind; kinds: method, task, scorer"),
        (("new", "dataset", "mine"), 2, "'dataset': no such kind; kinds: method, task, scorer (prompts of your own need no"),
        (("new", "preset", "mine"), 2, "cannot create 'preset': no such kind; kinds: method, task, scorer"),
        (("show", "scorer", "vader"), 2, "cannot show 'scorer': no such kind; kinds: method, task, probe, preset, run"),
        (("list", "method"), 2, "did you mean 'methods'? kinds: methods, tasks, scorers, datasets, probes, presets, runs"),
        (("check", "method", "quakr"), 2, "did you mean 'quark'"),
        (("check", "method", "./nowhere.py"), 3, "no method file"),
    ):
        found, out, err = harness(*words)
        assert (found, out) == (code, "") and said in err.splitlines()[-1]


def test_a_check_as_a_table(harness):
    code, out, _ = harness("check", "method", "base")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 16 and "expected" in lines[0]
    assert any(line.startswith("-") and "does not apply" in line for line in lines)
