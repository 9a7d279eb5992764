"""Each method names its family, and its knob where it has one; nothing else knows a method by name."""

import json
import subprocess
import sys

import pytest

from harness.api import Knob, Settings
from harness.conformance.play import Subject
from harness.conformance.rules import knob
from harness.core import registry
from harness.report.figures import style
from harness.runs.cost import estimate

FAMILIES = {  # in this order their members take shades and markers, so figures stay as they were
    "controls": ["base", "mle", "random_reward", "best_quantile", "oracle"],
    "at decoding": ["best_of_n", "dexperts", "self_debias", "steering"],
    "likelihood, weighted or conditioned": ["quark", "conditional_pretraining", "filtering", "rwr", "awr"],
    "policy gradients": ["ppo", "reinforce", "rloo", "grpo", "gdc", "reinforce_pp"],
    "preferences": ["dpo", "kto"],
    "pushing bad text down": ["unlikelihood", "gradient_ascent", "npo", "simnpo", "rmu", "task_vector", "undo"],
}


def test_the_families_are_read_from_the_classes_without_importing_them():
    assert {name: members for name, members in style.families().items() if members} == FAMILIES
    code = "import sys, json; from harness.report.figures import style; f = style.families(); "
    code += "print(json.dumps([len(f['controls']), 'torch' in sys.modules, 'harness.methods.quark' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [5, False, False]


def test_a_method_that_is_not_installed_or_names_no_family_is_another(monkeypatch, tmp_path):
    (tmp_path / "their_pack.py").write_text("class A:\n    version = 1\nclass B:\n    family = 'policy gradients'\n")
    (tmp_path / "their_broken_pack").mkdir()
    (tmp_path / "their_broken_pack" / "__init__.py").write_text("raise ValueError\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = {"a": ("their_pack:A", ""), "b": ("their_pack:B", ""), "c": ("their_broken_pack.x:C", "")}
    monkeypatch.setattr("harness.methods.METHODS", table)
    assert [style.family(name) for name in ("a", "b", "c", "nowhere")] == ["other", "policy gradients", "other", "other"]


def test_what_trains_nothing_says_so():
    assert estimate.untrained() == ["base", "best_of_n", "self_debias", "steering"]


@pytest.mark.parametrize("name", sorted(registry.table("method")))
def test_every_knob_holds_its_rule(name):
    kind = registry.load("method", name)
    held, found = knob(Subject(kind, name))
    assert held is (None if kind.knob is None else True), found


class MineSettings(Settings):
    strength: float = 1.0
    count: int = 1


class Mine:
    Settings = MineSettings


FAULTS = {
    "no setting": (Knob("strenght", (1, 2, 3, 4, 5)), "names no setting; it has strength, count"),
    "a name only": ("strength", "names no setting"),
    "four": (Knob("strength", (1, 2, 3, 4)), "not five in order"),
    "out of order": (Knob("strength", (1, 3, 2, 4, 5)), "not five in order"),
    "twice": (Knob("strength", (1, 2, 2, 4, 5)), "not five in order"),
}


def test_a_knob_is_read_from_the_source_without_importing_it(monkeypatch, tmp_path):
    for name in registry.table("method"):
        assert registry.attribute("method", name, "knob") == registry.load("method", name).knob
    (tmp_path / "their_knobs.py").write_text(
        "from harness.api import Knob\nX = 3\nclass A:\n    knob = Knob(setting='x', values=(1, 2, 3))\n"
        "class B:\n    knob = Knob(X, 2)\n"
        "class C:\n    knob = Other('x', (1, 2, 3))\nclass D:\n    knob = Knob()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("harness.methods.METHODS", {c.lower(): (f"their_knobs:{c}", "") for c in "ABCD"})
    assert [registry.attribute("method", name, "knob") for name in "abcd"] == [Knob("x", (1, 2, 3)), None, None, None]


def test_a_list_and_a_card_show_the_knob(harness):
    code, out, _ = harness("list", "methods", "--json")
    assert (
        code == 0 and {row["name"]: row["knob"] for row in json.loads(out)}.items() >= {"quark": "kl_coef", "mle": "-"}.items()
    )
    code, out, _ = harness("show", "method", "best_of_n")
    assert code == 0 and "knob, weak to strong\n  n                  2, 4, 8, 16, 32\n" in out
    data = json.loads(harness("show", "method", "mle", "--json")[1])
    assert data["knob"] is None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_knob_that_is_none_fails_its_rule(fault):
    found, said = FAULTS[fault]
    held, words = knob(Subject(type("Broken", (Mine,), {"knob": found}), "broken"))
    assert held is False and said in words


def test_a_value_that_the_setting_does_not_take_and_a_family_that_is_no_word():
    from harness.conformance.rules import RULES, _apply

    rule = next(rule for rule in RULES if rule.name == "knob")
    broken = type("Broken", (Mine,), {"knob": Knob("count", (1, 2, 3, 4, 5.5))})
    assert _apply(rule, Subject(broken, "broken")).held is False
    assert knob(Subject(type("Broken", (Mine,), {"family": 3}), "broken")) == (False, "the family is 3")
    held, words = knob(Subject(Mine, "mine"))
    assert held is None and "it has none" in words
