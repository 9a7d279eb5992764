"""The linear scorer: its features by hand, and its scores held against scikit-learn's own pipeline."""

import sys

import labelled
import numpy as np
import pytest

from harness.core.errors import BadData, MissingPrerequisite
from harness.tasks.labels import linear
from harness.tasks.labels.linear import LinearSettings, Reader


def test_features_by_hand():
    reader = Reader(True, 2, 3)
    assert list(reader.words("My dog, my DOG!")) == ["my", "dog", "my", "dog", "my dog", "dog my", "my dog"]
    assert list(reader.characters("A ox")) == [" a", "a ", " a ", " o", "ox", "x ", " ox", "ox "]
    assert list(Reader(False, 1, 1).words("a b")) == ["a", "b"] and list(reader.characters("")) == []
    assert len(max(reader.words("a" * 1000), key=len)) == linear.LONGEST


def test_scores_are_those_of_scikit_learn_and_need_none_of_it(tmp_path, monkeypatch):
    text, linear_model = pytest.importorskip("sklearn.feature_extraction.text"), pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_union

    rows, settings = labelled.sentences(200), LinearSettings(word_pairs=True)
    texts, scores = [t for t, _ in rows], np.array([s for _, s in rows])
    linear.train(texts, scores, settings).write(tmp_path)
    others = [*texts[:20], "You TWIT, you!", "nothing known: äöü", ""]
    reader = Reader(True, settings.shortest, settings.longest)
    union = make_union(*(text.TfidfVectorizer(analyzer=b, sublinear_tf=True, min_df=2) for b in reader.blocks())).fit(texts)
    model = linear_model.LogisticRegression(C=10, max_iter=1000)
    model.fit(union.transform(texts * 2), [1] * 200 + [0] * 200, sample_weight=np.r_[scores, 1 - scores])
    expected = model.predict_proba(union.transform(others))[:, 1]
    for name in [n for n in sys.modules if n.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = linear.read(tmp_path).undesired(others)
    monkeypatch.undo()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.ptp(found) > 0.5


def test_scaled_logits_and_files_that_do_not_fit(tmp_path):
    pytest.importorskip("sklearn")
    texts = [t for t, _ in labelled.sentences(60)]
    model = linear.train(
        texts, np.array([s for _, s in labelled.sentences(60)]), LinearSettings(shortest=3, longest=3, most=50)
    )
    assert all(len(block.table) <= 50 for block in model.blocks)
    assert model.calibrated(2.0, -1.0).logit(texts[0]) == pytest.approx(2 * model.logit(texts[0]) - 1)
    model.write(tmp_path)
    assert linear.read(tmp_path) == model
    (tmp_path / linear.FEATURES).write_text(
        (tmp_path / linear.FEATURES).read_text().replace('"words": [', '"words": ["more", ')
    )
    with pytest.raises(BadData, match="no linear model in"):
        linear.read(tmp_path)


def test_training_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingPrerequisite, match=r"needs scikit-learn: pip install 'unlearning-harness\[scorers\]'"):
        linear.train(["a"], np.array([1.0]), LinearSettings())
