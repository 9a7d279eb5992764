"""The on-disk cache of scores of slow scorers, one file per scorer identity.

A cached score is charged like a new one: the cost of a method counts requested scores, whatever the cache holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BadData, BenchError, Scorer, Unwritable

log = logging.getLogger(__name__)
AT_ONCE = 500  # keys per query
WAIT = 1.0  # seconds per attempt to lock a file that another process holds
SAID_FIRST, SAID_EVERY = 4, 60  # attempts before the first warning about waiting, and between warnings
DISK = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM)


class CachedScorer:
    """A scorer that calls another one only for texts that are not in its cache, from this run or an earlier one.

    Unscored texts (NaN) are not cached, so that they are tried again; nor is anything of an interrupted call. Texts are
    stored as hashes. Nothing is held in memory between calls, and several runs may share one file: while another one
    holds the lock, this one waits and logs a warning.
    """

    def __init__(self, scorer: Any, folder: Path) -> None:
        self.identity: dict[str, Any] = scorer.identity
        self._scorer: Scorer = scorer
        self._reads_prompt = getattr(scorer, "reads_prompt", False)
        self.items = getattr(scorer, "items", None)
        identity = hashlib.sha256(json.dumps(scorer.identity, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w.-]", "_", scorer.identity["name"])
        self.path = folder / f"texts-{name}-{identity[:16]}.sqlite"

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, NaN if the scorer failed: -> [N] float64; raises BadData, Unwritable."""
        keys = [self._key(p, r) for p, r in zip(prompts, responses, strict=True)]
        known = self._known(list(dict.fromkeys(keys)))
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        log.info("%s: %d of %d texts are cached", self.identity["name"], len(keys) - len(first), len(keys))
        if first:
            rows = sorted(first.values())
            fresh = self._scorer.score([prompts[i] for i in rows], [responses[i] for i in rows])
            scored = {keys[i]: float(s) for i, s in zip(rows, fresh, strict=True)}
            self._keep({key: s for key, s in scored.items() if not np.isnan(s)})
            known |= scored
        return np.array([known[key] for key in keys], dtype=float)

    def _key(self, prompt: str, response: str) -> bytes:
        text = json.dumps([prompt, response] if self._reads_prompt else [response])  # JSON, since it can encode lone surrogates
        return hashlib.sha256(text.encode()).digest()

    def _known(self, keys: list[bytes]) -> dict[bytes, float]:
        if not self.path.exists():
            return {}
        found: dict[bytes, float] = {}
        with self._open() as db:
            for i in range(0, len(keys), AT_ONCE):
                part = keys[i : i + AT_ONCE]
                found |= db.execute(f"SELECT key, score FROM scores WHERE key IN ({','.join('?' * len(part))})", part)
        for score in found.values():
            if not isinstance(score, float) or not 0 <= score <= 1:
                raise self._unusable(f"it holds the score {score!r}, expected [0, 1]")
        return found

    def _keep(self, scores: dict[bytes, float]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise Unwritable(f"cannot cache scores in {self.path.parent} ({e.strerror}); choose another --out") from None
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Context manager that locks the file; writes in the block are committed together or not at all."""
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)) as db:
                self._hold(db)
                db.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
                yield db
                db.execute("COMMIT")
        except sqlite3.DatabaseError as e:
            raise self._refused(e) from None

    def _hold(self, db: sqlite3.Connection) -> None:
        """Lock the file, waiting while another process holds it, in steps of a second, so that Ctrl-C works."""
        for second in count():
            try:
                db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
            if second % SAID_EVERY == SAID_FIRST:
                log.warning("waiting for another process that holds %s (fuser %s names it)", self.path, self.path)

    def _refused(self, error: sqlite3.DatabaseError) -> BenchError:
        if error.sqlite_errorcode & 0xFF in DISK:  # the lower byte is the primary result code
            return Unwritable(f"cannot use the score cache {self.path} ({error}); check its permissions and the disk")
        return self._unusable(str(error))

    def _unusable(self, why: str) -> BadData:
        return BadData(f"the score cache {self.path} cannot be used ({why}); delete the file and run again")
