"""The Detoxify scorer: what it scores, what it refuses to read, and that a failure is NaN."""

import os
import sys
from pathlib import Path

import detoxify
import folders
import numpy as np
import pytest
import torch
from folders import SENTENCES, sha256

from harness.core.errors import BadData, BadSetting, MissingPrerequisite, UnknownName
from harness.tasks.scorers.detoxify import DetoxifyScorer
from harness.tasks.scorers.guard import GuardedScorer
from harness.tasks.scorers.style import StyleScorer


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    return folders.detoxify_checkpoint(tmp_path_factory.mktemp("detoxify"))


@pytest.fixture(scope="module")
def scorer(files) -> DetoxifyScorer:
    return DetoxifyScorer(*files, batch_size=2)


def score(scorer, *responses: str) -> np.ndarray:
    return scorer.score([""] * len(responses), list(responses))


def test_the_reward_is_one_minus_the_toxicity_of_the_response(files, scorer):
    checkpoint, config = files
    reference = detoxify.Detoxify(checkpoint=str(retold(checkpoint, config)))
    expected = [1 - reference.predict(text)["toxicity"] for text in SENTENCES]
    reward = score(scorer, *SENTENCES)
    assert reward.dtype == np.float64 and np.ptp(reward) > 0.01
    np.testing.assert_allclose(reward, expected, atol=1e-6)
    np.testing.assert_array_equal(scorer.score(["you goose"] * 5, SENTENCES), reward)


