"""Studies: which cells there are, in which order, and that they are the cells of `harness run`."""

import json
import math
from itertools import groupby
from pathlib import Path

import pytest
import quick
from places import ROOT

from harness.core import registry
from harness.core.errors import BadSetting, EmptySelection, MissingPrerequisite, UnknownName
from harness.core.settings import parse_override, preset_names, read_preset, resolve
from harness.runs.sweep.plan import told
from harness.runs.sweep.study import StudySpec, knob, ordered, plan_study, points, read_study

TRAINED = [name for name in registry.table("method") if registry.attribute("method", name, "knob")]


def spec(**more: object) -> StudySpec:
    return StudySpec(**({"methods": ["base", "quark", "best-of-n"], "tasks": ["toxicity", "sentiment"]} | more))


def file(path: Path, text: str = "") -> Path:
    path.write_text(f'methods = ["base", "quark", "best-of-n"]\ntasks = ["toxicity", "sentiment"]\n{text}')
    return path


def test_a_method_is_a_point_at_each_value_of_its_knob_and_one_without():
    found = [(p.choice.method, *p.choice.point.values(), p.middle) for p in points(spec(tasks=["toxicity"]))]
    assert found == [
        ("base", True),
        *(("quark", value, value == 0.2) for value in (2.0, 0.6, 0.2, 0.06, 0.02)),
        *(("best_of_n", value, value == 8) for value in (2, 4, 8, 16, 32)),
    ]


def test_an_interrupted_study_has_fewer_seeds_not_fewer_methods():
    rows = list(ordered(list(points(spec())), [0, 1, 2], [0, 3]))
    assert [seed for seed, _ in groupby(seed for _, seed in rows)] == [0, 1, 2, 3]
    middles, others = 3 * 2, (4 + 4) * 2  # each on two tasks
    assert [sum(seed == s for _, seed in rows) for s in range(4)] == [middles + others, middles, middles, others]
    assert [c.point for c, _ in rows[:middles]] == 2 * [{}, {"kl_coef": 0.2}, {"n": 8}]
    assert all(c.point and c.point.get("kl_coef") != 0.2 and c.point.get("n") != 8 for c, _ in rows[middles : middles + others])
    assert len(rows) == len({(*c.key, seed) for c, seed in rows})


def test_a_file_is_read_and_narrowed(tmp_path):
    text = "seeds = [0, 2]\n[evaluation]\npoints = 0\n[set]\nquark.lr = 1e-4\n[knobs]\nbest_of_n = [2, 3, 4]\n"
    whole = read_study(file(tmp_path / "study.toml", text))
    assert whole == spec(
        seeds=[0, 2], set={"evaluation.points": 0, "quark.lr": 1e-4}, knobs={"best_of_n": [2, 3, 4]}, other_seeds="0-1"
    )
    assert [p.choice.point for p in points(whole)][6:9] == [{"n": 2}, {"n": 3}, {"n": 4}]
    some = read_study(tmp_path / "study.toml", "best_of_n", "sentiment")
    assert (some.methods, some.tasks, some.set, some.knobs) == (
        ["best-of-n"], ["sentiment"], {"evaluation.points": 0}, {"best_of_n": [2, 3, 4]}
    )  # fmt: skip
    assert read_study(tmp_path / "study.toml", "base,quark").knobs == {}


