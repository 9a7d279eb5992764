"""The command line as a user meets it: one line for an error, the right exit code, nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import folders
import pytest
import quick
import typer
from places import ROOT

from harness.cli import listing, main, result
from harness.core import registry, settings
from harness.core.errors import BadData, BadSetting, EmptySelection, MissingPrerequisite, UnknownName
from harness.core.settings import parse_override, read_preset, resolve
from harness.records.read import read_run

pytestmark = pytest.mark.usefixtures("few_prompts")

QUARK = ["run", "--method", "quark", "--task", "toxicity"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return folders.gpt2_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return folders.llama_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def rtp(tmp_path_factory) -> Path:
    """Prompts in RealToxicityPrompts' own row shape, nulls included."""
    path = tmp_path_factory.mktemp("prompts") / "rtp.jsonl"
    rows = [
        {
            "filename": "f", "begin": 0, "end": 9, "challenging": i % 5 == 0,
            "prompt": {"text": f"the cat number {i} sat", "toxicity": None if i % 7 == 0 else i % 10 / 10},
            "continuation": {"text": " on the mat", "toxicity": None},
        }
        for i in range(120)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """Prompts in the {"text", "score"} shape."""
    path = tmp_path_factory.mktemp("prompts") / "scored.jsonl"
    path.write_text("".join(json.dumps({"text": f"a quiet garden {i}", "score": i % 10 / 10}) + "\n" for i in range(120)))
    return path


def run(out: Path, method: str = "quark", task: str = "toxicity", **more) -> list:
    return ["run", "--method", method, "--task", task, "--out", out, *quick.flags(method, **more)]


def one_error(err: str) -> str:
    """The one line of an error; progress may stand before it, a traceback may not."""
    lines = [line for line in err.splitlines() if not line.lstrip()[:1].isdigit()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in err, err
    return lines[0]


@pytest.mark.pictures
def test_a_run_its_record_and_its_picture(harness, tmp_path):
    code, out, err = harness(*run(tmp_path), "--json", "--profile")
    assert code == 0
    summary = json.loads(out.splitlines()[-1])
    activities = ["loading", "evaluation", "training", "sampling", "scoring", "writing", "other"]
    assert sorted(summary["profile"]) == sorted(activities) and min(summary["profile"].values()) >= 0
    spent, rest = sum(summary["profile"].values()), summary["cost"]["seconds"]
    assert rest - 0.1 <= spent <= rest + summary["profile"]["loading"] + 0.1  # the rest begins after loading
    path = tmp_path / summary["run_dir"]
    assert read_run(path).summary.plain() == summary
    assert (path / "picture.png").stat().st_size > 20_000 and (path / "picture.svg").read_text().startswith("<?xml")
    assert "loading" in err.splitlines()[0]

    code, out, err = harness(*run(tmp_path))
    assert code == 0 and "already done" in err
    assert "optimum" in out and str(path) in out and "picture" in out and "masked" in out and "s sampling" in out

    code, out, _ = harness("list", "runs", "--out", tmp_path)
    assert code == 0 and str(path) in out and "done" in out
    code, out, _ = harness("show", "run", summary["run_id"], "--out", tmp_path, "--json")
    assert code == 0 and json.loads(out) == summary
    code, out, _ = harness("show", "run", path)
    assert code == 0 and json.loads(out) == summary

    code, out, _ = harness("report", tmp_path, "-o", tmp_path / "page")
    assert code == 0
    for page in ("index.html", "report.md"):
        assert "writing, s" in (tmp_path / "page" / page).read_text()

    same = ["--task", "toxicity", "--out", tmp_path, "--json", *quick.flags("base")]
    code, out, _ = harness("eval", "--policy", path / "policy", *same)
    placed = json.loads(out.splitlines()[-1])
    assert code == 0 and placed["final"] == summary["final"] and placed["cost"]["flops"] == 0


@pytest.mark.parametrize("method", ["base", "best-of-n", "best_quantile", "unlikelihood"])
def test_every_method_runs(harness, tmp_path, method):
    code, out, _ = harness(*run(tmp_path, method.replace("-", "_")), "--json")
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and summary["method"] == method.replace("-", "_")
    assert not summary["frontier"]["above"]
    assert summary["cost"]["updates"] == (6 if method in ("best_quantile", "unlikelihood") else 0)
    if method == "base":
        one, all_of_it = (summary[side]["reward"] for side in ("final", "base"))  # few draws of this seed; all base responses
        assert abs(one["value"] - all_of_it["value"]) < 5 * (one["stderr"] ** 2 + all_of_it["stderr"] ** 2) ** 0.5
        assert summary["final"]["kl"]["value"] == 0 == summary["cost"]["flops"] and one["n"] < all_of_it["n"]
    if method == "best-of-n":
        assert summary["final"]["reward"]["value"] > summary["base"]["reward"]["value"]
        assert summary["final"]["entropy"]["value"] is None and "closed form" in summary["final"]["entropy"]["reason"]


def test_a_name_answers_to_hyphens_and_underscores():
    assert registry.canonical("method", "best-of-n") == registry.canonical("method", "best_of_n") == "best_of_n"


REAL = {"task__fluency": "none", "evaluation__split": "test", "evaluation__base_samples": 50, "budget__updates": 2}


@pytest.mark.parametrize(("model", "prompts"), [("gpt2", "rtp"), ("llama", "scored")])
def test_real_models_and_prompts(harness, tmp_path, request, model, prompts):
    model, prompts = request.getfixturevalue(model), request.getfixturevalue(prompts)
    world = ["--model", model, "--prompts", prompts]
    code, out, _ = harness(*run(tmp_path, **REAL), *world, "--json")
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and summary["final"]["kl"]["value"] > 0
    assert summary["final"]["ppl"]["value"] is None and "no fluency model" in summary["final"]["ppl"]["reason"]
    assert summary["final"]["clean_nll"]["value"] is None
    kept = [p.name for p in (tmp_path / ".cache").iterdir()]
    assert len(kept) == 3  # responses, scores and the evaluation, for the next run on this model
    code, out, err = harness(*run(tmp_path, "base", **REAL), *world, "--seed", "1")
    assert code == 0 and "sampling base responses" not in err


def test_detoxify_as_the_reward(harness, tmp_path, gpt2, rtp):
    checkpoint, config = folders.detoxify_checkpoint(tmp_path / "detoxify")
    scorer = {"task__reward": "detoxify", "scorers__detoxify__checkpoint": checkpoint, "scorers__detoxify__config": config}
    code, out, _ = harness(*run(tmp_path, **REAL, **scorer), "--model", gpt2, "--prompts", rtp, "--json")
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and 0 < summary["base"]["reward"]["value"] < 1
    identity = read_run(tmp_path / summary["run_dir"]).manifest.identity
    assert identity["scorers"]["reward"]["name"] == "detoxify" and len(identity["scorers"]["reward"]["sha256"]) == 64


def test_the_micro_judge_reads_any_models_text(harness, tmp_path, gpt2, rtp):
    small = REAL | {"task__fluency": "micro"}
    code, out, _ = harness(*run(tmp_path, **small), "--model", gpt2, "--prompts", rtp, "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["final"]["ppl"]["value"] > 1


def test_a_method_in_a_file(harness, tmp_path):
    source = (ROOT / "methods" / "best_quantile.py").read_text()
    mine = tmp_path / "mine.py"
    mine.write_text(source)
    command = run(tmp_path, "best_quantile", budget__updates=2)
    command[command.index("best_quantile")] = mine
    code, out, _ = harness(*command, "--json")
    first = json.loads(out.splitlines()[-1])
    assert code == 0 and first["method"] == "mine"
    same = quick.METHODS["best_quantile"] | {"budget__updates": 2}
    assert quick.cell(tmp_path, str(mine), **same).run_id == first["run_id"]
    mine.write_text(source + "# changed\n")
    assert quick.cell(tmp_path, str(mine), **same).run_id != first["run_id"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "--method", "quakr", "--task", "toxicity"], 2, "did you mean 'quark'"),
        (["run", "--method", "quark", "--task", "toxcity"], 2, "did you mean 'toxicity'"),
        ([*QUARK, "--preset", "mirco"], 2, "did you mean 'micro'"),
        ([*QUARK, "--set", "kl_coeff=1"], 2, "did you mean 'kl_coef'"),
        ([*QUARK, "--set", "kl_coef=-1"], 2, "greater than or equal to 0; found -1"),
        ([*QUARK, "--set", "evaluation.point=1"], 2, "did you mean 'points'"),
        ([*QUARK, "--set", "evalution.points=1"], 2, "did you mean 'evaluation'"),
        ([*QUARK, "--set", "kl_coef"], 2, "--set takes key=value"),
        ([*QUARK, "--set", "model.id.x=1"], 2, "to be a section; it is a value"),
        ([*QUARK, "--set", "task.reward=lexikon"], 2, "did you mean 'lexicon'"),
        ([*QUARK, "--set", "scorers.toxicity-linear.x=1"], 2, "has no option 'x'"),
        ([*QUARK, "--set", "scorers.lexicon.x=1"], 2, "scorer 'lexicon' has no option 'x'"),  # a scorer of other tasks
        ([*QUARK, "--set", "task.decoding.max_new_tokens=128"], 2, "leaves no prompt"),
        ([*QUARK, "--set", "task.decoding.max_new_tokens=120"], 2, "lower task.decoding.max_new_tokens"),
        ([*QUARK, "--set", "model.device=tpu0"], 2, "not usable here"),
        ([*QUARK, "--budget", "-1"], 2, "greater than 0"),
        ([*QUARK, "--seeds", "a-b"], 2, "--seeds takes 0-4"),
        ([*QUARK, "--seeds", "4-0"], 2, "names no seed"),
        ([*QUARK, "--model", "./nowhere"], 3, "no model folder"),
        ([*QUARK, "--prompts", "nowhere.jsonl"], 3, "cannot read the prompts"),
        ([*QUARK, "--set", "task.reward=detoxify"], 2, "scorers.detoxify.OPTION"),
        (["run", "--method", "nowhere.py", "--task", "toxicity"], 3, "no method file"),
        (["eval", "--policy", "./nowhere", "--task", "toxicity"], 3, "no model folder"),
        (["list", "method"], 2, "did you mean 'methods'"),
        (["show", "methd", "quark"], 2, "did you mean 'method'"),
        (["show", "method", "quakr"], 2, "did you mean 'quark'"),
        (["report", "nowhere"], 2, "no"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(harness, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    found, out, err = harness(*words)
    assert (found, out) == (code, "") and said in one_error(err)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 2, "has no rows"),
        ('{"text": "a"}\n{"text": \n', 3, "line 2: not JSON"),
        ('{"text": "a"}\n{"score": 1}\n', 3, "line 2"),
        ('{"text": "' + "long " * 200 + '"}\n', 2, "too few"),
        ("".join(f'{{"text": "{f"long{i} " * 100}"}}\n' for i in range(150)), 2, "shorten or remove the prompt"),
        ("".join(f'{{"text": "{"same " * 10}{i}"}}\n' for i in range(150)), 2, "shares eight words with a held-out one"),
    ],
)
def test_prompt_files_that_cannot_be_used(harness, tmp_path, text, code, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    found, _, err = harness(*run(tmp_path), "--prompts", path)
    assert found == code and said in one_error(err)


def test_a_corrupt_model(harness, tmp_path, gpt2):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in gpt2.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 100 if path.suffix == ".safetensors" else None])
    code, _, err = harness(*run(tmp_path), "--model", broken)
    assert code == 3 and str(broken) in one_error(err)


