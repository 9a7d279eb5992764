"""The encoder scorer: from scratch and fine-tuned, its folder held against transformers' own pipeline."""

import json
import random
import shutil

import folders
import labelled
import numpy as np
import pytest
import torch
import transformers

from harness.core.errors import BadData, BadSetting
from harness.tasks.labels import encoder, measures, train
from harness.tasks.labels.encoder import EncoderSettings
from harness.tasks.labels.rows import Source
from harness.tasks.labels.scorer import TrainedScorer

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = {"layers": 1, "width": 16, "heads": 2, "vocabulary": 400, "max_tokens": 48}
SMALL = EncoderSettings(**SIZE, epochs=6, batch_size=16, lr=0.01, device="cpu")
TEXTS = ["you saw the cat and the silly goose", "YOU saw the cat and the lamp!", "a word that nobody has said", ""]


def asked(folder, settings=SMALL, **more) -> train.Asked:
    data = labelled.write(folder / "labels.jsonl", labelled.sentences(240))
    return train.Asked(Source(data=str(data), text=("text",), score=("score",)), settings, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An encoder from scratch."""
    root = tmp_path_factory.mktemp("encoder")
    return train.train(asked(root), root / "judge")[0]


def test_it_learns_what_the_labels_follow(trained):
    assert trained.card.test.auc > 0.9 and trained.card.test.spearman > 0.5
    found = TrainedScorer(str(trained.folder)).score(["", "", "", ""], TEXTS)
    assert found[0] < 0.4 < 0.6 < found[1] and found.shape == (4,)


def test_its_folder_is_a_classifier_of_transformers(trained):
    pipe = transformers.pipeline("text-classification", model=str(trained.folder), device="cpu")
    rows = pipe(TEXTS[:3], truncation=True)
    assert {row["label"] for row in rows} == {"undesired"}
    found = TrainedScorer(str(trained.folder), batch_size=1).score([""] * 3, TEXTS[:3])
    np.testing.assert_allclose(found, [1 - row["score"] for row in rows], atol=1e-6)
    assert not [p.name for p in trained.folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(tmp_path):
    short = SMALL.model_copy(update={"epochs": 1})
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # the state of the global generator does not matter
        train.train(asked(tmp_path, short, seed=seed), tmp_path / name)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1] and files[0]["model.safetensors"] != files[2]["model.safetensors"]


@pytest.mark.parametrize("kind", ["DistilBert", "Roberta"])
def test_any_encoder_is_fine_tuned(kind, tmp_path):
    start = folders.classifier_folder(tmp_path / "start", kind, ("a", "b", "c"))
    found = train.train(
        asked(tmp_path, SMALL.model_copy(update={"epochs": 1, "lr": None}), start=str(start)), tmp_path / "out"
    )[0]
    assert (found.card.request.start, len(found.card.request.start_sha256)) == ("start", 64)
    scores = TrainedScorer(str(found.folder)).score([""] * 2, TEXTS[:2])
    assert ((scores > 0) & (scores < 1)).all()


def test_encoders_that_cannot_be_fine_tuned(tmp_path):
    start = folders.classifier_folder(tmp_path / "start", "Bert", ("a", "b"))
    pickled = shutil.copytree(start, tmp_path / "pickled")
    torch.save(torch.nn.Linear(1, 1).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(BadData, match=r"cannot load an encoder from .*pickled"):
        train.train(asked(tmp_path, start=str(pickled)), tmp_path / "out")
    code = shutil.copytree(start, tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (code / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(BadData, match=r"cannot load an encoder from .*code"):
        train.train(asked(tmp_path, start=str(code)), tmp_path / "out")
    with pytest.raises(BadSetting, match="a linear scorer starts from nothing"):
        train.train(asked(tmp_path, train.LinearSettings(), start=str(start)), tmp_path / "out")
    with pytest.raises(BadSetting, match=r"draws nothing at random; leave out --seed 3"):
        train.train(asked(tmp_path, train.LinearSettings())._replace(seed=3), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.part"))


def test_a_last_layer_without_a_bias_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False))
    with pytest.raises(BadData, match="the last layer of a Sequential has no bias"):
        encoder.Encoder(model, None, 8).calibrate(1.0, 0.0)


def test_calibration_is_part_of_the_weights(trained):
    model = encoder._loaded(trained.folder, SMALL)
    rows = model.ids(TEXTS[:3])
    before = model.logits(rows)
    model.calibrate(2.0, -0.5)
    np.testing.assert_allclose(model.logits(rows), 2 * before - 0.5, atol=1e-5)
    assert encoder.cross_entropy(np.array([1.0, 0.25]), np.array([0.3, -2.0])) == pytest.approx(
        -(np.log(measures.sigmoid(np.array(0.3))) + 0.25 * np.log(measures.sigmoid(np.array(-2.0)))
          + 0.75 * np.log(measures.sigmoid(np.array(2.0)))) / 2
    )  # fmt: skip


def test_batches_hold_every_text_once_and_similar_lengths():
    lengths = [i % 37 for i in range(1000)]
    found = encoder.batches(lengths, 10, random.Random(0))
    assert sorted(i for batch in found for i in batch) == list(range(1000)) and max(map(len, found)) == 10
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in found]) < 5
    assert found != encoder.batches(lengths, 10, random.Random(1))


def test_the_best_epoch_is_kept(tmp_path):
    """Labels of the validation texts are turned around, so that each epoch makes them worse."""
    rows = labelled.sentences(120)
    texts, scores = [t for t, _ in rows], np.array([s for _, s in rows])
    model = encoder.start(texts, SMALL, 0, None)
    held_out = (texts[:40], 1 - scores[:40])
    found = encoder.fit(model, texts, scores, held_out, SMALL, 0, True, lambda share, loss: None)
    assert found.epoch < SMALL.epochs
    assert encoder.cross_entropy(held_out[1], model.logits(model.ids(held_out[0]))) == pytest.approx(found.loss)
