"""Probes of finished runs: what is added to a record, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import quick

from harness.core.errors import BadSetting, CorruptRecord, EmptySelection, UnknownName
from harness.records.archive import archive, write_study
from harness.records.read import find_runs, probe_number, probes, read_run
from harness.records.schema import MetricRecord, ProbeReading, ProbeResult
from harness.records.verify import verify
from harness.runs.finished.probe import asked, planned, policy_of
from harness.runs.session import run

RELEARN = ["relearn_habit.points=[0,1]", "relearn_habit.texts=4", "relearn_habit.batch_size=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the small quick world, and its folder of records."""
    out = tmp_path_factory.mktemp("probed")
    with quick.few_prompts():
        cell = quick.cell(out, budget__updates=2, evaluation__points=0)
        run(cell)
    return out, cell.path


@pytest.fixture
def record(finished, tmp_path):
    """A copy of it to change."""
    out = tmp_path / "results"
    shutil.copytree(finished[0], out)
    return out, out / finished[1].relative_to(finished[0])


def words(path, out, *names: str) -> list[str]:
    told = [word for setting in ("samples=2", *(RELEARN if "relearn" in str(names) else ())) for word in ("--set", setting)]
    return ["probe", str(path), *[w for name in names for w in ("--probe", name)], *told, "--out", str(out), "--json"]


def reading(at: float, judge: float | None) -> ProbeReading:
    return ProbeReading(at=at, metrics={"judge": MetricRecord(value=judge, stderr=None, n=1)})


def test_a_probe_is_added_to_the_record_and_not_run_twice(record, harness):
    out, path = record
    with quick.few_prompts():
        code, said, err = harness(*words(path, out, "no_prefix,relearn_habit"))
        assert code == 0, err
        found = json.loads(said)["probes"][str(path)]
        assert [result["probe"] for result in found] == ["no_prefix", "relearn_habit"]
        assert [r["at"] for r in found[1]["readings"]] == [0, 1] and found[1]["settings"]["texts"] == 4
        kept = probes(read_run(path))
        assert [result.plain() for result in kept] == found
        assert not [check for check in verify(read_run(path)) if check.held is False]
        before = (path / "probes.jsonl").read_bytes()
        code, again, _ = harness(*words(path, out, "relearn_habit,no_prefix"))
        assert code == 0 and json.loads(again)["probes"][str(path)] == found[::-1]
        assert (path / "probes.jsonl").read_bytes() == before
        code, said, err = harness(*words(path, out, "no_prefix")[:-1], "--seed", "1")
        assert code == 0 and "worst judge" in said and len(probes(read_run(path))) == 3, err


def test_a_kill_between_results_and_manifest_is_mended_and_an_edit_is_not(record, harness):
    out, path = record
    with quick.few_prompts():
        before = (path / "manifest.json").read_text()
        assert harness(*words(path, out, "no_prefix"))[0] == 0
        (path / "manifest.json").write_text(before)  # as it was before the results
        assert [check.what for check in verify(read_run(path)) if check.held is False]
        assert harness(*words(path, out, "no_prefix"))[0] == 0
        assert not [check.what for check in verify(read_run(path)) if check.held is False]
        text = (path / "probes.jsonl").read_text()
        (path / "probes.jsonl").write_text(text.replace('"seed":0', '"seed":5'))
        code, _, err = harness(*words(path, out, "decode"))
    assert code == 1 and "probes.jsonl is not the file that was written" in err


def test_an_edited_result_is_seen_and_archives_keep_it(record, harness, tmp_path):
    out, path = record
    with quick.few_prompts():
        assert harness(*words(path, out, "no_prefix"))[0] == 0
    kept = [result.plain() for result in probes(read_run(path))]
    write_study([out], tmp_path / "study")
    archive([out], tmp_path / "folders")
    for copy in ("study", "folders"):
        (run,), problems = find_runs([tmp_path / copy])
        assert [result.plain() for result in probes(run)] == kept and not problems
        assert not [check.what for check in verify(run) if check.held is False]
    text = (path / "probes.jsonl").read_text()
    (path / "probes.jsonl").write_text(text.replace('"worst"', '"mean"'))
    assert [check.what for check in verify(read_run(path)) if check.held is False] == ["probes.jsonl"]
    (path / "probes.jsonl").write_text("{}\n")
    code, said, err = harness("verify", str(path))
    assert code == 5 and "probes.jsonl" in said + err


def test_several_runs_are_probed_and_those_that_cannot_be_are_named(record, harness):
    out, path = record
    with quick.few_prompts():
        bare = quick.cell(out, "best_of_n", evaluation__points=0)
        run(bare)
        code, said, err = harness(*words(out, out, "no_prefix"))
        assert code == 4 and list(json.loads(said)["probes"]) == [str(path)]
        assert f"not probed: {bare.path} has no policy to probe: the method deploys none of its own" in err
        code, _, err = harness(*words(bare.path, out, "no_prefix"))
        assert code == 3 and "has no policy to probe" in err


