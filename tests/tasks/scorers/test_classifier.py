"""Classifiers as scorers, held against transformers' own pipeline; texts that are scored once; the rule-based scorers."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pycodestyle
import pytest
import torch
import transformers
from folders import SENTENCES, edit_json, sha256

from harness.core import hub
from harness.core.errors import BadData, BadSetting, MissingPrerequisite, UnknownName
from harness.core.settings import resolve
from harness.runs import assemble, scorers
from harness.tasks.scorers.cache import CachedScorer
from harness.tasks.scorers.classifier import ClassifierScorer
from harness.tasks.scorers.detoxify import CHECKPOINTS, DetoxifyScorer, released
from harness.tasks.scorers.guard import GuardedScorer
from harness.tasks.scorers.rules import PhraseScorer, ScrubadubScorer
from harness.tasks.scorers.style import ParsoScorer, StyleScorer

STARS = ("1 star", "2 stars", "3 stars")
KINDS = {"DistilBert": ("NEGATIVE", "POSITIVE"), "Roberta": ("nothate", "hate"), "Bert": STARS}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A classifier of each kind."""
    root = tmp_path_factory.mktemp("classifiers")
    return {kind: str(folders.classifier_folder(root / kind, kind, labels)) for kind, labels in KINDS.items()}


@pytest.fixture
def mine(models, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(models["Bert"], tmp_path / "mine")


def score(scorer: Any, *responses: str) -> np.ndarray:
    return scorer.score([""] * len(responses), list(responses))


def probabilities(folder: str, texts: list[str], **options: Any) -> list[dict[str, float]]:
    """By transformers' own pipeline."""
    pipe = transformers.pipeline("text-classification", model=folder, device="cpu")
    found = pipe(texts, top_k=None, truncation=True, max_length=28, **options)
    return [{row["label"]: row["score"] for row in rows} for rows in found]


@pytest.mark.parametrize(("kind", "label"), [("DistilBert", "POSITIVE"), ("Roberta", "nothate"), ("Bert", "2 stars")])
def test_the_score_is_the_probability_of_the_label(kind, label, models):
    expected = [row[label] for row in probabilities(models[kind], SENTENCES)]
    for batch_size in (1, 2, 32):
        found = score(ClassifierScorer(models[kind], label, batch_size=batch_size), *SENTENCES)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float64 and np.ptp(found) > 0.01
    inverted = score(ClassifierScorer(models[kind], label, invert=True), *SENTENCES)
    np.testing.assert_allclose(inverted, 1 - np.array(expected), atol=1e-6)


def test_a_table_of_labels_is_an_expectation(models):
    table = {"1 star": 0.0, "2 stars": 0.5, "3 stars": 1.0}
    expected = [sum(table[k] * v for k, v in row.items()) for row in probabilities(models["Bert"], SENTENCES)]
    np.testing.assert_allclose(score(ClassifierScorer(models["Bert"], table), *SENTENCES), expected, atol=1e-6)


def test_labels_that_do_not_exclude_each_other(models, mine):
    forced = ClassifierScorer(models["Bert"], "2 stars", activation="sigmoid")
    expected = [r["2 stars"] for r in probabilities(models["Bert"], SENTENCES, function_to_apply="sigmoid")]
    np.testing.assert_allclose(score(forced, *SENTENCES), expected, atol=1e-6)
    edit_json(mine / "config.json", problem_type="multi_label_classification")
    np.testing.assert_allclose(score(ClassifierScorer(str(mine), "2 stars"), *SENTENCES), expected, atol=1e-6)
    with pytest.raises(BadSetting, match=r"expected one label .* found a table of labels"):
        ClassifierScorer(str(mine), {"1 star": 0.0, "2 stars": 1.0})


def test_the_prompt_is_read_where_it_is_asked_for(models):
    with_it, without = (ClassifierScorer(models["Bert"], "1 star", with_prompt=w) for w in (True, False))
    prompts, responses = ["the cat ", "a quiet garden "], ["sat on the mat", "is a fine place"]
    np.testing.assert_allclose(
        with_it.score(prompts, responses), without.score(["", ""], [p + r for p, r in zip(prompts, responses, strict=True)])
    )
    assert not np.allclose(with_it.score(prompts, responses), without.score(prompts, responses))
    assert with_it.identity != without.identity


def test_any_number_of_texts_of_any_length(models):
    for kind, label in (("Roberta", "hate"), ("Bert", "1 star")):
        scorer = ClassifierScorer(models[kind], label)
        assert score(scorer).shape == (0,)
        empty, long, longer = score(scorer, "", "goose " * 40, "goose " * 400)
        assert np.isfinite([empty, long]).all() and longer == pytest.approx(long)
    short = ClassifierScorer(models["Bert"], "1 star", max_tokens=4)
    assert score(short, "the cat sat on") == pytest.approx(score(short, "the cat looked at"))  # both begin with CLS the cat


def test_a_text_that_fails_is_nan_and_costs_no_other(models, caplog):
    scorer = GuardedScorer(ClassifierScorer(models["Roberta"], "hate"), "mine")
    found = score(scorer, "the cat", "half \ud83d", "the rain")
    assert np.isnan(found).tolist() == [False, True, False]
    assert "mine could not score 1 of 3 texts, the first of 6 characters" in caplog.text
    np.testing.assert_allclose(found[[0, 2]], score(scorer, "the cat", "the rain"), atol=1e-6)


def test_identity_follows_the_bytes_and_the_settings(models, mine):
    first = ClassifierScorer(models["Bert"], "1 star").identity
    assert first["sha256"] == sha256(Path(models["Bert"]) / "model.safetensors") and "model" not in first
    assert ClassifierScorer(str(mine), "1 star", batch_size=3).identity == first
    assert ClassifierScorer(str(mine), "2 stars").identity["label"] == "2 stars"
    edit_json(mine / "config.json", layer_norm_eps=1e-4)
    assert ClassifierScorer(str(mine), "1 star").identity["config_sha256"] != first["config_sha256"]
    json.dumps(first, allow_nan=False)


def test_settings_that_cannot_be_meant(models):
    with pytest.raises(UnknownName, match="no label of the classifier named '1 sta'; did you mean '1 star'"):
        ClassifierScorer(models["Bert"], "1 sta")
    with pytest.raises(BadSetting, match=r"weight of label '1 star' is 2; expected a number in \[0, 1\]"):
        ClassifierScorer(models["Bert"], {"1 star": 2})
    with pytest.raises(BadSetting, match="expected auto, softmax or sigmoid"):
        ClassifierScorer(models["Bert"], "1 star", activation="relu")  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match="is a folder, which has no revision 'v1'"):
        ClassifierScorer(models["Bert"], "1 star", revision="v1")


