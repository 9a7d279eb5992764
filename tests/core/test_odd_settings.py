"""Settings that nobody should give: numbers that are none, too many digits, too deep, of names that no file can have."""

import datetime
import json

import pytest

from harness.conformance.scaffold import new_plugin
from harness.core.errors import BadSetting, EmptySelection
from harness.core.settings import MAX_SEED, check_seed, overrides, parse_grid, parse_override, parse_seeds, resolve, toml
from harness.core.types import Settings
from harness.records.write import file_name
from harness.runs import assemble
from harness.runs.finished import external
from harness.runs.sweep import launcher

QUARK = ["run", "--method", "quark", "--task", "toxicity", "--dry-run"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "optimizer.betas=[2,3]"], "'optimizer.betas.0': input should be less than 1; found 2"),
        (["--set", "optimizer.betas=[0.9,1.0]"], "'optimizer.betas.1': input should be less than 1"),
        (["--set", "optimizer.eps=inf"], "'optimizer.eps': input should be a finite number"),
        (["--set", "lr=inf"], "'method.lr': input should be a finite number; found inf"),
        (["--set", "lr=nan"], "'method.lr': input should be"),
        (["--set", "kl_coef=-inf"], "'method.kl_coef': input should be"),
        (["--set", "task.kl_cap=inf"], "'task.kl_cap': input should be a finite number"),
        (["--set", "evaluation.points=1e23"], "'evaluation.points'"),
        (["--set", "evaluation.points=200000"], "less than or equal to 100000"),
        (["--set", "evaluation.samples=1000000000"], "less than or equal to 100000"),
        (["--set", f"evaluation.seed={2**64}"], f"less than or equal to {MAX_SEED}"),
        (["--set", f"batch_size={'7' * 70}"], "input should be a number within"),
        (["--set", f"budget.updates={2**53 + 1}"], "input should be a number within"),
        (["--set", f"kl_coef={'7' * 5000}"], "too many digits or brackets"),
        (["--set", f"kl_coef={'[' * 5000}"], "too many digits or brackets"),
        (["--set", f"kl_coef={'[' * 5000}{']' * 5000}"], "too many digits or brackets"),
        (["--set", "task.data={train=5}"], "task.data applies to named data sets only"),  # a table, and not text
        (["--budget", "inf"], "'budget.flops': input should be a finite number"),
        (["--budget", "nan"], "'budget.flops'"),
        (["--seed", "18446744073709551616"], f"from 0 to {MAX_SEED}; found 18446744073709551616"),
        (["--seeds", "18446744073709551616"], f"from 0 to {MAX_SEED}"),
        (["--seeds", "0-999999999"], "has more than 10000 seeds"),
        (["--seeds", "7" * 5000], "--seeds takes 0-4"),
        (["--seeds", "-1"], "--seeds takes 0-4"),
    ],
    ids=lambda value: str(value[-1])[:30] if isinstance(value, list) else "",
)
def test_each_is_one_line(harness, words, said):
    code, out, err = harness(*QUARK, *words)
    assert (code, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1 and len(err) < 400
    assert said in err


def test_a_grid_is_read_as_settings_are():
    for text in ("7" * 5000, "[" * 5000):
        with pytest.raises(BadSetting, match="too many digits or brackets"):
            parse_grid(f"kl_coef={text}")
    assert parse_grid("task.data={train=5},{train=6}") == ("task.data", [{"train": 5}, {"train": 6}])
    assert parse_grid("task.prompts=a b,c") == ("task.prompts", ["a b", "c"])


VALUES = (
    1, -7, 0.1, 1e-30, 1e300, float("inf"), True, False, "", "text", 'quotes " and \\ and \'', "\U0001f600 prompts.jsonl",
    "é\n\t\r\x00\x7f",
    [1, "a", [2.5, {"b": "\U0001f600"}]], {"train": 5, "a key": {"b": [True]}, "": 1}, {}, [],
    datetime.date(1979, 5, 27), datetime.datetime(1979, 5, 27, 7, 32, tzinfo=datetime.UTC), datetime.time(7, 32),
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:20])
def test_what_a_sweep_tells_its_cells_is_what_it_was_told(value):
    (word,) = overrides({"task.x": value})
    assert parse_override(json.loads(json.dumps(word))) == ("task.x", value)
    assert parse_override(f"x={toml([value])}") == ("x", [value])


