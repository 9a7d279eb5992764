"""A linear model of labelled texts: a logistic regression on words and character n-grams, weighted by tf-idf.

Training needs scikit-learn, scoring does not: the model is a list of features and arrays, and both read a text by the same
functions. Words and character n-grams are two blocks; in each the weights tf-idf of a text are scaled to length 1.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.api import BadData, MissingPrerequisite, one_line

from . import measures
from .measures import CommonSettings

WORD = re.compile(r"\w+")
LONGEST = 100  # characters of a word that are read
FEATURES, WEIGHTS = "features.json", "weights.safetensors"


class LinearSettings(CommonSettings):
    """Settings of the linear model."""

    word_pairs: bool = Field(False, description="whether pairs of adjacent words are features, beside the words")
    shortest: int = Field(2, ge=1, le=10, description="shortest character n-gram, in characters")
    longest: int = Field(5, ge=1, le=10, description="longest character n-gram, in characters")
    least: int = Field(2, ge=1, description="least number of training texts with a feature")
    most: int = Field(100_000, ge=1, description="maximum number of features of each block, the most frequent first")
    strength: float = Field(10.0, gt=0, description="inverse of the penalty on the squared weights (C of scikit-learn)")


class Reader(NamedTuple):
    """How a text becomes features, a function for each of the two blocks."""

    word_pairs: bool
    shortest: int
    longest: int

    def words(self, text: str) -> Iterator[str]:
        """The words of a text in lower case, and the pairs of adjacent ones if asked for."""
        found = [word[:LONGEST] for word in WORD.findall(text.casefold())]
        yield from found
        if self.word_pairs:
            yield from (f"{a} {b}" for a, b in pairwise(found))

    def characters(self, text: str) -> Iterator[str]:
        """The n-grams of characters within the words of a text, each word with a space on both sides."""
        for word in text.casefold().split():
            padded = f" {word[:LONGEST]} "
            for n in range(self.shortest, self.longest + 1):
                yield from (padded[i : i + n] for i in range(len(padded) - n + 1))

    def blocks(self) -> tuple[Callable[[str], Iterator[str]], ...]:
        """The two blocks of features, in their order."""
        return self.words, self.characters


class Block(NamedTuple):
    """The features of a block: {feature: (idf, weight)}."""

    table: Mapping[str, tuple[float, float]]

    def logit(self, features: Iterator[str]) -> float:
        """The weights of a text's features times their tf-idf scaled to length 1; 0 if none is known."""
        counts = Counter(features)
        known = [(1 + math.log(n), *self.table[f]) for f, n in counts.items() if f in self.table]
        length = math.sqrt(math.fsum((tf * idf) ** 2 for tf, idf, _ in known))
        return math.fsum(tf * idf * weight for tf, idf, weight in known) / length if known else 0.0


class LinearModel(NamedTuple):
    """A trained model: how undesired a text is."""

    reader: Reader
    blocks: tuple[Block, ...]
    bias: float

    def logit(self, text: str) -> float:
        """The logit of a text: the bias alone for a text without any known feature."""
        parts = zip(self.blocks, self.reader.blocks(), strict=True)
        return self.bias + math.fsum(block.logit(read(text)) for block, read in parts)

    def undesired(self, texts: list[str]) -> NDArray[np.float64]:
        """How undesired each text is, in [0, 1]: [N] -> [N]."""
        return measures.sigmoid(np.array([self.logit(text) for text in texts], dtype=float))

    def calibrated(self, scale: float, shift: float) -> LinearModel:
        """The model whose logits are scaled and shifted."""
        blocks = tuple(Block({f: (idf, w * scale) for f, (idf, w) in block.table.items()}) for block in self.blocks)
        return LinearModel(self.reader, blocks, self.bias * scale + shift)

    def write(self, folder: Path) -> None:
        """Write the features and the arrays to a folder."""
        from safetensors.numpy import save

        arrays = {"bias": np.array([self.bias])}
        for name, block in zip(("words", "characters"), self.blocks, strict=True):
            columns = np.array(list(block.table.values()), dtype=np.float64).reshape(-1, 2)
            arrays |= {f"{name}.idf": columns[:, 0].copy(), f"{name}.weight": columns[:, 1].copy()}
        (folder / WEIGHTS).write_bytes(save(arrays))
        tables = {name: list(block.table) for name, block in zip(("words", "characters"), self.blocks, strict=True)}
        (folder / FEATURES).write_text(json.dumps({**self.reader._asdict(), **tables}, ensure_ascii=True) + "\n")


def read(folder: Path) -> LinearModel:
    """Read a model from a folder; raises BadData if its files do not fit each other."""
    from safetensors.numpy import load

    try:
        arrays, said = load((folder / WEIGHTS).read_bytes()), json.loads((folder / FEATURES).read_text())
        reader = Reader(**{key: said[key] for key in Reader._fields})
        blocks = tuple(_block(said[name], arrays[f"{name}.idf"], arrays[f"{name}.weight"]) for name in ("words", "characters"))
        return LinearModel(reader, blocks, float(arrays["bias"][0]))
    except Exception as e:  # safetensors and json raise many types
        raise BadData(f"no linear model in {folder} ({one_line(e)}); train it again: harness train-scorer --fresh") from e


def _block(names: list[str], idf: NDArray, weights: NDArray) -> Block:
    return Block(dict(zip(names, zip(idf.tolist(), weights.tolist(), strict=True), strict=True)))


def train(texts: list[str], undesired: NDArray, settings: LinearSettings) -> LinearModel:
    """Fit the model to texts and how undesired each is, in [0, 1]: [N], [N]; raises MissingPrerequisite without scikit-learn.

    A graded label counts as that share of an undesired and the rest of a desired text.
    """
    from scipy import sparse

    vectorizer_of, regression = _sklearn()
    reader = Reader(settings.word_pairs, settings.shortest, settings.longest)
    vectorizers = [vectorizer_of(settings, block) for block in reader.blocks()]
    x = sparse.hstack([v.fit_transform(texts) for v in vectorizers]).tocsr()
    model = regression(C=settings.strength, max_iter=1000)
    twice, sides = sparse.vstack([x, x]).tocsr(), np.repeat([1, 0], len(texts))
    model.fit(twice, sides, sample_weight=np.concatenate([undesired, 1 - undesired]))
    weights, blocks, start = model.coef_[0], [], 0
    for v in vectorizers:
        names = v.get_feature_names_out().tolist()
        blocks.append(_block(names, v.idf_, weights[start : start + len(names)]))
        start += len(names)
    return LinearModel(reader, tuple(blocks), float(model.intercept_[0]))


def _sklearn() -> tuple[Callable[..., Any], Any]:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as e:
        raise MissingPrerequisite(
            "training a linear scorer needs scikit-learn: pip install 'unlearning-harness[scorers]'"
        ) from e

    def vectorizer(settings: LinearSettings, block: Callable[[str], Iterator[str]]) -> Any:
        return TfidfVectorizer(analyzer=block, sublinear_tf=True, min_df=settings.least, max_features=settings.most)

    return vectorizer, LogisticRegression
