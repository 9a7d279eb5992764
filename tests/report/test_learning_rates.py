"""Learning rates by task: which records are trials, which rates they choose, and the block of a preset that holds them."""

import errno
import shutil
import tomllib
from pathlib import Path

import fake_records
import pytest

from harness.analysis.study import Study
from harness.core.errors import BadData, CannotWrite, EmptySelection, MissingPrerequisite
from harness.core.settings import read_preset, resolve
from harness.records.read import find_runs
from harness.report import learning_rates as rates

PRESET = f"[tasks.toxicity]\nkl_cap = 1.5\n\n{rates.BEGIN}\nold = 1\n{rates.END}\n# after\n"


def record(root: Path, method: str, task: str, lr: float, judge: float, **more: object) -> None:
    """A trial of the preset micro with a learning rate; `more` changes settings of its budget or of its method."""
    settings = resolve("micro", method, task, [f"lr={lr}"]).model_dump()
    budget = {"budget": settings["budget"] | {k: v for k, v in more.items() if k == "flops"}}
    own = {"method": settings["method"] | {k: v for k, v in more.items() if k == "kl_coef"}}
    identity = fake_records.identity(
        task, method, 0, method={"name": method, "version": 1, "settings": own["method"]},
        evaluation={"n": 200, "split": more.get("split", "validation")},
    )  # fmt: skip
    final = {"judge": fake_records.point(judge), "kl": fake_records.point(1.0)}
    manifest = {"identity": identity, "settings": settings | budget | own}
    number = len(list(root.rglob("manifest.json")))
    fake_records.write_run(root, method, 0, task=task, final=final, manifest=manifest, id8=f"{number:08d}")


def test_each_task_has_its_own_rates_and_a_control_those_of_its_method(tmp_path, capsys):
    for task, best in (("toxicity", 3e-4), ("sentiment", 1e-3)):
        for method in ("reinforce", "quark"):
            for lr in (1e-4, 3e-4, 1e-3):
                record(tmp_path, method, task, lr, 0.9 if lr == best else 0.6)
    preset = tmp_path / "mine.toml"
    preset.write_text(PRESET)
    rates.main([str(tmp_path), "--write", str(preset)])
    written = preset.read_text()
    tables = {task: {"quark": {"lr": lr}, "random_reward": {"lr": lr}, "reinforce": {"lr": lr}}
              for task, lr in (("toxicity", 3e-4), ("sentiment", 1e-3))}  # fmt: skip
    assert {task: table["methods"] for task, table in tomllib.loads(written)["tasks"].items()} == tables
    assert "quark.lr = 3e-4\n" in written and written.endswith(f"{rates.END}\n# after\n") and "old" not in written
    out = capsys.readouterr().out
    assert out.count("| chosen |") == 4 and "[tasks.sentiment.methods]\nquark.lr = 1e-3\n" in out
    rates.main([str(tmp_path), "--write", str(preset)])
    assert preset.read_text() == written


def test_other_records_are_no_trials(tmp_path, capsys):
    record(tmp_path, "quark", "toxicity", 1e-4, 0.7)
    record(tmp_path, "quark", "toxicity", 3e-4, 0.9, flops=8e11)
    record(tmp_path, "quark", "toxicity", 3e-4, 0.9, kl_coef=0.3)
    record(tmp_path, "quark", "toxicity", 3e-4, 0.9, split="test")
    fake_records.write_run(tmp_path, "base", 0, manifest={"identity": fake_records.identity("toxicity", "base", 0, method={})})
    runs, _ = find_runs([tmp_path])
    assert [run.manifest.run_id for run in runs if rates.counts(run)] == ["00000000-s0"]
    rates.main([str(tmp_path)])
    said = capsys.readouterr()
    assert "4 of 5 records are no trials" in said.err and "quark.lr = 1e-4" in said.out
    shutil.rmtree(tmp_path / "micro" / "toxicity" / "quark")
    with pytest.raises(EmptySelection, match="no trials of learning rates"):
        rates.main([str(tmp_path)])