def retold(checkpoint: Path, config: Path) -> Path:
    """The same checkpoint with its base model in a local folder, for Detoxify's own way of loading."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["config"]["arch"]["args"]["model_type"] = str(config)
    torch.save(saved, checkpoint.parent / "retold.ckpt")
    return checkpoint.parent / "retold.ckpt"


def test_local_files_need_no_network(files, monkeypatch):
    tried = folders.block_network(monkeypatch)
    assert 0 <= score(DetoxifyScorer(*files), "the cat").item() <= 1
    assert tried == []


def test_any_number_of_texts_and_any_batch(scorer, monkeypatch):
    assert score(scorer).shape == (0,)
    assert score(scorer, "the cat").shape == (1,)
    alone = [score(scorer, text).item() for text in SENTENCES]
    for batch_size in (1, 2, 4, 32):
        monkeypatch.setattr(scorer, "batch_size", batch_size)
        np.testing.assert_allclose(score(scorer, *SENTENCES), alone, atol=1e-6)


def test_empty_and_long_texts(scorer):
    empty, blank, long, longer = score(scorer, "", " \n", "goose " * 40, "goose " * 400)
    assert np.isfinite([empty, blank, long]).all() and empty == blank
    assert longer == pytest.approx(long)  # cut to what the model can read


def test_a_text_that_fails_is_nan_and_costs_no_other(scorer, caplog):
    reward = score(GuardedScorer(scorer, "mine"), "the cat", "half \ud83d", "the rain", "a book")
    assert np.isnan(reward).tolist() == [False, True, False, False]
    np.testing.assert_allclose(reward[[0, 2, 3]], score(scorer, "the cat", "the rain", "a book"), atol=1e-6)
    assert "mine could not score 1 of 4 texts, the first of 6 characters" in caplog.text


def test_columns(files):
    other = DetoxifyScorer(*files, column="identity_attack")
    assert score(other, "the cat") != score(DetoxifyScorer(*files), "the cat")
    assert other.identity["column"] == "identity_attack"
    with pytest.raises(UnknownName, match="no class of the checkpoint named 'toxicty'; did you mean 'toxicity'"):
        DetoxifyScorer(*files, column="toxicty")


def test_identity(files, scorer):
    checkpoint, config = files
    assert scorer.identity["sha256"] == sha256(checkpoint) and scorer.identity["name"] == "detoxify"
    again = DetoxifyScorer(checkpoint, config, batch_size=7)
    assert again.identity == scorer.identity
    assert set(scorer.identity) == {"name", "version", "sha256", "base_sha256", "column"}


def test_a_name_without_digits_needs_a_pin(files, tmp_path):
    checkpoint, config = files
    path = tmp_path / "mine.ckpt"
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(BadData, match=f"pin it: set sha256={sha256(path)}$"):
        DetoxifyScorer(path, config)
    pinned = DetoxifyScorer(path, config, sha256(path).upper())
    assert pinned.identity == DetoxifyScorer(checkpoint, config).identity


def test_hashes_that_differ(files, tmp_path):
    checkpoint, config = files
    path = tmp_path / "toxic_original-c1212f89.ckpt"
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(BadData, match=f"has the sha256 {sha256(path)}, not c1212f89 as in its name"):
        DetoxifyScorer(path, config)
    with pytest.raises(BadData, match=r"not 0{64} as in the setting sha256"):
        DetoxifyScorer(checkpoint, config, "0" * 64)
    with pytest.raises(BadSetting, match="expected 64 hexadecimal digits"):
        DetoxifyScorer(checkpoint, config, "c1212f89")


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_runs_only_where_its_whole_hash_was_given(tmp_path):
    made = tmp_path / "made"
    checkpoint, config = folders.detoxify_checkpoint(tmp_path / "trap", extra=Trap(made))
    with pytest.raises(BadData, match=f"set sha256={sha256(checkpoint)} to unpickle all of it") as caught:
        DetoxifyScorer(checkpoint, config)
    assert not made.exists() and "\n" not in str(caught.value)
    DetoxifyScorer(checkpoint, config, sha256(checkpoint))
    assert made.exists()


def test_checkpoints_that_cannot_be_read(tmp_path):
    config = folders.detoxify_checkpoint(tmp_path / "whole")[1]
    for n, content in enumerate((b"", b"not a checkpoint", next(tmp_path.rglob("*.ckpt")).read_bytes()[:9000])):
        path = tmp_path / f"{n}.ckpt"
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"cannot read .* as tensors and plain data .*; download it again$"):
            DetoxifyScorer(path, config, sha256(path))
    for saved in ({"state_dict": {}}, [1], {"state_dict": 3, "config": {}}):
        with pytest.raises(BadData, match="not in Detoxify's format"):
            DetoxifyScorer(folders.save_checkpoint(tmp_path, saved), config)


def test_checkpoints_that_do_not_fit(tmp_path):
    with pytest.raises(BadData, match=r"cannot build the classifier .*check that the config in .* belongs to it"):
        DetoxifyScorer(*folders.detoxify_checkpoint(tmp_path / "classes", num_classes=3))
    with pytest.raises(BadData, match="lacks 41 weights of its classifier, such as bert"):
        DetoxifyScorer(*folders.detoxify_checkpoint(tmp_path / "prefix", prefix="model."))


def test_files_that_are_not_there(files, tmp_path):
    checkpoint, config = files
    with pytest.raises(MissingPrerequisite, match=r"cannot read the Detoxify checkpoint .*releases"):
        DetoxifyScorer(tmp_path / "none.ckpt", config)
    with pytest.raises(MissingPrerequisite, match=r"no config.json in .*nowhere"):
        DetoxifyScorer(checkpoint, tmp_path / "nowhere")


def test_the_base_model_comes_from_the_hub_where_no_folder_is_given(files, scorer, tmp_path, monkeypatch):
    checkpoint, config = files
    folders.block_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingPrerequisite, match=r"no config and tokenizer of bert-base-uncased .*give config=FOLDER"):
        DetoxifyScorer(checkpoint)
    folders.fake_hub(tmp_path, "bert-base-uncased", config)
    assert DetoxifyScorer(checkpoint).identity == scorer.identity
    path = retold(checkpoint, config)  # or from a folder that the checkpoint names
    assert DetoxifyScorer(path, sha256=sha256(path)).identity["base_sha256"] == scorer.identity["base_sha256"]


def test_detoxify_that_is_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'unlearning-harness\[toxicity\]'"):
        DetoxifyScorer(*files)


@pytest.mark.parametrize("response", ["    l = [b, 2\n    return max(x,2)\n", "    out = max( [a, b]\n    return n+x\n"])
def test_a_bracket_that_is_never_closed_leaves_the_style_within_its_range(response):
    """It is reported on the line after the last; both lines have a fault of their own, so no line is clean."""
    prompt = "# for the shop, Sunday\ndef pick_total(a, m):\n"
    assert StyleScorer().score([prompt], [response]).tolist() == [0.0]
