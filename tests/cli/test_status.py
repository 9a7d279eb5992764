"""The matrix in the terminal, what finishes each cell, and what makes a record stale."""

import fcntl
import json
import shlex
import subprocess
import sys
from pathlib import Path

import fake_records as fake
import pytest
import quick

from harness.analysis.study import Study
from harness.cli import status
from harness.core import plugins, registry
from harness.core import settings as core_settings
from harness.core.errors import EmptySelection
from harness.core.files import held
from harness.core.settings import resolve
from harness.records import stale
from harness.records.read import find_runs, read_run

pytestmark = pytest.mark.usefixtures("few_prompts")

HOSTILE = "\x1b[31mred\u202e"


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """What the code as it is would run: the truth that records are compared with."""
    return quick.cell(tmp_path_factory.mktemp("cell"))


@pytest.fixture
def record(tmp_path, cell) -> Path:
    """A record of the code as it is, to be changed."""
    told = {"identity": cell.identity, "settings": cell.settings.model_dump()}
    return fake.write_run(tmp_path, "quark", 0, manifest=told)


def change(dir: Path, *path: str, to: object) -> list[str]:
    """Why a record is stale once something of its manifest is otherwise."""
    manifest = json.loads((dir / "manifest.json").read_text())
    at = manifest
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    fake.dump(dir / "manifest.json", manifest)
    run = read_run(dir)
    return stale.outdated([run]).get(run.dir, [])


def test_the_matrix_says_where_each_cell_stands(tmp_path):
    fake.write_study(tmp_path)
    fake.write_run(tmp_path, "quark", 3, status="failed")
    fake.write_run(tmp_path, "ppo", 3, status="degraded")
    fake.write_run(tmp_path, "ppo", 4, status="interrupted")
    (fake.write_run(tmp_path, "npo", 0) / "summary.json").write_text("{")
    found = Study(*find_runs([tmp_path]))
    said = status.text(found, tmp_path).splitlines()
    assert [line.split() for line in said[:5]] == [
        ["preset", "micro", "toxicity"],
        ["conditional", "3/5", "-2"],
        ["ppo", "3/5", "!1", "~1"],
        ["quark", "3/5", "x1", "-1"],
        ["unlikelihood", "3/5", "-2"],
    ]
    whole = "\n".join(said)
    for words in ("seed 3: failed: NotFinite: the loss is nan", "seeds 3-4: missing", "npo/", "not strict JSON", "!  degraded"):
        assert words in whole
    assert ">  running" not in whole  # the legend has the signs that are there
    assert "--seeds 3 --fresh" in whole and "--method ppo" in whole


def test_every_world_of_a_task_is_numbered_and_explained(tmp_path):
    for digits in ("0a", "1b"):
        scorers = {"reward": {"name": "words"}, "judge": {"name": "mine", "version": 1, "sha256": digits * 32}}
        identity = fake.identity("toxicity", "quark", 0, scorers=scorers)
        fake.write_run(tmp_path, "quark", 0, status="failed", id8=digits * 4, manifest={"identity": identity})
    fake.write_run(tmp_path, "quark", 0, task="sentiment")
    said = status.text(status.status([tmp_path]), tmp_path)
    worlds = [line.strip() for line in said.splitlines() if "scorers.judge" in line]
    assert sorted(line.partition(": ")[2] for line in worlds) == [f"scorers.judge mine sha256 {d * 4}" for d in ("0a", "1b")]
    assert [line.partition(": ")[0] for line in worlds] == ["toxicity (1)", "toxicity (2)"]
    assert "sentiment  toxicity (1)  toxicity (2)" in said and "quark, toxicity (2), preset micro" in said
    assert "worlds" not in status.text(status.status([tmp_path / "micro" / "sentiment"]), tmp_path)