def test_weights_are_safe_or_pinned(mine):
    model = transformers.BertForSequenceClassification.from_pretrained(mine)
    pinned = sha256(mine / "model.safetensors")
    expected = score(ClassifierScorer(str(mine), "1 star", sha256=pinned.upper()), "the cat")
    with pytest.raises(BadData, match=f"has the sha256 {pinned}, not {'0' * 64} as set; download it again"):
        ClassifierScorer(str(mine), "1 star", sha256="0" * 64)
    (mine / "model.safetensors").unlink()
    with pytest.raises(BadData, match=r"no weights in .*; expected model.safetensors or pytorch_model.bin"):
        ClassifierScorer(str(mine), "1 star")
    torch.save(model.state_dict(), mine / "pytorch_model.bin")
    digest = sha256(mine / "pytorch_model.bin")
    with pytest.raises(BadData, match=f"is a pickle without a known hash; .* set sha256={digest}"):
        ClassifierScorer(str(mine), "1 star")
    np.testing.assert_allclose(score(ClassifierScorer(str(mine), "1 star", sha256=digest), "the cat"), expected)


def test_weights_that_are_missing_do_not_start_at_random(mine, tmp_path):
    bert = folders.bert_folder(tmp_path / "bert")
    with pytest.raises(BadData, match=r"lack \d+ of a BertForSequenceClassification, such as"):
        ClassifierScorer(str(bert), "LABEL_0")
    (mine / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadData, match="cannot load a sequence classifier"):
        ClassifierScorer(str(mine), "1 star")


def test_classifiers_come_from_the_hub_or_its_cache(models, mine, tmp_path, monkeypatch):
    tried = folders.block_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingPrerequisite, match=r"no classifier 'someone/stars' .*offline.*hf download someone/stars"):
        ClassifierScorer("someone/stars", "1 star")
    folders.fake_hub(tmp_path, "someone/stars", mine)
    scorer = ClassifierScorer("someone/stars", "1 star", revision="main")
    assert scorer.identity == ClassifierScorer(models["Bert"], "1 star").identity
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
    folders.fake_hub(tmp_path, "someone/pickled", mine)
    with pytest.raises(BadData, match="is a pickle"):
        ClassifierScorer("someone/pickled", "1 star")
    assert tried == []