def test_a_results_folder_that_is_a_file(harness, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = harness(*run(tmp_path / "file"))
    assert code == 2 and "--out" in one_error(err)


def test_records_that_are_corrupt(harness, tmp_path):
    cell = quick.cell(tmp_path, "base")
    cell.path.mkdir(parents=True)
    (cell.path / "manifest.json").write_text("{")
    code, _, err = harness(*run(tmp_path, "base"))
    assert code == 1 and "--fresh" in one_error(err)
    code, out, err = harness("list", "runs", "--out", tmp_path)
    assert code == 0 and "unreadable" in out
    code, _, err = harness(*run(tmp_path, "base"), "--fresh")
    assert code == 0


def test_a_corrupt_cache_is_named_and_made_again(harness, tmp_path, gpt2, rtp):
    command = [*run(tmp_path, "base", **REAL), "--model", gpt2, "--prompts", rtp]
    assert harness(*command)[0] == 0
    cached = next((tmp_path / ".cache").glob("responses-*.npz"))
    cached.write_bytes(b"broken")
    code, _, err = harness(*command, "--fresh")
    assert code == 0 and cached.name in err and "they are computed again" in err and cached.stat().st_size > 1000


def test_a_degraded_run_exits_4(harness, tmp_path, monkeypatch):
    from harness.tasks.micro.scorers import InsultJudge

    whole = InsultJudge.score

    def score(self, prompts, responses):
        scores = whole(self, prompts, responses)
        scores[::3] = float("nan")
        return scores

    monkeypatch.setattr(InsultJudge, "score", score)
    code, out, _ = harness(*run(tmp_path, "base"))
    assert code == 4 and "degraded" in out and "scores are missing" in out


def test_a_policy_of_another_vocabulary(harness, tmp_path, gpt2):
    code, _, err = harness("eval", "--policy", gpt2, "--task", "toxicity", "--out", tmp_path, *quick.flags("base"))
    assert code == 3 and "vocabulary" in one_error(err)


def test_dry_run_shows_the_settings_and_runs_nothing(harness, tmp_path):
    code, out, err = harness(*run(tmp_path), "--dry-run", "--budget", "1e9")
    plan = json.loads(out)
    assert code == 0 and plan["settings"]["budget"]["flops"] == 1e9 and plan["method"] == "quark"
    assert not list(tmp_path.iterdir()) and err == ""
    code, out, err = harness(*run(tmp_path, kl_coeff=1), "--dry-run")
    assert code == 2 and "kl_coef" in one_error(err)


def test_cards(harness):
    code, out, _ = harness("show", "method", "quark")
    assert code == 0 and "2205.13636" in out and "num_quantiles" in out and "preset micro" in out
    code, out, _ = harness("show", "task", "toxicity", "--json")
    assert code == 0 and json.loads(out)["presets"]["micro"]["reward"] == "toxicity-linear"
    presets = json.loads(harness("show", "task", "repetition", "--json")[1])["presets"]
    assert presets["gpt2"]["reward"] == "diversity" and "methods" not in presets["gpt2"]
    code, out, _ = harness("show", "preset", "micro", "--json")
    assert code == 0 and json.loads(out)["tables"] == read_preset("micro")


def test_the_environment(harness):
    code, out, _ = harness("env", "--json")
    assert code == 0 and json.loads(out)["torch"][0].isdigit()
    assert listing.environment()["unlearning-harness"] == "0.1.0"


def test_text_of_policies_is_masked_and_cannot_command_the_terminal():
    assert result.mask("You daft muppet.") == "(hidden: 3 words, 16 characters)"
    assert result.printable("a\x1b[31mb\nc") == "a [31mb c"


def test_seeds():
    assert settings.parse_seeds("0-2,5,1") == [0, 1, 2, 5]
    with pytest.raises(BadSetting):
        settings.parse_seeds("x")
    with pytest.raises(EmptySelection):
        settings.parse_seeds("3-1")


def test_overrides_are_toml_or_text():
    assert parse_override("a.b=1e-3") == ("a.b", 1e-3)
    assert parse_override("a=[1, 2]") == ("a", [1, 2])
    assert parse_override("a=some/path") == ("a", "some/path")
    assert resolve("micro", "quark", "toxicity", ["kl_coef=0.5"]).method["kl_coef"] == 0.5
    with pytest.raises(UnknownName, match="preset"):
        read_preset("nano")


def test_plugins_that_are_broken(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.table.__globals__, "entry_points", lambda group: [])
    (tmp_path / "two.py").write_text("class A:\n def train(s, t): ...\nclass B:\n def train(s, t): ...\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    with pytest.raises(BadData, match="found 2"):
        registry.load("method", str(tmp_path / "two.py"))
    with pytest.raises(BadData, match="ZeroDivisionError"):
        registry.load("method", str(tmp_path / "raises.py"))
    monkeypatch.setattr("harness.methods.METHODS", {"gone": ("harness.methods.gone:Gone", "")})
    with pytest.raises(MissingPrerequisite, match="cannot be imported"):
        registry.load("method", "gone")


class Point:
    def __init__(self, name):
        self.name, self.value, self.dist = name, "elsewhere:Method", None


def test_plugins_of_other_packages(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("mine")])
    assert registry.table("method")["mine"] == ("elsewhere:Method", "from elsewhere:Method")
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("quark")])
    assert registry.table("method")["quark"][0] == "harness.methods.quark:Quark"