def test_a_method_without_a_rate_has_trials_of_its_other_settings(tmp_path, capsys):
    for coefficient, judge in ((1.0, 0.7), (4.0, 0.9)):
        settings = resolve("micro", "steering", "toxicity", [f"coefficient={coefficient}"]).model_dump()
        identity = fake_records.identity(
            "toxicity", "steering", 0, method={"name": "steering", "version": 1, "settings": settings["method"]},
            evaluation={"n": 200, "split": "validation"},
        )  # fmt: skip
        final = {"judge": fake_records.point(judge), "kl": fake_records.point(1.0)}
        manifest = {"identity": identity, "settings": settings}
        fake_records.write_run(tmp_path, "steering", 0, final=final, manifest=manifest, id8=f"{int(coefficient):08d}")
    record(tmp_path, "quark", "toxicity", 1e-4, 0.7)
    study = Study([run for run in find_runs([tmp_path])[0] if rates.counts(run)])
    assert len(study.runs) == 3 and rates.learning_rates(study)["toxicity"] == {"quark": 1e-4}
    rates.main([str(tmp_path)])
    (chosen,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith("| chosen |") and "steering" in line)
    assert "coefficient=4.0" in chosen


def test_trials_of_a_preset_of_ones_own_count_as_they_are(tmp_path):
    identity = fake_records.identity("toxicity", "quark", 0, evaluation={"split": "validation"})
    fake_records.write_run(tmp_path, "quark", 0, preset="mine", manifest={"identity": identity})
    runs, problems = find_runs([tmp_path])
    assert rates.learning_rates(Study(runs, problems)) == {"toxicity": {"quark": 1e-4}}
    fake_records.write_run(tmp_path, "quark", 0, preset="other", manifest={"identity": identity})
    with pytest.raises(BadData, match="task toxicity are of several presets or worlds; expected one"):
        rates.learning_rates(Study(*find_runs([tmp_path])))


def test_a_preset_that_cannot_take_them(tmp_path):
    path, found = tmp_path / "mine.toml", {"toxicity": {"my.method": 0.00012345678}}
    assert tomllib.loads(rates.tables(found)) == {"tasks": {"toxicity": {"methods": {"my.method": {"lr": 0.00012345678}}}}}
    with pytest.raises(BadData, match=r"expected the lines .* add both"):
        rates.rewritten("[tasks.toxicity]\n", found, path)
    with pytest.raises(BadData, match="outside its marked block"):
        rates.rewritten(f'[tasks.toxicity.methods."my.method"]\nlr = 1.0\n{PRESET}', found, path)
    record(tmp_path, "quark", "toxicity", 1e-4, 0.7)
    with pytest.raises(MissingPrerequisite, match="no preset file"):
        rates.main([str(tmp_path), "--write", str(tmp_path / "nowhere.toml")])


def test_a_preset_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    record(tmp_path, "quark", "toxicity", 1e-4, 0.7)
    path = tmp_path / "mine.toml"
    path.write_text(PRESET)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("harness.core.files.os.replace", refuse)
    with pytest.raises(CannotWrite, match=r"cannot write .*mine\.toml: Operation not permitted"):
        rates.main([str(tmp_path), "--write", str(path)])
    assert path.read_text() == PRESET and not list(tmp_path.glob("*.tmp"))


def test_a_rate_of_a_task_goes_before_that_of_the_preset(monkeypatch):
    tables = read_preset("micro")
    tables["tasks"]["toxicity"]["methods"] = {"quark": {"lr": 5e-5}}
    monkeypatch.setattr("harness.core.settings.read_preset", lambda name: tables)
    assert resolve("micro", "quark", "toxicity").method["lr"] == 5e-5
    assert resolve("micro", "quark", "pii").method["lr"] == tables["methods"]["quark"]["lr"]
