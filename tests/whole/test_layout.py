"""The house: one direction of imports, rooms of a readable size, one package installed."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

MARKERS = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}  # no reader opens them to find something


LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", LINT], capture_output=True, text=True, cwd=root)


def test_every_import_contract_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0 and "Contracts: 5 kept, 0 broken" in done.stdout, done.stdout + done.stderr


PLANTED = {
    "harness/core/text.py": ("import harness.runs.session", "The rooms import downwards only"),
    "methods/quark.py": ("import harness.policy.policy", "One door: methods and tasks import harness.api"),
    "tasks/pii.py": ("import harness.core.errors", "One door: methods and tasks import harness.api"),
    "methods/ppo.py": ("import tasks.pii", "Methods know no task"),
    "harness/analysis/groups.py": ("import torch", "Lists, status and the report import no torch"),
    "harness/policy/caches.py": ("from . import policy", "No circles within a room"),
}


@pytest.mark.slow  # a graph of the whole tree each
@pytest.mark.parametrize("file", PLANTED)
def test_a_planted_import_breaks_its_contract(file, tmp_path, monkeypatch):
    line, broken = PLANTED[file]
    for part in ("harness", "methods", "tasks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text() + f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and f"{broken} BROKEN" in done.stdout, done.stdout


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in MARKERS]


def test_no_room_is_a_drawer():
    assert len(entries(ROOT / "harness")) <= 12
    rooms = [p for p in (ROOT / "harness").rglob("*") if p.is_dir() and p.name != "__pycache__"]
    assert {str(room): len(entries(room)) for room in rooms if len(entries(room)) > 11} == {}


def test_every_folder_with_modules_is_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        tools = tomllib.load(file)["tool"]["setuptools"]
    modules = [path for part in ("harness", "methods", "tasks") for path in (ROOT / part).rglob("*.py")]
    places = {".".join(path.parent.relative_to(ROOT).parts) for path in modules}
    at_the_top = {folder: name for name, folder in tools["package-dir"].items() if "." in name}  # tasks: harness.tasks
    named = {re.sub(r"^\w+", lambda m: at_the_top.get(m[0], m[0]), place) for place in places}
    assert {name for name in named if "templates" not in name} == set(tools["packages"])


def test_no_module_is_longer_than_450_lines():
    modules = [path for part in ("harness", "methods", "tasks") for path in (ROOT / part).rglob("*.py")]
    assert {str(p): n for p in modules if (n := len(p.read_text().splitlines())) > 450} == {}


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_tests_lie_in_the_folder_of_a_room_each_with_a_name_of_its_own():
    assert {path.name for path in (ROOT / "tests").glob("*.py")} == {"conftest.py"}
    rooms = {path.name for top in (ROOT, ROOT / "harness") for path in top.iterdir() if path.is_dir()} | {"whole"}
    assert {path.relative_to(ROOT / "tests").parts[0] for path in TESTS} <= rooms
    assert len({path.name for path in TESTS}) == len(TESTS) > 90


def test_no_test_file_is_longer_than_450_lines_or_imports_another():
    assert {str(path): n for path in TESTS if (n := len(path.read_text().splitlines())) > 450} == {}
    names = "|".join(path.stem for path in TESTS)
    imports = re.compile(rf"^\s*(?:from|import) (?:{names})\b", re.MULTILINE)
    assert [str(path) for path in (ROOT / "tests").rglob("*.py") if imports.search(path.read_text())] == []


def test_every_method_has_its_test_file():
    from harness.methods import METHODS

    assert [name for name in METHODS if not (ROOT / "tests" / "methods" / f"test_{name}.py").exists()] == []


AT_ONCE = (
    "--help", "--version", "list methods", "list tasks", "list scorers", "list presets",
    "show preset gpt2", "env", "run --help", "sweep --help",
)  # fmt: skip


@pytest.mark.parametrize("words", AT_ONCE)
def test_what_must_answer_at_once_imports_no_torch(words):
    code = (
        "import sys; sys.argv = ['harness', *sys.argv[1:]]; import harness.cli.main\n"
        "try: harness.cli.main.main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_run_says_what_it_does_before_the_heavy_imports():
    code = (
        "import os, sys; sys.argv = ['harness', *sys.argv[1:]]; import harness.cli.main; from harness.runs import progress\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'pandas'}\n"
        "def said(self, text): print(text, heavy & set(sys.modules), flush=True); os._exit(0)\n"
        "progress.Progress.say = said; harness.cli.main.main()"
    )
    words = ["run", "--method", "quark", "--task", "toxicity"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout == "quark × toxicity, preset micro, seed 0: loading set()\n", done.stderr


def test_the_door_gives_every_name_it_lists_and_no_other():
    from harness import api

    for name in api.__all__:
        assert getattr(api, name) is not None
    with pytest.raises(AttributeError, match=r"harness\.api has no 'nothing'; it has BadData"):
        _ = api.nothing


def test_python_m_harness_is_the_command():
    done = subprocess.run([sys.executable, "-m", "harness", "list", "presets"], capture_output=True, text=True)
    assert done.returncode == 0 and "micro" in done.stdout, done.stderr
