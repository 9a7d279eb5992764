"""`harness train-scorer`: the same command again, other ones, damage, and the use of what it writes."""

import json
import shutil

import labelled
import numpy as np
import pytest

from harness.core.errors import BadData
from harness.tasks.labels import card, rows
from harness.tasks.labels.scorer import TrainedScorer

pytest.importorskip("sklearn")


@pytest.fixture
def data(tmp_path):
    return labelled.write(tmp_path / "labels.jsonl", labelled.sentences(400))


@pytest.fixture
def train(harness, data, tmp_path):
    """Call the command for a linear scorer: -> exit code, standard output, standard error."""

    def call(*words, out=tmp_path / "reward", file=data):
        common = ("--data", file, "--text", "text", "--score", "score", "--kind", "linear", "--out", out)
        return harness("train-scorer", *common, *words)

    return call


def test_a_scorer_is_trained_measured_and_described(train, data, tmp_path):
    code, out, err = train()
    assert code == 0 and "AUC          1.000" in out and "prediction      texts" in out and "trained:" in err
    found = card.read(tmp_path / "reward")
    c = found.card
    assert (c.kind, c.request.source.data, c.request.seed, c.request.start) == ("linear", "labels.jsonl", 0, None)
    assert c.rows.train + c.rows.validation + c.rows.test == 400 and c.test.n == c.rows.test
    assert str(tmp_path) not in (tmp_path / "reward" / "scorer.json").read_text()
    assert set(c.versions) == {"unlearning-harness", "numpy", "scipy", "scikit-learn"}
    labels = rows.labelled(rows.Source(data=str(data), text=("text",), score=("score",)))
    split = labels.split()
    used = rows.row_hashes(labels.texts[i] for name in ("train", "validation") for i in split[name])
    np.testing.assert_array_equal(found.rows(), used)
    assert not np.isin(rows.row_hashes(labels.texts[i] for i in split["test"]), used).any()


def test_the_same_command_finds_it_and_fresh_gives_the_same_bytes(train, data, tmp_path):
    train()
    before = {p.name: p.read_bytes() for p in (tmp_path / "reward").iterdir()}
    code, out, err = train()
    assert code == 0 and "already trained" in err and "AUC          1.000" in out
    copy = shutil.copy(data, tmp_path / "renamed.jsonl")
    assert "already trained" in train(file=copy)[2]
    (tmp_path / "reward" / "notes.txt").write_text("mine")
    code, _, err = train("--fresh")
    assert code == 0 and "already" not in err
    after = {p.name: p.read_bytes() for p in (tmp_path / "reward").iterdir()}
    assert after == before | {"notes.txt": b"mine"} and not list(tmp_path.glob(".*"))


def test_it_holds_the_rules_of_scorers(train, harness, tmp_path):
    train()
    code, out, _ = harness("check", "scorer", tmp_path / "reward")
    assert code == 0 and "FAILS" not in out, out


def test_json(train):
    code, out, _ = train("--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["test"]["auc"] == 1.0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--seed", "1"), 2, "draws nothing at random; leave out --seed 1"),
        (("--set", "strength=1"), 2, "holds a scorer of another request (strength 10.0, not 1.0)"),
        (("--higher-is", "better"), 2, "holds a scorer of another request (higher_is worse, not better)"),
        (("--higher-is", "higher"), 2, "higher_is"),
        (("--set", "epochs=3"), 2, "unknown setting 'linear.epochs'"),
        (("--kind", "forest"), 2, "cannot train 'forest'"),
        (("--text", "body"), 2, "2 columns of texts and 1 of scores"),
    ],
)
def test_another_command_on_a_finished_folder_and_mistakes(words, code, message, train):
    train()
    found, _, err = train(*words)
    assert (found, message in err) == (code, True), err


def test_folders_that_hold_something_else(train, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    code, _, err = train("--fresh", out=tmp_path / "full")
    assert code == 2 and "exists and holds no scorer of harness train-scorer; choose another --out" in err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    code, _, err = train(out=tmp_path / "full" / "thesis.txt" / "below")
    assert code == 2 and "cannot write the scorer to" in err


def test_damage_is_found_and_fresh_repairs_it(train, tmp_path):
    train()
    folder = tmp_path / "reward"
    whole = card.read(folder).sha256
    (folder / "weights.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BadData, match=r"weights\.safetensors is not the file that was trained"):
        card.read(folder)
    (folder / "scorer.json").write_text("{}")
    with pytest.raises(BadData, match=r"scorer\.json cannot be read"):
        card.read(folder)
    assert train("--fresh")[0] == 0 and card.read(folder).sha256 == whole
    (folder / "scorer.json").write_text("no JSON")
    assert card.names(folder) == ["scorer.json"] and card.names(tmp_path) == []
    with pytest.raises(BadData, match=r"no scorer\.json in"):
        card.read(tmp_path)


@pytest.mark.parametrize("kind", ["linear", "encoder"])
def test_a_share_of_undesired_texts_lowers_every_score_alike(kind, harness, data, tmp_path):
    small = ("--set", "epochs=1", "--set", "layers=1", "--set", "width=16", "--set", "heads=2") if kind == "encoder" else ()
    common = ("train-scorer", "--data", data, "--text", "text", "--score", "score", "--kind", kind, *small)
    assert harness(*common, "--out", tmp_path / "as-it-is")[0] == 0
    code, out, _ = harness(*common, "--set", "undesired_share=0.05", "--out", tmp_path / "rare")
    assert code == 0 and "expected error, where 5% of the texts are undesired" in out
    texts = ["you saw the cat", "you saw the clown", "she kept the lamp"]
    as_it_is, rare = (1 - TrainedScorer(str(tmp_path / name)).score([""] * 3, texts) for name in ("as-it-is", "rare"))
    mean = np.mean([score for _, score in labelled.sentences(400)])
    odds = (rare / (1 - rare)) / (as_it_is / (1 - as_it_is))
    assert odds == pytest.approx(
        (0.05 / 0.95) / (mean / (1 - mean)), rel=1e-3
    )  # odds times the ratio of the odds of the shares


def test_a_share_of_labels_that_are_all_alike(harness, tmp_path):
    data = labelled.write(tmp_path / "alike.jsonl", [(text, 1.0) for text, _ in labelled.sentences(200)])
    common = ("--data", data, "--text", "text", "--score", "score", "--kind", "encoder", "--out", tmp_path / "out")
    code, _, err = harness("train-scorer", *common, "--set", "undesired_share=0.1")
    assert code == 3 and "undesired_share needs labels of both kinds" in err and not (tmp_path / "out").exists()


def test_several_columns_are_measured_each(harness, tmp_path):
    pairs = zip(labelled.sentences(300), labelled.sentences(300, 1), strict=True)
    nested = [{"a": {"text": t, "score": s}, "b": {"text": u, "score": v}} for (t, s), (u, v) in pairs]
    file = labelled.lines(tmp_path / "two.jsonl", nested)
    columns = ("--text", "a.text", "--score", "a.score", "--text", "b.text", "--score", "b.score")
    code, out, _ = harness("train-scorer", "--data", file, *columns, "--kind", "linear", "--out", tmp_path / "out")
    assert code == 0 and ", 1.000 in a.text, 1.000 in b.text" in out


def test_ctrl_c_writes_nothing_and_says_so(train, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.tasks.labels.train._linear", interrupted)
    code, _, err = train()
    assert code == 130 and err.splitlines()[-1] == "error: interrupted; nothing was written; the same command begins anew"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
