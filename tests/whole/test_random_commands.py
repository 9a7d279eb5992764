"""Command lines put together at random: whatever is typed, the answer is a result or one line, and never a traceback."""

import json
import random
import traceback

import fake_records as fake
import pytest

from harness.conformance import rules
from harness.core import registry
from harness.core.errors import MissingPrerequisite
from harness.runs import assemble

CODES = {0, 1, 2, 3, 4, 5}
ODD = (
    "", " ", "0", "-1", "7" * 70, "7" * 5000, "1e400", "inf", "-inf", "nan", "1e23", "0x10", "0-999999999", "3-1", "1,,2", "١",
    "é", "\U0001f600", "a\nb", "a\x00b", "\udcff", "\x1b[31m", "[" * 5000, "{" * 200, "{a=1}", "[2,3]", '"a\\u0000b"', "true",
    "'", "..", "/nope", "~", "a" * 300, "a/" * 200, "None", "=", "a=b", "*", "%s", "quark", "base", "toxicity", "micro",
    "gpt2",
    "-h", "--", "1979-05-27", "x.py", "/dev/null", "/dev/null/x", "name with spaces",
)  # fmt: skip
KEYS = (
    "kl_coef", "lr", "model.id", "model.dtype", "model.device", "task", "task.reward", "task.data", "task.data.train",
    "task.prompts",
    "task.decoding", "task.decoding.top_p", "task.kl_cap", "evaluation.points", "evaluation.samples", "evaluation.select",
    "evaluation.seed", "optimizer.betas", "optimizer.eps", "budget", "budget.flops", "budget.updates",
    "scorers", "scorers.vader",
    "scorers.vader.kind", "method", "quark.kl_coef", "preset", "num_quantiles",
)  # fmt: skip
OPTIONS = {
    "run": ("--method", "--task", "--preset", "--seed", "--seeds", "--set", "--budget", "--model", "--prompts", "--out"),
    "sweep": ("--methods", "--tasks", "--seeds", "--set", "--grid", "--file", "--preset", "--workers", "--out"),
    "eval": ("--policy", "--task", "--preset", "--set", "--model", "--prompts"),
    "report": ("-o",),
    "status": (),
    "samples": ("--n", "--kind", "--prompt", "--search", "--sort", "--seed", "--of"),
    "verify": (),
    "compare": ("--metric", "--regress-if"),
    "export": ("--to", "--out", "--records", "--by"),
    "list": (),
    "show": (),
    "check": (),
    "new": ("--out",),
    "env": (),
}
WORDS = {
    "list": 1,
    "show": 2,
    "check": 2,
    "new": 2,
    "compare": 2,
    "samples": 1,
    "verify": 1,
    "status": 1,
    "report": 1,
    "export": 1,
}
KINDS = ("methods", "tasks", "presets", "runs", "method", "task", "preset", "run")
NEEDED = {
    "run": {"--method": "quark", "--task": "toxicity"},
    "sweep": {"--methods": "base,quark", "--tasks": "toxicity"},
    "eval": {"--policy": "gpt2", "--task": "toxicity"},
    "export": {"--to": "latex", "--records": "../../records"},
}
READERS = ("status", "samples", "verify", "compare", "list", "show")


def command(rng: random.Random, here: str) -> list[str]:
    """A command line most of whose words are right, so that the odd ones are read."""
    verb = rng.choice(list(OPTIONS))
    words = [verb]
    for i in range(WORDS.get(verb, 0)):
        words.append(
            rng.choice(KINDS) if i == 0 and verb in ("list", "show", "check", "new") and rng.random() < 0.9 else odd(rng)
        )
    chosen = {option: odd(rng) for option in OPTIONS[verb] if rng.random() < 0.25}
    for option, value in (NEEDED.get(verb, {}) | chosen).items():
        if option in ("--set", "--grid"):
            value = f"{rng.choice(KEYS) if rng.random() < 0.9 else odd(rng)}={odd(rng)}"
        words += [option, value]
    if verb in READERS:
        words += ["--out", here]
    if verb in ("run", "sweep") and rng.random() < 0.5:
        words.append("--dry-run")
    return words


def odd(rng: random.Random) -> str:
    return rng.choice(ODD)


@pytest.fixture
def nothing_is_loaded(monkeypatch, tmp_path):
    """No model, no network, and a folder of records to read."""

    def absent(*_, **__):
        raise MissingPrerequisite("no model in this test")

    def loaded_only(name):
        registry.load("method", name)
        return []

    monkeypatch.setattr(assemble, "parts", absent)
    monkeypatch.setattr(rules, "check_method", loaded_only)
    fake.write_study(tmp_path / "records")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")


def fault(harness, words: list[str]) -> str | None:
    """What is wrong with the answer to a command, if anything."""
    try:
        code, out, err = harness(*words)
    except BaseException as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__}: {str(e)[:80]!r} at {frame.filename}:{frame.lineno}"
    if code not in CODES or "Traceback" in out + err:
        return f"exit code {code}"
    said = err.splitlines()[-1:] or [""]
    answered = said[0].startswith(("error: ", "warning: ")) or (words[0], code) == ("status", 4)  # which says it on stdout
    return None if code == 0 or answered else f"exit code {code} without an error"


def try_out(harness, seed: int, n: int) -> None:
    rng = random.Random(seed)
    commands = [command(rng, "../../records") for _ in range(n)]
    faults = {found: words for words in commands if (found := fault(harness, words)) is not None}
    assert not faults, "\n".join(f"{found}: {json.dumps(words)[:300]}" for found, words in faults.items())


@pytest.mark.parametrize("seed", range(2))
def test_random_commands_are_answered_in_a_line(harness, nothing_is_loaded, seed):
    try_out(harness, seed, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1000, 1001])
def test_hundreds_of_random_commands_are_answered_in_a_line(harness, nothing_is_loaded, seed):
    try_out(harness, seed, 400)
