"""Every example is run as its README says, held to the rules of its kind, and imports nothing but the door."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import quick

from harness.conformance import rules, scorer_rules, task_rules
from harness.core import registry
from harness.runs import named

pytestmark = pytest.mark.usefixtures("few_prompts")
EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.py"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package of the examples as pip would leave it: its module, and its entry points beside it."""
    project = tomllib.loads((EXAMPLES / "third_party" / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(EXAMPLES / "third_party")
    monkeypatch.syspath_prepend(tmp_path)
    yield project
    sys.modules.pop("harness_example_plugins", None)


def run(harness, tmp_path, *words: object) -> dict:
    code, out, err = harness("run", *words, "--out", tmp_path / "out", "--json", *quick.flags("base"))
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_every_example_is_in_the_readme_and_imports_the_door_only():
    readme = (EXAMPLES / "README.md").read_text()
    for path in FILES:
        found = re.findall(r"^\s*(?:from|import) (harness[\w.]*)", path.read_text(), re.MULTILINE)
        assert set(found) <= {"harness.api"} and (path.name in readme or f"{path.parent.name}/" in readme)
    assert len(FILES) == 4


def test_the_method(harness, tmp_path):
    summary = run(harness, tmp_path, "--method", EXAMPLES / "my_method.py", "--task", "toxicity", "--set", "batch_size=4")
    assert summary["method"] == "my_method" and summary["cost"]["updates"] == 6


def test_the_task_and_the_scorer(harness, tmp_path):
    summary = run(harness, tmp_path, "--method", "base", "--task", EXAMPLES / "my_task.py")
    assert (summary["task"], summary["settings"]["task"]["reward"]) == ("my_task", "my_scorer")
    assert 0 < summary["final"]["judge"]["value"] <= 1 and summary["final"]["question_marks"]["value"] >= 0
    assert summary["frontier"]["kl_cap"] == 1.0


def test_the_preset():
    found = named.settings(str(EXAMPLES / "my_preset.toml"), "quark", str(EXAMPLES / "my_task.py"))
    assert (found.budget, found.evaluation.points, found.method["kl_coef"]) == ({"flops": 4e11}, 2, 0.1)
    assert found.task.kl_cap == 0.5 and named.recorded(found).preset == "my_preset"


def test_the_package(harness, tmp_path, installed):
    code, out, _ = harness("list", "methods")
    assert code == 0 and re.search(rf"noisy-base .*from {installed['name']}", out)
    words = ["--method", "noisy-base", "--task", "toxicity", "--set", "task.reward=short", "--set", "batch_size=4"]
    assert run(harness, tmp_path, *words)["method"] == "noisy-base"
    assert registry.broken("method") == registry.broken("scorer") == []


def faults(checks) -> list[str]:
    return [f"{c.name}: {c.found}" for c in checks if c.held is False]


def test_the_scorers_hold_the_rules(installed):
    for name in (str(EXAMPLES / "my_scorer.py"), str(EXAMPLES / "my_task.py"), "short"):
        assert faults(scorer_rules.check_scorer(name)) == []


@pytest.mark.slow
def test_methods_and_task_hold_the_rules(installed):
    assert faults(rules.check_method(str(EXAMPLES / "my_method.py"))) == []
    assert faults(rules.check_method("noisy-base")) == []
    assert faults(task_rules.check_task(str(EXAMPLES / "my_task.py"))) == []