@pytest.mark.parametrize(
    ("text", "more", "error", "said"),
    [
        ("grid.lr = [1]\n", (), BadSetting, "unknown setting 'study.grid'"),
        ("knobs = 3\n", (), BadSetting, "knobs in .* is a table of settings"),
        ("", ("quark,ppo",), UnknownName, "no method named 'ppo'.*of the study"),
        ("", (None, "pii"), UnknownName, "no task named 'pii'.*of the study"),
        ("", (",",), EmptySelection, "--methods names no method of the study"),
        ("[knobs]\nqark = [1, 2, 3]\n", (), UnknownName, "no method named 'qark'; did you mean 'quark'"),
        ("[knobs]\nbase = [1, 2, 3]\n", (), BadSetting, "method base has no knob; leave out its values"),
        ("[knobs]\nquark = [1, 2]\n", (), BadSetting, "kl_coef of method quark: expected an odd number .* found .*1, 2"),
        ("[knobs]\nquark = [1, 3, 2]\n", (), BadSetting, "from weak to strong"),
        ("[knobs]\nquark = [1, 2, -3]\n", (), BadSetting, "from weak to strong"),
        ("[knobs]\nquark = [3, 2, -1]\n", (), BadSetting, "'method.kl_coef': input should be greater than or equal to 0"),
        ("[set]\nkl_coef = 0.1\n", (), BadSetting, "the study sets kl_coef, the knob of quark"),
        ("[set]\nkl_coeff = 0.1\n", (), UnknownName, "did you mean 'kl_coef'"),
        ('seeds = "x"\n', (), BadSetting, "--seeds takes 0-4"),
        ("tasks = 3\n", (), BadSetting, "is not TOML"),
    ],
)
def test_a_study_that_cannot_be_meant_is_one_line(tmp_path, text, more, error, said):
    with pytest.raises(error, match=said) as found:
        plan_study(read_study(file(tmp_path / "study.toml", text), *more), tmp_path)
    assert "\n" not in str(found.value) and [p.name for p in tmp_path.iterdir()] == ["study.toml"]


def test_a_study_without_a_file_or_without_methods(tmp_path):
    with pytest.raises(MissingPrerequisite, match="cannot read the study file"):
        read_study(tmp_path / "nowhere.toml")
    with pytest.raises(EmptySelection, match="a study needs methods and tasks; found 0 methods, 2 tasks"):
        list(points(spec(methods=[])))


def test_a_knob_that_names_no_setting(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from harness.api import Knob, Settings\n\n\nclass MineSettings(Settings):\n    strength: float = 1.0\n\n\n"
        'class Mine:\n    version = 1\n    Settings = MineSettings\n    knob = Knob("strenght", (1, 2, 3, 4, 5))\n\n'
        "    def __init__(self, settings):\n        self.settings = settings\n\n    def train(self, trial):\n        yield {}\n"
    )
    with pytest.raises(BadSetting, match=r"mine.py, .*strenght.* names no setting; harness check method"):
        knob(str(path), "micro", "toxicity")


def test_a_preset_has_its_own_values_by_task(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'extends = "micro"\n[methods.quark]\nknob = [0.3, 0.2, 0.1]\n[tasks.sentiment.methods.quark]\nknob = [3, 2, 1]\n'
    )
    assert [knob("quark", str(mine), task).values for task in ("toxicity", "sentiment")] == [(0.3, 0.2, 0.1), (3, 2, 1)]
    assert knob("quark", str(mine), "sentiment", [9, 8, 7]).values == (9, 8, 7)
    assert "knob" not in resolve("gpt2", "quark", "repetition").method
    assert knob("quark", "gpt2", "repetition").values[2] == 0.01 and knob("quark", "gpt2", "toxicity").values[2] == 0.05
    mine.write_text('extends = "micro"\n[methods.base]\nknob = [1, 2, 3]\n')
    with pytest.raises(BadSetting, match="method base has no knob"):
        knob("base", str(mine), "toxicity")
    mine.write_text('extends = "micro"\n[methods.quark]\nknob = 3\n')
    with pytest.raises(BadSetting, match=r"expected an odd number of values.* found 3"):
        knob("quark", str(mine), "toxicity")


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("method", TRAINED)
def test_what_a_preset_sets_a_knob_to_is_among_its_values(preset, method):
    for task in read_preset(preset)["tasks"]:
        found = knob(method, preset, task)
        told = resolve(preset, method, task).method
        if preset == "micro":  # the middle value is the preset's own
            settings = registry.load("method", method).Settings(**told)
            assert getattr(settings, found.setting) == found.values[2]
        assert told.get(found.setting, found.values[0]) in found.values


