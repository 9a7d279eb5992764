"""Folders of `harness train-scorer` as rewards and judges: their names, their records, and which pairs are refused."""

import os
import shutil
from pathlib import Path

import labelled
import numpy as np
import pytest
import quick

from harness.core import registry
from harness.core.errors import BadData, BadSetting, MissingPrerequisite
from harness.core.settings import resolve, stem_of
from harness.runs import assemble, scorers
from harness.tasks.labels import card, train
from harness.tasks.labels.encoder import EncoderSettings
from harness.tasks.labels.linear import LinearSettings
from harness.tasks.labels.rows import Source

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("few_prompts", "one_thread")
TINY = EncoderSettings(layers=1, width=8, heads=1, vocabulary=300, epochs=1, device="cpu")
TEXTS = ["you saw the silly goose", "she read the letter"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A linear reward, and encoders on the reward's texts, on a few of them among others, and on others."""
    root = tmp_path_factory.mktemp("trained")
    mine, others = labelled.sentences(250), labelled.sentences(250, 1, extra=("castle", "harbour"))
    kinds = {"reward": (mine, LinearSettings()), "same": (mine[:125] + others[:125], TINY), "judge": (others, TINY)}
    kinds |= {"few": (mine[:2] + others, TINY), "linear": (others, LinearSettings())}
    for name, (rows, settings) in kinds.items():
        data = labelled.write(root / f"{name}.jsonl", rows)
        train.train(train.Asked(Source(data=str(data), text=("text",), score=("score",)), settings), root / name)
    return root


def settings(reward, judge, **more):
    return resolve("micro", "base", "toxicity", {"task.reward": str(reward), "task.judge": str(judge), **more})


def test_a_folder_is_a_name_of_a_scorer(folders, monkeypatch):
    found = scorers.built(str(folders / "reward"), {})
    assert found.identity == {"name": "trained-linear", "version": 1, "sha256": card.read(folders / "reward").sha256}
    low, high = found.score(["", ""], TEXTS)
    assert low < 0.5 < high and not found.slow
    again = scorers.built("mine", {"kind": "trained", "folder": str(folders / "reward")})
    assert again.identity == found.identity and len(again.score([], [])) == 0
    assert scorers.built("mine", {"kind": str(folders / "judge"), "batch_size": 2}).slow
    monkeypatch.chdir(folders)
    np.testing.assert_array_equal(scorers.built("reward", {}).score(["", ""], TEXTS), [low, high])
    Path("vader").mkdir()
    assert not registry.is_folder("scorer", "vader") and registry.given("scorer", "vader") == "vader"


def test_the_name_in_records_is_that_of_the_folder_without_its_path(folders):
    assert stem_of(str(folders / "reward")) == stem_of(f"{folders}/reward/") == "reward"
    assert stem_of("./") == os.path.basename(os.getcwd()) and stem_of("vader") == "vader" and stem_of("./a/b.py") == "b"


def test_names_that_are_no_trained_scorer(folders, tmp_path):
    with pytest.raises(MissingPrerequisite, match=r"no scorer folder .*/none; expected one that harness train-scorer wrote"):
        registry.given("scorer", str(tmp_path / "none"))
    with pytest.raises(BadData, match=r"no scorer\.json in .*; expected a folder .*scorers\.NAME\.kind=classifier"):
        registry.given("scorer", str(tmp_path))
    with pytest.raises(BadSetting, match="scorer 'reward' has no option 'label'; known: folder, batch_size, device, timeout"):
        scorers.check(str(folders / "reward"), {"label": "x"})


@pytest.mark.parametrize("options", [{"batch_size": 16}, {"device": "cpu"}])
def test_a_linear_scorer_has_no_options_of_an_encoder(folders, options):
    with pytest.raises(BadSetting, match="holds a linear scorer, which has no batch_size and no device"):
        scorers.built(str(folders / "reward"), options)
    assert scorers.built(str(folders / "judge"), options).identity["name"] == "trained-encoder"


def test_a_run_records_the_hash_of_the_folder_and_not_its_path(folders, tmp_path):
    pair = [f"task.reward={folders / 'reward'}", f"task.judge={folders / 'judge'}", "scorers.judge.batch_size=16"]
    cell = assemble.named_cell("base", "toxicity", "micro", 0, [*quick.overrides("base"), *pair], {}, tmp_path, True)
    assert (cell.settings.task.reward, cell.settings.task.judge) == ("reward", "judge")
    for role, kind in (("reward", "linear"), ("judge", "encoder")):
        assert cell.identity["scorers"][role]["name"] == f"trained-{kind}"
        assert cell.identity["scorers"][role]["sha256"] == card.read(folders / role).sha256


def test_a_judge_of_another_kind_on_other_texts_is_accepted(folders):
    assemble.check(settings(folders / "reward", folders / "judge"), "base")
    assemble.check(settings(folders / "reward", "insult-judge"), "base")


def test_a_judge_that_was_trained_on_the_texts_of_the_reward_is_refused(folders):
    message = r"the judge same was trained on \d+ texts of the reward reward, so it cannot show over-optimisation"
    with pytest.raises(BadSetting, match=message):
        assemble.check(settings(folders / "reward", folders / "same"), "base")
    with pytest.raises(BadSetting, match=message):  # an encoder's folder by another name
        own = {"scorers.x.kind": "classifier", "scorers.x.model": str(folders / "same"), "scorers.x.label": "undesired"}
        assemble.check(settings(folders / "reward", "x", **own), "base")
    with pytest.raises(BadSetting, match=message):
        assemble.check(settings(folders / "reward", "x", **{"scorers.x.kind": str(folders / "same")}), "base")


def test_a_few_texts_in_common_are_accepted_and_counted(folders, caplog):
    assemble.check(settings(folders / "reward", folders / "few"), "base")
    assert "reward and judge were trained on 2 texts in common, of " in caplog.text


def test_a_judge_of_the_kind_of_the_reward_is_refused(folders):
    with pytest.raises(BadSetting, match="reward and judge are both linear scorers of harness train-scorer; expected a judge"):
        assemble.check(settings(folders / "reward", folders / "linear"), "base")


def test_loading_refuses_the_pair_too(folders, tmp_path):
    pair = [f"task.reward={folders / 'reward'}", f"task.judge={folders / 'same'}"]
    with pytest.raises(BadSetting, match="so it cannot show over-optimisation"):
        assemble.parts(settings(folders / "reward", folders / "same"), "toxicity", True)
    with pytest.raises(BadSetting, match="so it cannot show over-optimisation"):
        assemble.named_cell("base", "toxicity", "micro", 0, pair, {}, tmp_path, True)


def test_a_run_with_both_is_verified_from_the_command_line(harness, folders, tmp_path):
    words = ["--set", f"task.reward={folders / 'reward'}", "--set", f"task.judge={folders / 'judge'}"]
    least = {"evaluation.paper_samples": 0, "evaluation.points": 0, "evaluation.base_samples": 50, "task.fluency": "none"}
    small = [w for key, value in (quick.settings("base") | least).items() for w in ("--set", f"{key}={value}")]
    code, _, err = harness("run", "-m", "base", "-t", "toxicity", "--out", tmp_path, *words, *small)
    assert code == 0, err
    run = next(tmp_path.rglob("manifest.json")).parent
    code, _, err = harness("verify", run, "--rescore", "--out", tmp_path)
    assert code == 3 and "names task.judge" in err
    assert harness("verify", run, "--rescore", "--out", tmp_path, *words)[0] == 0
    inside = shutil.copytree(folders / "judge", run / "judge")
    code, _, err = harness("verify", run, "--rescore", "--out", tmp_path, *words[:2], "--set", f"task.judge={inside}")
    assert code == 3 and "inside or beside the record" in err, err