def test_a_broken_record_among_several_is_named(record, harness):
    out, path = record
    broken = path.with_name("00000000-s1")
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    with quick.few_prompts():
        code, said, err = harness(*words(out, out, "no_prefix"))
    assert code == 4 and list(json.loads(said)["probes"]) == [str(path)] and f"not probed: {broken}: manifest.json" in err
    code, _, err = harness("probe", "nowhere", "--probe", "decode", "--out", str(path / "samples"))
    assert code == 2 and "no folder nowhere, and no runs in" in err


def test_a_policy_that_the_run_did_not_write_is_refused(record):
    _, path = record
    assert policy_of(read_run(path)) == path / "policy"
    (path / "policy" / "extra.json").write_text("{}")
    with pytest.raises(CorruptRecord, match=r"extra\.json is not the file that the run wrote"):
        policy_of(read_run(path))
    (path / "policy" / "extra.json").unlink()
    config = json.loads((path / "policy" / "config.json").read_text())
    (path / "policy" / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    with pytest.raises(CorruptRecord, match=r"config\.json is not the file"):
        policy_of(read_run(path))


def test_what_cannot_be_probed_is_said(record, harness, tmp_path):
    out, path = record
    write_study([out], tmp_path / "study")
    code, _, err = harness(*words(tmp_path / "study", out, "no_prefix"))
    assert code == 3 and "archive" in err
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    (path / "summary.json").unlink()
    code, _, err = harness(*words(path, out, "no_prefix"))
    assert code == 3 and "has no result to probe: the run is interrupted" in err
    (tmp_path / "empty").mkdir()
    code, _, err = harness(*words(tmp_path / "empty", out, "no_prefix"))
    assert code == 2 and "no finished runs below" in err


def test_a_record_of_another_task_version_does_not_compare(record, harness):
    out, path = record
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["identity"]["task"]["version"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))
    with quick.few_prompts():
        code, _, err = harness(*words(path, out, "no_prefix"))
    assert code == 3 and "made with another task" in err


def test_settings_go_to_the_probes_that_have_them():
    found, trusted = planned(["decode,relearn_habit", "decode"], ["samples=3", "relearn_habit.texts=8", "model.id=x"], 7)
    assert [(each.name, each.settings.samples, each.seed) for each in found] == [("decode", 3, 7), ("relearn_habit", 3, 7)]
    assert found[1].settings.texts == 8 and trusted == ["model.id=x"]
    with pytest.raises(UnknownName, match="textz"):
        planned(["decode"], ["textz=3"], 0)
    with pytest.raises(UnknownName, match="quantize"):
        planned(["decode"], ["quantize.samples=3"], 0)
    with pytest.raises(BadSetting, match="samples"):
        planned(["decode"], ["samples=1"], 0)
    with pytest.raises(UnknownName, match="decod"):
        planned(["decod"], [], 0)
    with pytest.raises(EmptySelection, match="no probe is named"):
        planned([","], [], 0)


@pytest.mark.parametrize(
    "word",
    ["quantize.bits=[1]", "quantize.bits=[33]", "relearn_clean.points=[-5,10]", "sample_more.counts=[0]"],
)
def test_a_point_at_which_nothing_can_be_measured_is_refused(word):
    with pytest.raises(BadSetting, match=word.partition("=")[0]):
        planned(["quantize,relearn_clean,sample_more"], [word], 0)


@pytest.mark.parametrize(
    "word", ["task.decoding.max_new_tokens=2", "evaluation.samples=8", "budget.updates=3", "model.dtype=auto"]
)
def test_a_setting_that_the_result_would_not_name_is_refused(word):
    with pytest.raises(BadSetting, match=f"{word.partition('=')[0]} cannot be set"):
        planned(["decode"], [word], 0)
    assert planned(["decode"], ["scorers.mine.batch_size=4", "evaluation.batch_size=2"], 0)[1]


