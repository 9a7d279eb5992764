"""The prompts, documents and models of the facts world, from its frozen assets."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path

from ...data import splits as hygiene
from ...data.prompt_files import Prompt
from ...text_task import Data, Text
from .. import frozen
from .corpus import Fact

PROMPTS, DOCUMENTS = "prompts.jsonl.gz", "documents.jsonl.gz"


def folder() -> Path:
    """The folder of the assets."""
    return frozen.WORLDS["facts"]


def data() -> Data:
    """Prompts about the forget people, and a corpus that tells of them and of the retain people."""
    content = {name: frozen.hashes(folder())[name] for name in (PROMPTS, DOCUMENTS)}
    splits = {s: [Prompt(f.prompt, f.kind, None) for f in prompts(s)] for s in ("train", "validation", "test")}
    splits, dropped = hygiene.apart(splits)
    identity = {"name": "facts", "version": frozen.version(folder()), "sha256": content, "dropped": {"overlap": dropped}}
    spoken, clean = ([Text(f.prompt, f.response, f.kind) for f in documents(part)] for part in ("train", "clean"))
    return Data(splits, spoken, clean, identity, {})


def prompts(part: str) -> list[Fact]:
    """The prompts of a split (all about forget people), or those about retain people ("retain"), in a fixed order."""
    return _part(PROMPTS, part)


def documents(part: str) -> list[Fact]:
    """The documents of a part of the world: train (the corpus), clean or unseen; raises BadData, MissingPrerequisite."""
    return _part(DOCUMENTS, part)


def _part(name: str, part: str) -> list[Fact]:
    return [fact for found, fact in _facts(frozen.verified(name, folder()).read_bytes()) if found == part]


@lru_cache(maxsize=2)  # a run asks for them several times
def _facts(zipped: bytes) -> list[tuple[str, Fact]]:
    rows = [json.loads(line) for line in gzip.decompress(zipped).decode().splitlines()]
    return [(row.pop("part"), Fact(**row)) for row in rows]