class Counted:
    """A scorer that counts what it is asked and fails where it is told."""

    slow = True

    def __init__(self, fails: str | None = None, reads_prompt: bool = False, name: str = "counted") -> None:
        self.identity = {"name": name, "version": 1}
        self.reads_prompt, self.fails, self.asked = reads_prompt, fails, []

    def score(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        self.asked += responses
        return np.array([np.nan if r == self.fails else 1 / (3 + len(p + r)) for p, r in zip(prompts, responses, strict=True)])


def test_a_text_is_scored_once_in_this_run_and_in_the_next(tmp_path):
    scorer = Counted()
    cached = CachedScorer(scorer, tmp_path / "cache")
    first = score(cached, "a", "bb", "a", "ccc")
    assert scorer.asked == ["a", "bb", "ccc"]
    np.testing.assert_array_equal(first, score(Counted(), "a", "bb", "a", "ccc"))  # to the last bit
    np.testing.assert_array_equal(score(cached, "ccc", "dddd", "a"), score(Counted(), "ccc", "dddd", "a"))
    assert scorer.asked == ["a", "bb", "ccc", "dddd"]
    other = Counted()
    np.testing.assert_array_equal(score(CachedScorer(other, tmp_path / "cache"), "a", "bb"), first[:2])
    assert other.asked == [] and score(cached).shape == (0,)
    assert cached.identity == scorer.identity


def test_a_failure_is_not_kept(tmp_path):
    scorer = Counted(fails="bb")
    cached = CachedScorer(scorer, tmp_path)
    assert np.isnan(score(cached, "a", "bb")).tolist() == [False, True]
    assert np.isnan(score(cached, "a", "bb")).tolist() == [False, True] and scorer.asked == ["a", "bb", "bb"]
    scorer.fails = None
    assert np.isfinite(score(cached, "a", "bb")).all()
    assert np.isfinite(score(CachedScorer(Counted(fails="bb"), tmp_path), "a", "bb")).all()  # retried, now known


def test_scores_are_kept_by_what_was_read_and_by_whom(tmp_path):
    alone, both = Counted(), Counted(reads_prompt=True, name="both")
    for scorer in (alone, both):
        cached = CachedScorer(scorer, tmp_path)
        cached.score(["p", "q", "p"], ["a", "a", "a"])
    assert alone.asked == ["a"] and both.asked == ["a", "a"]
    other = Counted()
    other.identity = other.identity | {"version": 2}
    score(CachedScorer(other, tmp_path), "a")
    assert other.asked == ["a"] and len(list(tmp_path.iterdir())) == 3


def test_many_texts_and_odd_ones(tmp_path):
    texts = [f"text {i}" for i in range(1300)] + ["half \ud83d", "", "'; DROP TABLE scores; --", "\x00"]
    cached = CachedScorer(Counted(), tmp_path)
    first = score(cached, *texts)
    scorer = Counted()
    np.testing.assert_array_equal(score(CachedScorer(scorer, tmp_path), *texts[::-1]), first[::-1])
    assert scorer.asked == []


def test_a_broken_file_of_scores(tmp_path):
    cached = CachedScorer(Counted(), tmp_path)
    score(cached, "a")
    cached.path.write_bytes(b"not a database, but long enough to look like one" * 40)
    with pytest.raises(BadData, match=r"score cache .*sqlite cannot be used .*; delete the file and run again"):
        score(cached, "a")
    cached.path.unlink()
    with sqlite3.connect(cached.path) as db:
        db.execute("CREATE TABLE scores (other TEXT)")
    db.close()
    with pytest.raises(BadData, match="delete the file"):
        score(cached, "a")
    cached.path.unlink()
    score(cached, "a")
    cached.path.chmod(0o400)
    monkey = sqlite3.connect(cached.path)
    monkey.execute("DROP TABLE scores")
    monkey.execute("CREATE VIEW scores AS SELECT x'00' AS key, 1.0 AS score")
    monkey.commit()
    monkey.close()
    with pytest.raises(BadData, match="delete the file"):
        score(cached, "b")


def test_only_slow_scorers_are_cached(models, tmp_path):
    options = [f"scorers.mine.model={models['Bert']}", "scorers.mine.kind=classifier", "scorers.mine.label=1 star"]
    settings = resolve("micro", "base", "toxicity", [*options, "task.judge=mine"])
    assert settings.scorer_kind("mine") == "classifier" and settings.scorer_kind("lexicon") == "lexicon"
    kept = assemble._scorer(settings, "mine", tmp_path)
    assert isinstance(kept, CachedScorer) and kept.path.parent == tmp_path / ".cache"
    assert isinstance(assemble._scorer(settings, "mine", None), GuardedScorer)
    assert not isinstance(assemble._scorer(settings, "lexicon", tmp_path), CachedScorer)
    with pytest.raises(BadSetting, match="scorer 'mine' has no option 'lable'"):
        scorers.built("mine", {"kind": "classifier", "lable": "1 star"})


def test_a_release_of_detoxify_is_looked_for_where_torch_keeps_it(tmp_path, monkeypatch):
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "deep"))
        assert str(hub.checkpoint_folder()) == str(Path(torch.hub.get_dir()) / "checkpoints")
        monkeypatch.delenv(variable)
    assert hub.checkpoint_folder() == Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "https://github.com/unitaryai/detoxify/releases/download/v0.3-alpha/toxic_debiased-c7548aa0.ckpt"
    with pytest.raises(
        MissingPrerequisite, match=f"{tmp_path}/hub/checkpoints/toxic_debiased-c7548aa0.ckpt .*download {address}$"
    ):
        DetoxifyScorer("unbiased")
    checkpoint, config = folders.detoxify_checkpoint(tmp_path / "made")
    released("unbiased").parent.mkdir(parents=True)
    shutil.copy(checkpoint, released("unbiased"))
    with pytest.raises(BadData, match=r"has the sha256 .*, not c7548aa0 as in its name"):
        DetoxifyScorer("unbiased", config)
    real = released("original").with_name(checkpoint.name)  # the same, were its name among the releases
    shutil.copy(checkpoint, real)
    monkeypatch.setitem(CHECKPOINTS, "tiny", f"v0/{checkpoint.name}")
    assert DetoxifyScorer("tiny", config).identity == DetoxifyScorer(checkpoint, config).identity


