"""Command lines put together at random: whatever is typed, the answer is a result or one line, and never a traceback."""

import json
import random
import traceback
from pathlib import Path

import fake_records as fake
import pytest

from harness.cli import sweep
from harness.conformance import rules
from harness.core import registry
from harness.core.errors import MissingPrerequisite
from harness.runs import assemble
from harness.runs.sweep import plan as plans
from harness.runs.sweep import study
from harness.runs.sweep.engines import ray_tasks

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
WHERE = ("--workers", "--out", "--engine", "--slurm", "--ray", "--retries", "--lease", "--track")
OPTIONS = {
    "run": (
        "--method",
        "--task",
        "--preset",
        "--seed",
        "--seeds",
        "--set",
        "--budget",
        "--model",
        "--prompts",
        "--track",
        "--out",
    ),
    "sweep": ("--methods", "--tasks", "--seeds", "--set", "--grid", "--file", "--preset", *WHERE),
    "study": ("--methods", "--tasks", *WHERE),
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
GOOD = {  # values of options that are right, so that what comes after them is reached
    "--engine": ("local", "slurm", "ray"),
    "--slurm": (
        "cluster=local",
        "cluster=local,mem_gb=2",
        "partition=a,time=1:00:00",
        "time=1:00:00,nodes=2,tasks=3",
        "gpus=x",
    ),
    "--ray": ("127.0.0.1:1", "address=auto,num_gpus=1", "num_cpus=2", "num_gpus=0.5,memory=1e9"),
    "--retries": ("0", "3"),
    "--lease": ("1", "60", "0.5"),
    "--workers": ("1", "64"),
    "--track": ("", "tensorboard", "wandb,mlflow", "trackio"),
    "--out": ("records", "new/records", "50%j"),
}
TABLES = ("set", "grid", "knobs", "evaluation", "optimizer", "budget", "task", "moon")
PLAN = {  # the keys of a file of a sweep or a study, with right values
    "methods": ('["base", "quark"]', '["ppo"]', '["./mine.py"]'), "tasks": ('["toxicity"]', '["sentiment", "pii"]'),
    "preset": ('"micro"', '"small"', '"./own.toml"'), "seeds": ('"0-2"', "[0, 3]", "[]"), "other_seeds": ('"0-1"', "[1]"),
}  # fmt: skip
VALUES = (
    "1", "-1", "0.5", "true", '"a"', '""', "[]", "[[1], [2]]", "{}", "{a = 1}", "nan", "inf", "7" * 70, "[" * 5000,
    "1979-05-27", '["\\u001b[31m"]', '"\\u202e"', "[1, 'a']", "é", "=", '"a\\u0000b"', "[0.1, 0.3]",
)  # fmt: skip
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
    verb = rng.choice([*OPTIONS, "sweep", "study"])
    words = [verb]
    for i in range(WORDS.get(verb, 0)):
        words.append(
            rng.choice(KINDS) if i == 0 and verb in ("list", "show", "check", "new") and rng.random() < 0.9 else odd(rng)
        )
    if verb == "study" or (verb == "sweep" and rng.random() < 0.4):
        Path("plan.toml").write_bytes(plan_file(rng))
        words += ["plan.toml"] if verb == "study" else ["--file", "plan.toml"]
    rare = {option: 0.08 if verb in ("sweep", "study") and option not in WHERE else 0.25 for option in OPTIONS[verb]}
    chosen = {option: value_of(rng, option) for option, chance in rare.items() if rng.random() < chance}
    fitting = [name for name in ("slurm", "ray") if f"--{name}" in chosen]
    if fitting and rng.random() < 0.8:
        chosen["--engine"] = fitting[0]
    for option, value in (NEEDED.get(verb, {}) | chosen).items():
        if option in ("--set", "--grid"):
            value = f"{rng.choice(KEYS) if rng.random() < 0.9 else odd(rng)}={odd(rng)}"
        words += [option, value]
    if verb in READERS:
        words += ["--out", here]
    if verb in ("run", "sweep", "study") and rng.random() < 0.3:
        words.append("--dry-run")
    return words


def odd(rng: random.Random) -> str:
    return rng.choice(ODD)


def value_of(rng: random.Random, option: str) -> str:
    """A value of an option: right, more often than not, where there are right ones."""
    return rng.choice(GOOD[option]) if option in GOOD and rng.random() < 0.85 else odd(rng)


def plan_file(rng: random.Random) -> bytes:
    """The text of a file of a sweep or a study, most of whose lines are right."""
    lines = [
        f"{key} = {rng.choice(good if rng.random() < 0.9 else VALUES)}" for key, good in PLAN.items() if rng.random() < 0.8
    ]
    for table in rng.sample(TABLES, rng.choice((0, 0, 1, 3))):
        lines.append(f"[{table}]" if rng.random() < 0.9 else f"{table} = {rng.choice(VALUES)}")
        lines += [f"{rng.choice(KEYS)} = {rng.choice(VALUES)}" for _ in range(rng.randint(0, 2))]
    whole = "\n".join(lines).encode()
    return whole if rng.random() < 0.95 else rng.choice((b"", b"\xff\xfe", b"\x00", whole + b"\xff", whole[: len(whole) // 2]))


@pytest.fixture
def nothing_is_loaded(monkeypatch, tmp_path):
    """No model, no network, and a folder of records to read."""

    def absent(*_, **__):
        raise MissingPrerequisite("no model in this test")

    def loaded_only(name):
        registry.load("method", name)
        return []

    for where, name in ((plans, "plan"), (study, "plan_study")):  # as after planning, for what comes with the engine
        monkeypatch.setattr(where, name, without_models(getattr(where, name)))
    monkeypatch.setattr(sweep, "listed", lambda cells, as_json: 0)
    monkeypatch.setattr(ray_tasks.RayEngine, "_start", absent)
    monkeypatch.setattr(assemble, "parts", absent)
    monkeypatch.setattr(rules, "check_method", loaded_only)
    fake.write_study(tmp_path / "records")
    for name in ("a/b", "home"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):  # libraries keep their caches there
        monkeypatch.setenv(name, str(tmp_path / "a" / "b" / "caches"))
    monkeypatch.chdir(tmp_path / "a" / "b")
    before = there(tmp_path)
    yield
    assert there(tmp_path) == before  # the working folder holds what --out names, and nothing else is touched


def there(place: Path) -> dict[str, tuple[int, int]]:
    """The files and folders of a place but for those below a/b: sizes and times of files."""
    found = (path for path in place.rglob("*") if not path.is_relative_to(place / "a" / "b"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0) for path in found}


def without_models(plan):
    """A planner that finds no cells where it needs a model."""

    def planned(*words, **more):
        try:
            return plan(*words, **more)
        except MissingPrerequisite as e:
            if "no model in this test" in str(e):
                return []
            raise

    return planned


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
    commands = (command(rng, "../../records") for _ in range(n))  # one by one, each with its file
    faults = {found: words for words in commands if (found := fault(harness, words)) is not None}
    assert not faults, "\n".join(f"{found}: {json.dumps(words)[:300]}" for found, words in faults.items())


@pytest.mark.parametrize("seed", range(2))
def test_random_commands_are_answered_in_a_line(harness, nothing_is_loaded, seed):
    try_out(harness, seed, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1000, 1001])
def test_hundreds_of_random_commands_are_answered_in_a_line(harness, nothing_is_loaded, seed):
    try_out(harness, seed, 450)
