"""The direction of imports, held by reading them: each part may see only what the design lists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNEL = {
    "types", "errors", "logprobs", "caches", "policy", "ensemble", "pool", "corpus", "sampler", "metrics", "trial", "frontier",
    "trl",
}  # fmt: skip
ALLOWED = {
    "harness/errors.py": set(),
    "harness/types.py": {"trial"},  # for a type only
    "harness/logprobs.py": set(),
    "harness/caches.py": set(),
    "harness/configs.py": set(),
    "harness/weights.py": {"errors"},
    "harness/tokenizers.py": {"errors", "weights"},
    "harness/ensemble.py": {"caches", "weights"},
    "harness/policy.py": {"caches", "configs", "ensemble", "errors", "types", "weights"},
    "harness/load_check.py": {"caches", "errors", "logprobs", "policy", "sampler", "types"},
    "harness/corpus.py": {"errors", "logprobs", "trial", "types"},
    "harness/sampler.py": {"caches", "errors", "logprobs", "policy", "types"},
    "harness/pool.py": {"errors", "types"},
    "harness/metrics.py": {"types"},
    "harness/frontier.py": {"errors", "types"},
    "harness/trial.py": {"errors", "policy", "sampler", "types"},
    "harness/trl.py": {"errors", "policy", "trial", "types"},
    "harness/stats.py": {"errors"},
    "harness/inside.py": {"errors"},
    "harness/shared.py": {"errors", "inside"},
    "harness/masking.py": set(),
    "harness/records.py": {"errors", "inside", "shared"},
    "harness/disk.py": {"errors"},
    "harness/interrupts.py": {"errors"},
    "harness/store.py": {"disk", "errors", "inside", "records", "shared", "types"},
    "harness/cells.py": {"records", "report.groups"},
    "harness/versions.py": {"errors", "loading", "records", "registry", "store"},
    "harness/archive.py": {"errors", "masking", "records", "samples", "shared", "store"},
    "harness/frames.py": {"errors", "masking", "records", "samples", "sweep", "versions"},
    "harness/agreement.py": {"archive", "records"},
    "harness/verify.py": {
        "agreement",
        "errors",
        "inside",
        "listing",
        "masking",
        "metrics",
        "records",
        "rescore",
        "samples",
        "store",
        "types",
    },
    "harness/rescore.py": {
        "archive",
        "assemble",
        "errors",
        "masking",
        "metrics",
        "records",
        "registry",
        "samples",
        "settings",
        "sweep",
        "types",
        "verify",
        "versions",
    },
    "harness/toy.py": {"policy", "types"},
    "harness/contract.py": {"errors", "trial", "types"},  # a trial for a type only
    "harness/environment.py": {"errors"},
    "harness/conformance.py": {"contract", "registry", "evaluation", "settings", "toy"} | KERNEL,
    "harness/sweep.py": {"assemble", "errors", "registry", "settings", "store", "types"},
    "harness/launcher.py": {"board", "environment", "errors", "runner", "store", "sweep", "worker"},
    "harness/worker.py": {"cli", "commands", "environment", "errors"},
    "harness/board.py": {"launcher", "masking"},  # the former for types only
    "harness/scaffold.py": {"errors", "registry"},
    "harness/rule.py": {"store", "types"},
    "harness/runner.py": {
        "contract",
        "errors",
        "evaluation",
        "policy",
        "progress",
        "rule",
        "settings",
        "store",
        "trial",
        "types",
    },
}


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in the file, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if not node.module else {module}
    return found


def ours(path: Path) -> set[str]:
    return {m for m in imports(path) if m.split(".")[0] in {"harness", "methods", "tasks"}}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_kernel_and_the_machine(name):
    assert {m.removeprefix("harness.") for m in ours(ROOT / name)} <= ALLOWED[name]


@pytest.mark.parametrize("path", sorted(ROOT.glob("methods/[!_]*.py")), ids=lambda p: p.name)
def test_a_method_sees_only_the_kernel(path):
    assert ours(path) <= {f"harness.{m}" for m in KERNEL}


@pytest.mark.parametrize("path", sorted(ROOT.glob("tasks/**/[!_]*.py")), ids=lambda p: p.name)
def test_a_task_sees_only_types_metrics_and_tasks(path):
    seen = {m for m in ours(path) if not m.startswith("tasks")}
    assert seen <= {f"harness.{m}" for m in KERNEL - {"trial", "pool", "corpus", "frontier", "trl"}}


def test_a_planted_violation_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "methods").mkdir()
    planted = tmp_path / "methods" / "bad.py"
    planted.write_text("from .quark import Quark\nimport harness.runner\n")
    assert ours(planted) == {"methods.quark", "harness.runner"}


AT_ONCE = (
    "--help", "list methods", "list tasks", "list scorers", "list presets",
    "show preset gpt2", "env", "run --help", "sweep --help",
)  # fmt: skip


@pytest.mark.parametrize("words", AT_ONCE)
def test_what_must_answer_at_once_imports_no_torch(words):
    code = (
        "import sys; sys.argv = ['harness', *sys.argv[1:]]; import harness.cli\n"
        "try: harness.cli.main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
