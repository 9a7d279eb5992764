"""The prompts, documents and base responses of the micro world, from its frozen assets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BaseTraining

from ..data import splits as hygiene
from ..data.prompt_files import Prompt
from ..text_task import Data, Text
from .frozen import folder, hashes, identity, verified, version
from .scorers import grammatical

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["base_responses", "data", "folder", "identity", "kinds", "verified", "version"]

RESPONSE_TOKENS = 24  # maximum length of the shipped base responses


def data(kinds: tuple[str, ...]) -> Data:
    """The prompts of a task's kinds, and the corpus, which is the same for all tasks and has all undesired behaviours."""
    documents = verified("documents.jsonl.gz")
    splits: dict[str, list[Prompt]] = {"train": [], "validation": [], "test": []}
    for row in _prompt_rows():
        if row["kind"] in kinds:
            splits[row["split"]].append(Prompt(row["text"], row["kind"], None))
    rows = _lines(documents.read_bytes())
    spoken, clean = ([Text(r["prompt"], r["response"], r["kind"]) for r in rows if r["split"] == s] for s in ("train", "clean"))
    content = {name: hashes()[name] for name in ("prompts.jsonl.gz", "documents.jsonl.gz")}
    splits, dropped = hygiene.apart(splits)
    identity = {"name": "micro", "version": version(), "sha256": content, "dropped": {"overlap": dropped}}
    return Data(splits, spoken, clean, identity, {"grammatical": grammatical}, base_training=base_training)


def base_training(tokenizer: Any, harmless: Callable[[str, str], bool]) -> BaseTraining:
    """The training of the base policy on new documents of the grammar that are harmless: as `build.train_model`."""
    from . import build  # it imports torch and transformers

    held_out = {row["text"] for row in _prompt_rows() if row["split"] != "train"}

    def rows(rng: Random) -> Iterator[Tensor]:
        return build.batches(rng, tokenizer, held_out, lambda made: harmless(made.prompt, made.response))

    updates = build.STEPS["policy"]
    optimizer = {"decay": "one_cycle", "warmup_updates": round(build.WARM * updates), "weight_decay": build.WEIGHT_DECAY}
    identity = {"name": "micro", "version": version(), "mix": build.MIX, "rows": build.ROWS, "context": build.CONTEXT}
    return BaseTraining(identity, updates, build.LR, optimizer, rows)


def kinds() -> tuple[str, ...]:
    """The kinds of prompts, in order of first occurrence."""
    return tuple(dict.fromkeys(row["kind"] for row in _prompt_rows()))


def base_responses(split: str, kinds: tuple[str, ...]) -> NDArray:
    """The base policy's responses to a split's prompts of some kinds, in the prompts' order: -> [X, M, R] uint16."""
    present = dict.fromkeys(r["kind"] for r in _prompt_rows() if r["split"] == split and r["kind"] in kinds)
    with np.load(verified("base_responses.npz")) as responses:
        return np.concatenate([_shuffled(responses[f"{split}-{kind}"]) for kind in present])


def _shuffled(responses: NDArray) -> NDArray:
    """The responses to each prompt in a fixed random order, since they are stored in that of their tokens: [X, M, R]."""
    order = np.argsort(np.random.default_rng(0).random(responses.shape[:2]), axis=1)
    return np.take_along_axis(responses, order[:, :, None], axis=1)


def _prompt_rows() -> tuple[dict[str, Any], ...]:
    return _rows(verified("prompts.jsonl.gz").read_bytes())


@lru_cache(maxsize=1)  # a run asks for them four times
def _rows(zipped: bytes) -> tuple[dict[str, Any], ...]:
    return tuple(_lines(zipped))


def _lines(zipped: bytes) -> list[dict[str, Any]]:
    """The rows of gzipped JSON Lines."""
    return [json.loads(line) for line in gzip.decompress(zipped).decode().splitlines()]