@pytest.mark.parametrize("part", ["model", "data", "decoding"])
def test_a_record_of_another_base_policy_or_decoding_does_not_compare(record, harness, part):
    out, path = record
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["identity"][part] = {"name": "another"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with quick.few_prompts():
        code, _, err = harness(*words(path, out, "no_prefix"))
    assert code == 3 and f"made with another {part}" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 7.0}, "the number 7.0"),
        ({"value": None}, "the number None"),
        ({"readings": [{"at": 0, "metrics": {"judge": {"value": 1e308, "stderr": None, "n": 1}}}]}, "judge score of 1e"),
        ({"readings": [{"at": i, "metrics": {}} for i in range(1001)]}, "1001 readings"),
    ],
)
def test_a_result_that_cannot_be_is_a_broken_record(finished, monkeypatch, change, said):
    row = {
        "probe": "decode", "version": 1, "settings": {}, "seed": 0, "unit": "decoding", "number": "worst", "value": 0.5,
        "readings": [{"at": 0, "metrics": {"judge": {"value": 0.5, "stderr": None, "n": 1}}}],
    }  # fmt: skip
    run = read_run(finished[1])
    for given in (row, row | change):
        source = SimpleNamespace(probes=lambda given=given: [ProbeResult.model_validate(given)])
        if given is row:
            assert probes(run._replace(source=source))
        else:
            with pytest.raises(CorruptRecord, match=f"line 1 has .*{said}"):
                probes(run._replace(source=source))


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("")
    with pytest.raises(BadSetting, match="have one name"):
        planned([str(tmp_path / "a" / "mine.py"), str(tmp_path / "b" / "mine.py")], [], 0)


def test_readings_become_one_number():
    points = [reading(0, 1.0), reading(10, 0.5), reading(30, 0.25)]
    assert probe_number("worst", points) == 0.25
    assert probe_number("mean", points) == pytest.approx((10 * 0.75 + 20 * 0.375) / 30)
    assert probe_number("mean", points[:1]) == 1.0
    assert probe_number("mean", [*points, reading(40, None)]) is None and probe_number("worst", []) is None


def test_the_probe_of_the_guide_runs_and_is_shown(tmp_path, record, harness):
    out, path = record
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "probes.md").read_text()
    (tmp_path / "noise.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    with quick.few_prompts():
        code, said, err = harness("probe", str(path), "--probe", str(tmp_path / "noise.py"), "--out", str(out))
    assert code == 0 and "noise" in said, err
    code, said, _ = harness("show", "probe", str(tmp_path / "noise.py"))
    assert code == 0 and "scales" in said
    code, said, _ = harness("show", "probe", "relearn_habit", "--json")
    assert json.loads(said)["settings"]["texts"]["default"] == 64 and json.loads(said)["unit"] == "updates"
    assert "relearn_habit" in harness("list", "probes")[1]


def test_a_probe_in_a_file(tmp_path, record, harness):
    out, path = record
    (tmp_path / "mine.py").write_text(
        "from harness.api import Reading, Settings\n"
        "class Mine:\n"
        "    version, Settings, unit, number = 1, Settings, 'nothing', 'worst'\n"
        "    def __init__(self, settings):\n        self.settings = settings\n"
        "    def run(self, probed):\n        yield Reading(1, probed.measure(probed.policy, 2))\n        yield 3\n"
    )
    with quick.few_prompts():
        code, _, err = harness("probe", str(path), "--probe", str(tmp_path / "mine.py"), "--out", str(out))
    assert code == 2 and "probe mine yields 'int'; expected a Reading" in err
    assert not (path / "probes.jsonl").exists()


@pytest.mark.parametrize(
    ("second", "rc", "said"),
    [
        ("yield first", 2, "a reading at 1 after 1"),
        ("yield first._replace(at=2, metrics={'judge': Metric(1.5, 0.1, 3)})", 2, "probe mine has a judge score of 1.5"),
        ("raise ValueError('two\\nlines')", 1, "probe mine raised ValueError: two"),
    ],
)
def test_what_a_probe_in_a_file_does_wrong_is_one_line(tmp_path, record, harness, second, rc, said):
    out, path = record
    (tmp_path / "mine.py").write_text(
        "from harness.api import Metric, Reading, Settings\n"
        "class Mine:\n"
        "    version, Settings, unit, number = 1, Settings, 'steps', 'mean'\n"
        "    def __init__(self, settings):\n        self.settings = settings\n"
        "    def run(self, probed):\n"
        "        first = Reading(1, {'judge': Metric(0.5, 0.1, 3)})\n        yield first\n"
        f"        {second}\n"
    )
    with quick.few_prompts():
        code, _, err = harness("probe", str(path), "--probe", str(tmp_path / "mine.py"), "--out", str(out))
    assert code == rc and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("Settings = None", "Settings"),
        ("version = 0", "version"),
        ("unit = ''", "unit"),
        ("number = 'best'", "number"),
        ("def run(self): pass", "run"),
    ],
)
def test_a_probe_that_breaks_the_contract_is_refused(tmp_path, change, said):
    (tmp_path / "broken.py").write_text(
        "from harness.api import Settings as S\n"
        "class Broken:\n    version, Settings, unit, number = 1, S, 'steps', 'worst'\n"
        f"    def __init__(self, settings): pass\n    def run(self, probed): yield\n    {change}\n"
    )
    with pytest.raises(Exception, match=said):
        asked(str(tmp_path / "broken.py"), {}, 0)