@pytest.mark.parametrize("words", [["report", "."], ["run", "--method", "base", "--task", "toxicity"], ["env"]])
def test_control_c_is_one_line(harness, tmp_path, monkeypatch, words):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("records.report_command", "run.run_command", "listing.environment"):
        monkeypatch.setattr(f"harness.cli.{name}", pressed)
    code, out, err = harness(*words)
    assert (code, out) == (130, "") and "interrupted" in one_error(err) and "same command" in err


def test_a_file_that_ends_too_early_inside_is_not_called_an_interruption(tmp_path, monkeypatch, capsys):
    def ended():
        raise EOFError("ran out of input")

    monkeypatch.setattr("harness.cli.listing.environment", ended)
    monkeypatch.setattr(sys, "argv", ["harness", "env"])
    with pytest.raises(typer.Abort) as found:
        main.main()
    assert isinstance(found.value.__cause__, EOFError) and "interrupted" not in capsys.readouterr().err


def test_errors_show_their_trace_only_when_asked(tmp_path):
    words = [sys.executable, "-m", "harness.cli.main", "run", "--method", "quakr", "--task", "toxicity"]
    env = os.environ | {"HARNESS_DEBUG": "1"}
    quiet = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    loud = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert quiet.returncode == 2 and "Traceback" not in quiet.stderr and "Traceback" in loud.stderr


def test_the_bare_command_shows_the_help(harness):
    code, out, err = harness()
    assert code == 0 and not err and out.startswith("Usage: ") and "\n  sweep " in out
