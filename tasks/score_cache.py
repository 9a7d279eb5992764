"""Texts that a slow scorer has scored before, on disk, by the scorer's identity.

A cached score is charged like a fresh one: a method's cost is what it asks for, not what the machine happens to know.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadData
from harness.types import Scorer

log = logging.getLogger(__name__)

AT_ONCE = 500  # keys in one question


class CachedScorer:
    """A scorer that asks another one only for what it has not scored yet, in this run or in an earlier one.

    What could not be scored (NaN) is not kept, so that it is tried again. Texts are kept as hashes. Nothing is held in
    memory between two calls, and several runs may write to one file.
    """

    def __init__(self, scorer: Any, folder: Path) -> None:
        self.identity: dict[str, Any] = scorer.identity
        self._scorer: Scorer = scorer
        self._reads_prompt = getattr(scorer, "reads_prompt", False)
        identity = hashlib.sha256(json.dumps(scorer.identity, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"texts-{scorer.identity['name']}-{identity[:16]}.sqlite"

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, NaN where the scorer failed: -> [N] float64."""
        keys = [self._key(p, r) for p, r in zip(prompts, responses)]
        known = self._known(list(dict.fromkeys(keys)))
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        log.info("%s: %d of %d texts were scored before", self.identity["name"], len(keys) - len(first), len(keys))
        if first:
            rows = sorted(first.values())
            fresh = self._scorer.score([prompts[i] for i in rows], [responses[i] for i in rows])
            scored = {keys[i]: float(s) for i, s in zip(rows, fresh)}
            self._keep({key: s for key, s in scored.items() if not np.isnan(s)})
            known |= scored
        return np.array([known[key] for key in keys], dtype=float)

    def _key(self, prompt: str, response: str) -> bytes:
        text = json.dumps([prompt, response] if self._reads_prompt else [response])  # JSON: it takes half a surrogate pair
        return hashlib.sha256(text.encode()).digest()

    def _known(self, keys: list[bytes]) -> dict[bytes, float]:
        if not self.path.exists():
            return {}
        found: dict[bytes, float] = {}
        try:
            with closing(self._open()) as db:
                for i in range(0, len(keys), AT_ONCE):
                    part = keys[i : i + AT_ONCE]
                    found |= db.execute(f"SELECT key, score FROM scores WHERE key IN ({','.join('?' * len(part))})", part)
            if any(not isinstance(score, float) for score in found.values()):
                raise sqlite3.DatabaseError("a score in it is no number")
        except sqlite3.DatabaseError as e:
            raise self._unreadable(e) from None
        return found

    def _keep(self, scores: dict[bytes, float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._open()) as db, db:
                db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())
        except sqlite3.DatabaseError as e:
            raise self._unreadable(e) from None

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)  # another run may be writing
        db.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
        return db

    def _unreadable(self, error: Exception) -> BadData:
        return BadData(f"the scored texts in {self.path} cannot be used ({error}); delete the file and run again")