def test_stale_and_running_cells(tmp_path, record):
    dir = record
    change(dir, "identity", "method", "version", to=0)
    at_work = fake.write_run(tmp_path, "ppo", 2, status="running")
    (at_work / ".lock").touch()
    change(at_work, "identity", to=json.loads((dir / "manifest.json").read_text())["identity"])
    change(at_work, "identity", "method", "version", to=1)
    change(at_work, "identity", "method", "name", to="ppo")
    rows = [row.plain() for row in read_run(at_work).trajectory]
    rows[-1]["cost"] = {"flops": 1e12}
    fake.dump_rows(at_work / "trajectory.jsonl", rows)
    assert not held(at_work) and not held(dir)
    assert {c.method: c.state for c in status.status([tmp_path]).cells} == {"quark": "stale", "ppo": "partial"}
    with (at_work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert held(at_work)
        found = status.status([tmp_path])
        said = status.text(found, tmp_path)
    assert "--seeds 0,2" in said  # of quark: stale, and missing
    assert "0/2 >1 -1 25%" in said and "0/2 s1 -1" in said and "version 0, the code has 2" in said
    assert all("--seeds 0 " in c + " " for cell in found.cells if cell.method == "ppo" for c in status.commands(cell, tmp_path))


def test_hostile_names_cannot_command_the_terminal(tmp_path):
    names = {"method": HOSTILE, "task": HOSTILE, "preset": HOSTILE, "error": {"type": HOSTILE, "message": HOSTILE}}
    fake.write_run(tmp_path, "quark", 0, status="failed", manifest=names)
    found = status.status([tmp_path])
    said = status.text(found, tmp_path) + json.dumps(status.data(found, tmp_path))
    assert "\x1b" not in said and "\u202e" not in said and "red" in said


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"kl_coef": 0.1, "evaluation.points": 2, "budget.updates": 6},
        {"model.id": "some/model", "task.prompts": "a b.jsonl", "task.reward": "toxic", "scorers.toxic.kind": "detoxify"},
        {"task.decoding.max_new_tokens": 9, "evaluation.split": "validation", "optimizer.betas": [0.9, 0.95]},
    ],
)
def test_the_settings_of_a_record_can_be_said_again(told):
    settings = resolve("micro", "quark", "toxicity", told)
    said = status.settings_apart(settings.model_dump(), "quark", "toxicity")
    assert resolve("micro", "quark", "toxicity", said) == settings
    assert len(said) >= len(told)


def test_a_missing_cell_is_run_at_the_settings_of_its_world(tmp_path):
    """ppo has runs on sentiment alone: on toxicity it takes what quark's runs there share, and nothing of quark's own."""
    chosen = {"budget.updates": 20, "evaluation.split": "validation"}
    for method, task, own in (("quark", "toxicity", {"kl_coef": 0.1}), ("ppo", "sentiment", {})):
        settings = resolve("micro", method, task, chosen | own).model_dump()
        fake.write_run(tmp_path, method, 0, task=task, manifest={"settings": settings})
    (missing,) = [c for c in Study(*find_runs([tmp_path])).cells if (c.method, c.task) == ("ppo", "toxicity")]
    (command,) = status.commands(missing, tmp_path / "elsewhere")
    assert "--set budget.updates=20" in command and "evaluation.split=" in command and "kl_coef" not in command
    assert f"--out {tmp_path} " in command + " " and "--method ppo --task toxicity --preset micro" in command
    assert json.dumps(status.data(status.status([tmp_path]), tmp_path))


def test_what_finishes_a_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.records.stale.outdated", lambda runs: {})
    settings = resolve("micro", "quark", "toxicity", {"kl_coef": 0.1}).model_dump()
    for seed, state in enumerate(("done", "failed", "interrupted", "degraded")):
        fake.write_run(tmp_path, "quark", seed, status=state, manifest={"settings": settings})
    mine = {"provenance": {"argv": ["run", "--method", "some/mine.py", "--task", "toxicity"]}}
    fake.write_run(tmp_path, "mine", 0, manifest=mine)
    fake.write_run(tmp_path, "lost", 0)
    fake.write_run(tmp_path, "lost", 7, task="sentiment", preset="gone")
    external = {"identity": fake.identity("toxicity", "eval", 0), "provenance": {"argv": ["eval", "--policy", "a b"]}}
    fake.write_run(tmp_path, "eval-b", 0, status="failed", manifest=external)
    found = status.status([tmp_path])
    said = {c.method: status.commands(c, tmp_path) for c in found.cells if c.preset == "micro"}
    head = f"harness run --method quark --task toxicity --preset micro --set kl_coef=0.1 --out {tmp_path} --seeds"
    assert said["quark"] == [f"{head} 1-2", f"{head} 3 --fresh"]
    assert shlex.split(said["mine"][0])[:4] == ["harness", "run", "--method", "some/mine.py"]
    assert shlex.split(said["lost"][0])[3] == "./lost.py" and said["lost"][0].endswith("--seeds 1-3")
    assert shlex.split(said["eval-b"][0])[:4] == ["harness", "eval", "--policy", "a b"]
    assert status.short([5, 0, 1, 2, 9, 8]) == "0-2,5,8-9" and core_settings.parse_seeds("0-2,5,8-9") == [0, 1, 2, 5, 8, 9]