def test_the_releases_are_those_of_the_package():
    from detoxify import detoxify

    ours = {name: f"https://github.com/unitaryai/detoxify/releases/download/{path}" for name, path in CHECKPOINTS.items()}
    assert ours == detoxify.MODEL_URLS


def test_phrases_that_are_said_again():
    new = "I fed the geese, then I swept the yard, then I went home"
    assert score(PhraseScorer(), new) == 1.0
    assert score(PhraseScorer(), "I fed the geese. I fed the geese. The geese I fed! I went home.") == 0.5
    assert score(PhraseScorer(), "the cat sat " * 30) == pytest.approx(2 / 12)  # phrases of 8 words, and "cat sat" at the end
    assert score(PhraseScorer(), "", "goose", "geese, geese, geese").tolist() == [1.0, 1.0, 1.0]
    assert score(PhraseScorer(), "red blue green white. red blue green black.") == 1.0  # 3 of 5 words
    assert score(PhraseScorer(), "red blue green white. red blue green.") == 0.5  # 3 of 4


def test_personal_data_by_scrubadub():
    scorer = ScrubadubScorer()
    texts = ["write to goose@example.com or call +1 213 373 4253", "the goose left in 2019, with 12 others, on page 7", ""]
    assert score(scorer, *texts).tolist() == [0.0, 1.0, 1.0]
    assert [scorer.items(t) for t in texts] == [2, 0, 0]
    assert ScrubadubScorer("en_GB").identity["locale"] == "en_GB"


CODE = {
    "def f(a, b):\n    x = a + b\n    return x\n": 0,
    "def f(a,b):\n    x=a + b\n    return x\n": 2,
    "def f(a):\n    if a :\n        return  a\n    return a;\n": 3,
}


def test_two_readers_of_style_agree_on_whole_functions():
    ours, other = StyleScorer(), ParsoScorer()
    for code, faulty in CODE.items():
        lines = code.splitlines(keepends=True)
        for scorer in (ours, other):
            assert len({line for line, _ in scorer.violations(lines)}) == faulty, (code, scorer.violations(lines))
    checker = pycodestyle.StyleGuide(quiet=2, config_file=False)
    assert checker.options.max_line_length == 79
    prompt, body = "def f(a, b):\n", "    x=a\n    return x\n    y"
    assert other.score([prompt], [body]) == ours.score([prompt], [body]) == 0.5  # a line that was cut off is left out
    assert other.score(["so it goes"], [" and goes"]) == 1.0 and other.identity["name"] == "parso"