def test_the_committed_files_are_what_they_say():
    study = read_study(ROOT / "results" / "reference.toml")
    assert {*study.methods, "oracle"} == set(registry.table("method"))
    assert study.tasks == ["toxicity", "sentiment", "repetition"]
    probing = told(ROOT / "results" / "probes.toml", None, None, None, None, [], [])  # with the oracle, which has no budget
    further = told(ROOT / "results" / "probe_seeds.toml", None, None, None, None, [], [])
    assert {*probing.methods} == {*study.methods, "oracle"} > {*further.methods} > {"base", "oracle"}
    assert probing.tasks == further.tasks == study.tasks
    for probe in [*probing.set["evaluation.probes"], *further.set["evaluation.probes"]]:
        registry.load("probe", probe)
    for name in ("more", "over", "drift", "small", "small-trials", "small-budget", "small-neutral", "facts"):
        assert told(ROOT / "results" / f"{name}.toml", None, None, None, None, [], []).methods
    sweep = told(ROOT / "results" / "trials.toml", None, None, None, None, [], [])
    rates = {m: sweep.grid.get(f"{m}.lr", sweep.grid["lr"]) for m in sweep.methods}
    own = {m for m in registry.table("method") if registry.attribute("method", m, "tuned_as")}
    assert set(rates) == set(TRAINED) - {"best_of_n", "self_debias", "steering"} and own == {"mle", "random_reward"}
    assert {len(values) for values in rates.values()} == {4} and sweep.set["evaluation.split"] == "validation"
    decoding = told(ROOT / "results" / "trials_decoding.toml", None, None, None, None, [], [])
    assert {*decoding.methods} == {"self_debias", "steering"} and decoding.set == sweep.set and decoding.tasks == sweep.tasks
    sizes = {m: math.prod(len(v) for key, v in decoding.grid.items() if key.startswith(f"{m}.")) for m in decoding.methods}
    assert sizes == {"self_debias": 4, "steering": 8}
    weights = told(ROOT / "results" / "trials_weights.toml", None, None, None, None, [], [])
    assert {*weights.methods} == {"rmu", "simnpo"} and weights.set == sweep.set


def test_a_study_takes_the_finished_cells_of_a_sweep_for_its_own(tmp_path):
    settings = dict(map(parse_override, quick.overrides("quark")))
    cells = plan_study(spec(methods=["quark"], tasks=["toxicity"], seeds="0,1", other_seeds="0", set=settings), tmp_path)
    assert [(c.point["kl_coef"], c.seed) for c in cells] == [(0.2, 0), (2.0, 0), (0.6, 0), (0.06, 0), (0.02, 0), (0.2, 1)]
    assert cells[1].path == quick.cell(tmp_path, "quark", 0, kl_coef=2.0).path and cells[1].state() == "missing"
    at_middle = quick.cell(tmp_path, "quark", 1)
    assert cells[5].path == at_middle.path and at_middle.settings.method["kl_coef"] == 0.2  # the preset's own


def test_the_command_lists_its_cells(harness, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('methods = ["base", "best_of_n"]\ntasks = ["toxicity"]\nseeds = "0-1"\nother_seeds = "0"\n')
    code, out, err = harness("study", path, "--methods", "best-of-n", "--out", tmp_path / "out", "--dry-run", "--json")
    cells = json.loads(out.splitlines()[-1])["cells"]
    assert code == 0, err
    assert [(c["settings"]["n"], c["seed"]) for c in cells] == [(8, 0), (2, 0), (4, 0), (16, 0), (32, 0), (8, 1)]
    assert {c["state"] for c in cells} == {"missing"} and not (tmp_path / "out").exists()
    code, out, err = harness("study", path, "--tasks", "toxicty")
    assert code == 2 and out == "" and "did you mean 'toxicity'" in err.splitlines()[-1]


@pytest.mark.slow
def test_the_command_runs_its_cells_and_goes_on(harness, tmp_path):
    path = tmp_path / "study.toml"
    told = "\n".join(f"{key} = {json.dumps(value)}" for key, value in quick.settings("base").items())
    path.write_text(f'methods = ["base"]\ntasks = ["toxicity"]\nseeds = "0"\n[set]\n{told}\n')
    code, _, err = harness("study", path, "--out", tmp_path / "out")
    assert code == 0 and "1 cell: 1 done" in err
    code, out, _ = harness("study", path, "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and out.startswith("done  toxicity  base seed 0")
