"""Thousands of generated texts through every scorer: no exception leaves it, and a score is in [0, 1] or NaN at any batch."""

from pathlib import Path

import folders
import labelled
import numpy as np
import own_modules
import pytest
from odd_texts import texts

from harness.runs import scorers
from harness.tasks import SCORERS
from harness.tasks.labels import train
from harness.tasks.labels.linear import LinearSettings
from harness.tasks.labels.rows import Source
from harness.tasks.pep8 import is_code, parses
from harness.tasks.scorers.guard import GuardedScorer

SCORING = sorted(set(SCORERS) - {"yours"})  # which stands for one that is missing
NETWORKS = {"classifier", "detoxify"}
OF_FACTS = {"facts-judge", "facts-rule"}
SLOW = NETWORKS | {"evaluate"}  # whose every call costs
UNSCORED = {
    "parso": 0.2,
    "classifier": 0.1,
    "detoxify": 0.1,
    "evaluate": 0.25,
    "scrubadub": 0.01,
}  # at most, of these texts; by others none


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, dict]:
    root: Path = tmp_path_factory.mktemp("models")
    classifier = folders.classifier_folder(root / "classifier", "Roberta", ("no", "yes"))
    modules = own_modules.write(root / "modules")
    rows = Source(data=str(labelled.write(root / "a.jsonl", labelled.sentences(150))), text=("text",), score=("score",))
    train.train(train.Asked(rows, LinearSettings()), root / "trained")
    checkpoint, config = folders.detoxify_checkpoint(root / "detoxify")
    return {
        "classifier": {"model": str(classifier), "label": "yes", "device": "cpu"},
        "evaluate": {"module": str(modules / "lengths"), "key": "all", "low": -500.0, "high": 500.0},
        "trained": {"folder": str(root / "trained")},
        "detoxify": {"checkpoint": str(checkpoint), "config": str(config), "device": "cpu"},
    }


def in_parts(scorer: GuardedScorer, prompts: list[str], responses: list[str], size: int) -> np.ndarray:
    starts = range(0, len(responses), size)
    return np.concatenate([scorer.score(prompts[i : i + size], responses[i : i + size]) for i in starts])


def check(name: str, options: dict[str, dict], n: int, alone: int) -> None:
    """n texts in batches of 64, and one in `alone` of them by itself."""
    prompts, responses = texts(n)
    scorer = scorers.built(name, options.get(name, {}))
    found = in_parts(scorer, prompts, responses, 64)
    assert found.shape == (n,) and found.dtype == np.float64
    scored = ~np.isnan(found)
    assert ((found[scored] >= 0) & (found[scored] <= 1)).all() and (~scored).mean() <= UNSCORED.get(name, 0)
    assert len(set(found[scored].tolist())) > 1 or name in OF_FACTS  # these texts state none
    single = in_parts(scorer, prompts[::alone], responses[::alone], 1)
    np.testing.assert_allclose(single, found[::alone], rtol=0, atol=1e-5 if name in NETWORKS else 0)


@pytest.mark.parametrize("name", SCORING)
def test_a_few_hundred_odd_texts(name, options):
    check(name, options, 240, alone=1)


@pytest.mark.long
@pytest.mark.parametrize("name", SCORING)
def test_thousands_of_odd_texts(name, options):
    check(name, options, *((4_000, 16) if name in SLOW else (10_000, 3)))


def test_what_is_counted_in_odd_texts_and_whether_they_parse_raises_nothing(recwarn):
    prompts, responses = texts(350, seed=1)
    for name in ("presidio", "scrubadub", "personal-judge", "pycodestyle", "parso"):
        scorer = scorers.built(name, {})
        for pair in zip(prompts, responses, strict=True):
            count = scorer.items(*(pair if name in ("pycodestyle", "parso") else pair[1:]))
            assert count >= 0 or np.isnan(count)
    assert {parses(*pair) for pair in zip(prompts, responses, strict=True) if is_code(*pair)} == {0.0, 1.0}
    assert not recwarn.list