def test_a_preset_that_is_not_installed_is_taken_for_a_file(tmp_path):
    settings = resolve("micro", "quark", "toxicity", {"kl_coef": 0.1}).model_dump() | {"preset": "gone"}
    fake.write_run(tmp_path, "quark", 0, status="failed", preset="gone", manifest={"settings": settings})
    assert "--preset ./gone.toml " in status.commands(status.status([tmp_path]).cells[0], tmp_path)[0]


def test_the_versions_in_the_source_are_those_of_the_classes():
    now = stale.Now()
    for kind in ("method", "task"):
        for name in registry.table(kind):
            assert now.version(kind, name) == registry.load(kind, name).version, name
    from harness.measure.evaluator import EVALUATION_VERSION
    from harness.policy.loading import load_model
    from harness.tasks.micro import world

    assert now.evaluation() == EVALUATION_VERSION
    for name in ("policy", "judge"):
        assert now.model(name) == {k: v for k, v in load_model(str(world.folder() / name)).identity.items() if k != "name"}
    assert now.version("method", "nobody's") is None and now.scorer("nobody's") is None


def test_a_version_that_is_no_literal_is_not_guessed(tmp_path, monkeypatch):
    (tmp_path / "oddly.py").write_text(
        "class A:\n version: int = 3\nclass B(A): ...\nclass C:\n version = 1 + 1\nclass D(E): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [plugins.constant("oddly", "version", c) for c in "ABCDE"] == [3, 3, None, None, None]
    assert plugins.constant("nowhere_at_all", "version") is None and plugins.constant("sys", "version") is None


def test_a_record_of_the_code_as_it_is_is_not_stale(record):
    assert stale.outdated([read_run(record)]) == {}


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("identity", "method", "version"), 0, "method quark: version 0, the code has 2"),
        (("identity", "method", "version"), 9, "update the package"),
        (("identity", "task", "version"), 0, "task toxicity: version 0"),
        (("identity", "evaluation", "version"), 0, "the evaluation: version 0"),
        (("identity", "schema"), 0, "schema"),
        (("identity", "data", "version"), 0, "the micro world: version 0"),
        (("identity", "data", "sha256", "prompts.jsonl.gz"), "ab", "prompts.jsonl.gz changed"),
        (("identity", "scorers", "reward", "sha256"), "ab", "scorer toxicity-linear: its words"),
        (("identity", "scorers", "judge", "version"), 0, "scorer insult-judge: version 0"),
        (("identity", "model", "sha256"), "ab", "policy model changed"),
        (("identity", "fluency", "sha256"), "ab", "judge model changed"),
    ],
)
def test_what_makes_a_record_stale(record, path, to, said):
    (why,) = change(record, *path, to=to)
    assert said in why


def test_what_cannot_be_compared_is_not_stale(record):
    dir = record
    assert change(dir, "identity", "method", to={"name": "quark", "version": 0, "sha256": "ab"}) == []
    assert change(dir, "identity", "scorers", "reward", to={"name": "detoxify", "version": 0}) == []
    assert change(dir, "identity", "data", to={"name": "file", "version": 0}) == []


def test_the_command_answers_without_torch(tmp_path):
    fake.write_study(tmp_path)
    code = (
        "import sys; sys.argv = ['harness', *sys.argv[1:]]; import harness.cli.main\n"
        "try: harness.cli.main.main()\n"
        "except SystemExit as e: code = e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    call = [sys.executable, "-c", code, "status"]
    done = subprocess.run([*call, tmp_path, "--json"], capture_output=True, text=True)
    assert done.returncode == 4, done.stderr  # the synthetic task is of an older version
    rows = json.loads(done.stdout.splitlines()[-1])["cells"]
    assert {row["state"] for row in rows} == {"stale"} and rows[0]["seeds"] == {"0": "stale", "1": "stale", "2": "stale"}
    gone = subprocess.run([*call, "--out", tmp_path / "nothing"], capture_output=True, text=True)
    assert gone.returncode == 2 and "make one with harness run" in gone.stderr


def test_all_done_is_exit_0(tmp_path, record, capsys):
    assert status.status_command([tmp_path], tmp_path, False) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["quark", "1/1"]
    with pytest.raises(EmptySelection):
        status.status([tmp_path / "none"])