def test_a_table_given_at_once_is_as_its_settings_one_by_one():
    at_once = resolve("micro", "quark", "toxicity", ["task.decoding={max_new_tokens=6, top_p=1.0}"])
    one_by_one = resolve("micro", "quark", "toxicity", ["task.decoding.max_new_tokens=6", "task.decoding.top_p=1.0"])
    assert at_once == one_by_one and at_once.task.decoding.max_new_tokens == 6


def test_seeds_have_bounds_and_keep_their_order():
    assert parse_seeds("3, 1-2 ,3") == [3, 1, 2] and len(parse_seeds("1-10000")) == 10_000
    assert check_seed(MAX_SEED) == MAX_SEED
    for seed in (-1, MAX_SEED + 1, 10**5000):
        with pytest.raises(BadSetting, match=r"a seed that is an integer from 0 to"):
            check_seed(seed)
    with pytest.raises(BadSetting, match="more than 10000 seeds"):
        parse_seeds("0-9000,10000-12000")
    with pytest.raises(EmptySelection):
        parse_seeds("3-1")


@pytest.mark.parametrize("name", ["mine", "x" * 100, "x" * 101, "x" * 252, "\u00e9" * 51, "\U0001f600" * 63])
def test_a_name_of_any_length_is_a_file_name(tmp_path, name):
    short = file_name(name)
    assert len(short.encode()) <= 100 and (short == name) == (len(name.encode()) <= 100)
    assert short == name or file_name(name + "y") != short
    (tmp_path / f"eval-{short}.tmp").write_text("")


def test_a_policy_and_a_method_file_of_long_names_have_records(tmp_path, monkeypatch):
    long = tmp_path / ("p" * 252)
    long.mkdir()
    named = []
    monkeypatch.setattr(external, "external_model", lambda *_: (ToDevice(), {}))
    monkeypatch.setattr(assemble, "assembled", lambda settings, shared, name, *_: named.append(name))
    monkeypatch.setattr(external, "_check_context", lambda *_: None)
    monkeypatch.setattr(ToDevice, "task", None, raising=False)
    settings = resolve("micro", "eval", "toxicity")
    external.external_cell(settings, ToDevice(), str(long), "toxicity", tmp_path, False)
    assert named[0].startswith("eval-ppp") and len(named[0]) == 100
    file = tmp_path / f"{'m' * 240}.py"
    file.write_text("")
    method = type("Mine", (), {"Settings": Settings, "version": 1, "__module__": f"method_file.{file.stem}"})
    monkeypatch.setattr(assemble.registry, "load", lambda *_: method)
    assemble.cell(settings, ToDevice(), str(file), "toxicity", 0, tmp_path)
    assert named[1].startswith("mmm") and len(named[1]) == 100
    cell = launcher.Planned(f"./{'m' * 240}.py", "toxicity", 0, "micro", {}, {}, tmp_path, tmp_path / "x", "x")
    assert len(launcher.log_of(cell).name) < 200


class ToDevice:
    """Stands for a policy, and for the parts that have one."""

    device, micro = "cpu", False

    @property
    def model(self):
        return self

    policy = model

    def to(self, device):
        return self


@pytest.mark.parametrize("name", ["7" * 70, "m" * 61, "m" * 5000, "\udcff", "a\x00b"])
def test_names_that_no_method_can_have(tmp_path, name):
    with pytest.raises(BadSetting, match="at most 60 characters; found"):
        new_plugin("method", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "/nope/model"], ["--model", "./nope"], ["--model", "a\nb"], ["--model", ""], ["--model", "a" * 300],
        ["--set", 'model.id="a\\u0000b"'], ["--set", "task.fluency=/nope/judge"], ["--prompts", "/nope/prompts.jsonl"],
    ],
    ids=lambda words: ascii(words[-1])[:20],
)  # fmt: skip
def test_a_dry_run_says_what_nothing_will_bring(harness, words):
    code, out, err = harness(*QUARK, *words)
    needs = json.loads(out)["needs"]
    assert code == 3 and [need["there"] for need in needs if need["local"]] == [False]
    assert (
        err.startswith("error: this run cannot begin: ") and "is not there (looked in '" in err and len(err.splitlines()) == 1
    )


def test_a_dry_run_of_what_a_download_brings_is_fine(harness):
    code, out, _ = harness(*QUARK, "--model", "someone/no-such-model")
    assert code == 0 and [need["there"] for need in json.loads(out)["needs"]] == [False]
