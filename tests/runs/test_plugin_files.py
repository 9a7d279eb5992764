"""Tasks, scorers and presets of one's own, each in a file: `--task ./t.py`, `--set task.reward=./s.py`, `--preset ./p.toml`."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import quick

from harness.cli.status import commands, status
from harness.core.errors import BadData, BadSetting, MissingPrerequisite, UnknownName
from harness.core.settings import preset_tables, read_preset
from harness.records.read import find_runs
from harness.runs import assemble, named
from harness.runs.sweep.plan import plan, told

pytestmark = pytest.mark.usefixtures("few_prompts")
TASK = """
from harness.api import TextTask

class Mine(TextTask):
    version = 1
    like = "toxicity"
    settings = {"reward": "./shout.py", "kl_cap": 0.7}
"""
SCORER = """
import numpy as np

class Shout:
    def __init__(self, most: int = 3):
        self.most = most

    def score(self, prompts, responses):
        return np.array([1 - min(self.most, r.count("!")) / self.most for r in responses])
"""
PRESET = """
extends = "micro"
[budget]
flops = 1e9
[evaluation]
points = 2
[methods.quark]
kl_coef = 0.9
[tasks.toxicity]
kl_cap = 1.0
[tasks."mine.py"]
judge = "sentiment-judge"
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """mine.py, shout.py and own.toml in the working folder."""
    for name, text in (("mine.py", TASK), ("shout.py", SCORER), ("own.toml", PRESET)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cell(task: str = "./mine.py", preset: str = "micro", *sets: str):
    return assemble.named_cell("base", task, preset, 0, [*quick.overrides("base"), *sets], {}, Path("out"), True)


def test_a_task_file_takes_the_tables_of_the_task_it_is_like_and_its_own_over_them(files):
    found = named.settings("micro", "quark", "./mine.py").task
    like = named.settings("micro", "quark", "toxicity").task
    assert found == like.model_copy(update={"reward": "shout.py", "kl_cap": 0.7})
    assert named.settings("./own.toml", "quark", "./mine.py").task.judge == "sentiment-judge"


def test_a_record_knows_a_file_by_its_stem_and_its_bytes_wherever_it_lies(files):
    here = cell()
    assert (here.task_name, here.settings.task.reward) == ("mine", "shout")
    task, reward = here.identity["task"], here.identity["scorers"]["reward"]
    assert (task["name"], task["version"], len(task["sha256"])) == ("mine", 1, 64)
    assert reward["name"] == "shout" and reward["options"] == {} and len(reward["sha256"]) == 64
    (files / "elsewhere").mkdir()
    for name in ("mine.py", "shout.py"):
        shutil.copy(name, files / "elsewhere" / name)
    there = cell("./elsewhere/mine.py")
    assert there.identity == here.identity and there.path == here.path and there.settings == here.settings
    (files / "shout.py").write_text(SCORER + "\n# another\n")
    assert cell().run_id != here.run_id


def test_the_options_of_a_scorer_file_go_by_its_stem_and_are_part_of_the_identity(files):
    ids = {cell("toxicity", "micro", "task.reward=./shout.py", *more).run_id for more in ((), ("scorers.shout.most=5",))}
    assert len(ids) == 2
    found = cell("toxicity", "micro", "task.reward=loud", "scorers.loud.kind=./shout.py", "scorers.loud.most=2")
    assert found.settings.scorers["loud"] == {"kind": "shout", "most": 2}
    with pytest.raises(BadSetting, match=r"scorer 'shout' has no option 'least'; known: most, timeout"):
        cell("toxicity", "micro", "task.reward=./shout.py", "scorers.shout.least=5")


SCORER_TYPOS = (
    (
        ["task.reward=vader", "scorers.vader.directoin=negative"],
        "scorer 'vader' has no option 'directoin'; known: direction, timeout",
    ),
    (["task.reward=vader", "scorers.vader.direction=negativ"], "direction is 'negativ'; expected positive or negative"),
    (["task.reward=vader", "scorers.vader.timeout=soon"], "scorers.vader.timeout is 'soon'; expected seconds above 0"),
    (["task.judge=./shout.py", "scorers.shout.least=5"], "scorer 'shout' has no option 'least'; known: most, timeout"),
    (["task.judge=./shout.py", "scorers.shout.timeout=0"], "scorers.shout.timeout is 0; expected seconds above 0"),
    (["task.judge=mine", "scorers.mine.kind=./shout.py", "scorers.mine.x=5"], "scorer 'mine' has no option 'x'"),
    (["task.judge=mine", "scorers.mine.kind=classifier"], "missing a required argument: 'model'"),
)


@pytest.mark.parametrize(("sets", "said"), SCORER_TYPOS)
def test_a_dry_run_checks_the_options_of_its_scorers(harness, files, sets, said):
    words = ("run", "--method", "base", "--task", "toxicity", *(word for item in sets for word in ("--set", item)))
    code, out, err = harness(*words, "--dry-run")
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_a_dry_run_builds_no_scorer_of_a_file(harness, files):
    (files / "shout.py").write_text(SCORER.replace("self.most = most", "raise SystemExit('it read its weights')"))
    words = ("run", "--method", "base", "--task", "toxicity", "--set", "task.judge=./shout.py")
    assert harness(*words, "--dry-run")[0] == 0


def test_a_file_of_its_own_bytes_is_not_both_reward_and_judge(files):
    with pytest.raises(BadSetting, match="the judge is the reward"):
        cell("./mine.py", "micro", "task.judge=./shout.py")


def test_a_preset_file_overrides_key_by_key(files):
    ours, tables = read_preset("micro"), preset_tables("./own.toml")
    assert tables["evaluation"] == ours["evaluation"] | {"points": 2}
    assert tables["methods"]["quark"] == ours["methods"]["quark"] | {"kl_coef": 0.9}
    assert tables["tasks"]["toxicity"] == ours["tasks"]["toxicity"] | {"kl_cap": 1.0}
    found = named.settings("./own.toml", "quark", "toxicity")
    assert named.recorded(found).preset == "own" and found.budget == {"flops": 1e9}
    told = {"budget.flops": 1e9, "evaluation.points": 2, "kl_coef": 0.9, "task.kl_cap": 1.0}
    same = named.settings("micro", "quark", "toxicity", told)
    assert same.model_copy(update={"preset": "own"}) == named.recorded(found)


METHOD = """
from harness.methods.base import Base

class Trick(Base):
    pass
"""


@pytest.mark.parametrize(("task", "method", "scorer"), [("mine", "trick", "shout"), ('"mine.py"', '"trick.py"', '"shout.py"')])
def test_the_table_of_a_file_goes_by_its_stem_or_by_its_name(files, task, method, scorer):
    told = f"[tasks.{task}]\nkl_cap = 0.6\n[tasks.{task}.methods.{method}]\nb = 2\n[methods.{method}]\na = 1\nb = 1\n"
    (files / "p.toml").write_text(
        f'extends = "micro"\n{told}[tasks.toxicity.methods.{method}]\nb = 3\n[scorers.{scorer}]\nmost = 5'
    )
    (files / "far").mkdir()
    for name in ("mine.py", "shout.py"):
        (files / name).rename(files / "far" / name)  # neither beside the preset nor in the working folder
    (files / "far" / "trick.py").write_text(METHOD)
    with pytest.raises(BadSetting, match="named 'mine'") if task == "mine" else nullcontext():
        named.settings("./p.toml", "./far/trick.py", "toxicity")
    found = named.settings("./p.toml", "./far/trick.py", "./far/mine.py")
    assert (found.task.kl_cap, found.method) == (0.6, {"a": 1, "b": 2})
    assert found.scorer_options("./far/shout.py") == {"most": 5}
    (files / "mine.py").write_text(TASK)  # in the working folder, so that it is known as a file whatever runs
    assert named.settings("./p.toml", "./far/trick.py", "toxicity").method == {"a": 1, "b": 3}


def test_a_stem_that_is_also_an_installed_name_is_ambiguous_for_the_file_alone(files):
    (files / "quark.py").write_text(METHOD)
    (files / "p.toml").write_text('extends = "micro"\n[methods.quark]\nkl_coef = 0.7')
    assert named.settings("./p.toml", "quark", "toxicity").method["kl_coef"] == 0.7
    with pytest.raises(BadSetting, match=r"the installed method and the file quark.py; use \[methods.\"quark.py\"\]"):
        named.settings("./p.toml", "./quark.py", "toxicity")
    (files / "p.toml").write_text('extends = "micro"\n[methods.quark]\nkl_coef = 0.7\n[methods."quark.py"]\na = 1')
    assert named.settings("./p.toml", "./quark.py", "toxicity").method == {"a": 1}


def test_what_a_preset_says_of_a_thing_goes_when_a_file_swaps_it(files):
    (files / "swap.toml").write_text('extends = "gpt2"\n[tasks.toxicity]\nprompts = "./p.jsonl"\n[model]\nid = "./m"\n')
    tables = preset_tables("./swap.toml")
    assert "data" in read_preset("gpt2")["tasks"]["toxicity"] and "data" not in tables["tasks"]["toxicity"]
    assert tables["tasks"]["toxicity"]["prompts"] == "p.jsonl" and tables["model"].get("revision") is None


WRONG = {
    'model.id = "x"': "has no key extends",
    'extends = "mirco"': "did you mean 'micro'",
    'extends = "micro"\n[modle]\nid = "x"': "no table named 'modle'; did you mean 'model'",
    'extends = "micro"\nmodel = 3': "expected a table [model]",
    'extends = "micro"\n[tasks.toxicty]\nkl_cap = 1.0': "no task named 'toxicty'; did you mean 'toxicity'",
    'extends = "micro"\n[tasks]\ntoxicity = 1': "expected a table [tasks.toxicity]",
    'extends = "micro"\n[methods.quakr]\nlr = 1.0': "no method named 'quakr'; did you mean 'quark'",
    'extends = "micro"\n[tasks.toxicity]\nkl_cup = 1.0': "task toxicity: unknown setting 'task.kl_cup'; did you mean 'kl_cap'",
    "extends = [": "is not TOML",
    'extends = "micro"\n[methods.tricks]\nx = 1': "no method named 'tricks'",
    'extends = "micro"\n[tasks.toxicity.methods.quakr]\nlr = 1.0': "no method named 'quakr'; did you mean 'quark'",
    'extends = "micro"\n[tasks.toxicity]\nmethods = 3': "expected a table [tasks.toxicity.methods]",
    'extends = "micro"\n[tasks.toxicity.methods]\nquark = 3': "expected a table [tasks.toxicity.methods.quark]",
    'extends = "micro"\n[tasks.mine]\n[tasks."mine.py"]': "[tasks.mine] could mean mine.py, which has a table too",
    'extends = "micro"\n[scorers.shout]\n[scorers."shout.py"]': "are one scorer; leave one",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_preset_file_that_cannot_be_meant_is_one_line(harness, files, text):
    (files / "wrong.toml").write_text(text)
    code, out, err = harness("run", "--method", "base", "--task", "toxicity", "--preset", "./wrong.toml", "--dry-run")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and WRONG[text] in err


def test_a_file_that_is_not_there_or_has_a_name_of_ours(harness, files):
    for name in ("micro.toml", "toxicity.py", "lexicon.py"):
        (files / name).write_text(TASK)
    words = ["run", "--method", "base", "--dry-run", "--task"]
    for more, code, said in (
        (["toxicity", "--preset", "./none.toml"], 3, "cannot read the preset file none.toml"),
        (["toxicity", "--preset", "./micro.toml"], 2, "has the name of a shipped preset"),
        (["./none.py"], 3, "no task file ./none.py"),
        (["./toxicity.py"], 2, "has the name of an installed task"),
        (["toxicity", "--set", "task.reward=./lexicon.py"], 2, "has the name of an installed scorer"),
        (["toxicity", "--set", "task.reward=./none.py"], 3, "no scorer file ./none.py"),
    ):
        found, out, err = harness(*words, *more)
        assert (found, out, len(err.splitlines())) == (code, "", 1) and said in err


BARE = "from harness.api import TextTask\nclass T(TextTask):\n    version = 1\n"
TASKS = {
    BARE: (BadSetting, r'names them itself: like = "toxicity", or settings'),
    BARE + "    like = 'toxic'\n": (BadSetting, "is like 'toxic'; preset 'micro' has only facts, pep8"),
    BARE + "    like = 3\n": (BadData, "has as like an object of type 'int'; expected like = NAME"),
    BARE + "    settings = 3\n": (BadData, "has as settings an object of type 'int'"),
    BARE + "    name = ''\n": (BadData, "has the name ''; expected a name"),
    BARE.replace("version = 1", "like = 'toxicity'"): (BadData, "has no version"),
    BARE + "    def __init__(self, data): ...\n": (BadData, "cannot be made from its parts"),
    "from harness.api import TextTask\n": (BadData, "one class with a method train_prompts; found 0"),
    BARE + BARE.replace("T(", "U("): (BadData, "found 2"),
    "class T:\n    def train_prompts(self): ...\n": (BadData, "has no version"),
    "class T:\n    version = 1\n    def train_prompts(self): ...\n": (BadData, "has no identity, documents, clean_documents"),
    "import sys\nsys.exit(3)\n": (BadData, "t.py:2 cannot be imported: SystemExit"),
    BARE + "    like = 'toxicity'\n    settings = {'kl_cup': 1}\n": (BadSetting, "did you mean 'kl_cap'"),
}  # fmt: skip


@pytest.mark.parametrize("text", TASKS)
def test_a_task_file_that_is_none_is_one_line(files, text):
    (files / "t.py").write_text(text)
    error, said = TASKS[text]
    with pytest.raises(error, match=said) as found:
        named.settings("micro", "base", "./t.py")
    assert "\n" not in str(found.value)


def test_kinds_that_the_micro_world_has_not(files):
    (files / "t.py").write_text(TASK + '    kinds = ("calm", "warm")\n')
    with pytest.raises(BadSetting, match=r"does not have: 'warm'; give it kinds = \(...\) of calm, heated"):
        cell("./t.py")
    (files / "t.py").write_text(TASK.replace('like = "toxicity"', "").replace("{", '{"judge": "insult-judge", ').replace(
        '"kl_cap"', '"decoding": {"max_new_tokens": 8}, "kl_cap"'))  # fmt: skip
    with pytest.raises(BadSetting, match="does not have: none; give it kinds"):
        cell("./t.py")


def test_a_sweep_takes_files_of_every_kind(files):
    sets = [*quick.overrides("base"), "task.reward=./shout.py"]
    spec = told(None, "base", "./mine.py,toxicity", None, "./own.toml", sets, [])
    cells = plan(spec, [0], Path("out"), offline=True)
    assert [c.path.parts[1:4] for c in cells] == [("own", "mine", "base"), ("own", "toxicity", "base")]


def test_show_knows_files(harness, files):
    code, out, _ = harness("show", "task", "./mine.py")
    assert code == 0 and "preset micro: " in out and "reward=shout.py" in out
    assert harness("show", "preset", "./own.toml", "--json")[0] == 0


@pytest.fixture
def record(harness, files):
    """A finished run of base on mine.py with own.toml."""
    words = ["--task", "./mine.py", "--preset", "./own.toml", "--out", "out", *quick.flags("base")]
    code, out, err = harness("run", "--method", "base", *words, "--json")
    assert code == 0, err
    return Path("out") / json.loads(out.splitlines()[-1])["run_dir"]


def test_a_run_of_files_is_found_again_named_again_and_rescored_only_from_the_command_line(harness, files, record):
    (run,), _ = find_runs([Path("out")])
    m = run.manifest
    assert (m.preset, m.task, m.settings["task"]["reward"]) == ("own", "mine", "shout")
    (found,) = status([Path("out")]).cells
    (command,) = commands(found._replace(seeds={1: "missing"}), Path("out"))
    assert command.startswith("harness run --method base --task ./mine.py --preset ./own.toml --set")
    marker = files / "ran"
    for name in ("mine.py", "shout.py"):  # the user's files again, by the names that the record has, where it could look
        (record / name).write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    files_named = ["--task", "./mine.py", "--preset", "./own.toml"]
    for words, said in (
        ([], "names the task mine, which is not installed"),
        (["--task", "./mine.py"], "names the preset own, which does not ship"),
        (["--task", record / "mine.py", "--preset", "./own.toml"], "--task is out/own/mine/base"),
        ([*files_named, "--set", f"task.reward={record}/shout.py"], "task.reward is out/own/mine/base"),
    ):
        code, _, err = harness("verify", record, "--rescore", "--offline", *words)
        assert code == 3 and said in err and len(err.splitlines()) == 1, err
    for name in ("mine.py", "shout.py"):
        (record / name).unlink()
    code, out, err = harness("verify", record, "--rescore", "--offline", *files_named)
    assert code == 0 and "0 did not" in out, err
    Path("shout.py").write_text(SCORER + "# another\n")
    assert harness("verify", record, "--rescore", "--offline", *files_named)[0] == 5
    assert not marker.exists(), "code of the record ran"
    assert harness("verify", record, "--task", "./mine.py")[0] == 2


HOSTILE = {"task": "./x.py", "preset": "./x.toml", "reward": "./x.py", "kind": "./x.py"}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("words", ["verify RUN --rescore --offline", "status out", "list runs --out out", "show run RUN"])
def test_no_verb_loads_a_file_that_a_record_names(harness, tmp_path, monkeypatch, what, words):
    """A record that says ./x.py where a name is expected, read in a folder where that file lies."""
    import fake_records as fake

    monkeypatch.chdir(tmp_path)
    dir = fake.write_run(Path("out"), "quark", 0, **({what: HOSTILE[what]} if what == "task" else {}))
    fake.write_samples(dir, "quark")
    for file in ("manifest.json", "summary.json"):
        content = json.loads((dir / file).read_text())
        settings = named.settings("micro", "quark", "toxicity").model_dump()
        if what in ("task", "preset"):
            content[what] = HOSTILE[what]
            settings |= {"preset": HOSTILE[what]} if what == "preset" else {}
        elif what == "reward":
            settings["task"]["reward"] = HOSTILE[what]
        else:
            settings["task"]["reward"], settings["scorers"] = "mine", {"mine": {"kind": HOSTILE[what]}}
        fake.dump(dir / file, content | {"settings": settings})
    for place in (tmp_path, dir):
        (place / "x.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
        (place / "x.toml").write_text('extends = "micro"\n[tasks.toxicity]\nreward = "./x.py"\n')
    harness(*(dir if word == "RUN" else word for word in words.split()))
    assert not (tmp_path / "ran").exists(), "a file that the record names was loaded"


def test_what_may_be_a_file(files):
    from harness.core import registry

    with pytest.raises(UnknownName, match=r"no dataset named './mine.py'"):
        registry.given("dataset", "./mine.py")
    with pytest.raises(MissingPrerequisite, match=r"no scorer file none\.py"):
        registry.load("scorer", "none.py")
