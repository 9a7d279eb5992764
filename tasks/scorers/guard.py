"""The guard around every scorer: a text that it fails on is unscored (NaN), and what is no score never enters a run.

A scorer scores each text (and its prompt) by itself: the score does not depend on what else is in the batch. So a batch
that fails is asked again text by text, and a text that fails alone is NaN. A score outside [0, 1], or another number of
scores than texts, is no accident of a text but an error of the scorer. An interruption passes through.

The time limit is an alarm of the operating system, so it is kept in the main thread only, and the scorer is stopped when
the interpreter runs again: at once in Python code and in waiting, at its return in a library's own loop.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import BadScorer, BadSetting, BenchError

log = logging.getLogger(__name__)
TIMEOUT = 3600.0
"""Seconds that a call of a scorer may take where the settings do not say."""
PATIENCE = 8
"""So many texts in a row without an answer in time, and it is the scorer that hangs, not the texts."""
ROUNDING = 1e-6
"""How far outside [0, 1] a score may lie by the rounding of float32; it is put back."""


NO_FILE: Mapping[str, Any] = {}


class TooSlow(BaseException):
    """The time limit of a scorer; no `Exception`, so that the scorer's own handlers let it pass."""


class GuardedScorer:
    """A scorer whose failures on a text are NaN, and whose other failures are one line that names it.

    timeout    seconds that one call may take; a batch that takes longer is asked again text by text, and a text that takes
               longer is unscored
    """

    def __init__(self, scorer: Any, name: str, timeout: float | None = None, file: Mapping[str, Any] = NO_FILE) -> None:
        """`file` is what the identity says beside the scorer's own, where its class comes from a file."""
        self.identity: dict[str, Any] = _identity(scorer, name, file)
        self.slow, self.reads_prompt = (bool(getattr(scorer, word, False)) for word in ("slow", "reads_prompt"))
        self.items: Callable[..., float] | None = self.count if callable(getattr(scorer, "items", None)) else None
        self._scorer, self._name, self._timeout = scorer, name, _seconds(name, timeout)
        self._late = 0  # texts in a row without an answer in time

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, in [0, 1], NaN where the scorer failed: -> [N] float64."""
        if not responses:
            return np.empty(0)
        try:
            return self._ask(prompts, responses)
        except BenchError:
            raise
        except (Exception, TooSlow) as e:  # a scorer may raise anything; one bad text must not cost a run
            failed = e
        if len(responses) > 1:
            return self._one_by_one(prompts, responses)
        self._count_late(failed)
        self._say([failed], responses)
        return np.array([np.nan])

    def _ask(self, prompts: list[str], responses: list[str]) -> NDArray:
        with self._limit():
            found = self._scorer.score(list(prompts), list(responses))
        self._late = 0
        return self._checked(found, len(responses))

    def _one_by_one(self, prompts: list[str], responses: list[str]) -> NDArray:
        scores, failures, texts = np.full(len(responses), np.nan), [], []
        for i, (prompt, response) in enumerate(zip(prompts, responses)):
            try:
                scores[i] = self._ask([prompt], [response])[0]
            except BenchError:
                raise
            except (Exception, TooSlow) as e:
                self._count_late(e)
                failures.append(e)
                texts.append(response)
        if failures:
            self._say(failures, texts, len(responses))
        return scores

    def _checked(self, found: Any, n: int) -> NDArray:
        """Scores [N] in [0, 1] or NaN; raises BadScorer."""
        try:
            scores = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, dtype=float)
        except (TypeError, ValueError):
            raise BadScorer(f"scorer {self._name!r} gave {type(found).__name__}, no array of {n} numbers, one a text") from None
        if scores.shape != (n,):
            raise BadScorer(f"scorer {self._name!r} gave scores of shape {scores.shape} for {n} texts; expected ({n},)")
        outside = (scores < -ROUNDING) | (scores > 1 + ROUNDING)  # NaN is neither
        if outside.any():
            raise BadScorer(f"scorer {self._name!r} gave a score of {scores[outside][0]:g}; expected [0, 1], or NaN for none")
        return scores.clip(0.0, 1.0)

    def count(self, *texts: str) -> float:
        """What the scorer's `items` counts in a text, NaN where it failed."""
        try:
            with self._limit():
                return float(self._scorer.items(*texts))
        except BenchError:
            raise
        except (Exception, TooSlow) as e:
            self._count_late(e)
            self._say([e], [texts[-1]])
            return math.nan

    def _limit(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            return limited(self._timeout or TIMEOUT)
        if self._timeout is not None:
            raise BadSetting(f"scorers.{self._name}.timeout is kept in the main thread only; score there, or leave it out")
        return limited(None)

    def _count_late(self, failed: BaseException) -> None:
        self._late = self._late + 1 if isinstance(failed, TooSlow) else 0
        if self._late >= PATIENCE:
            raise BadScorer(
                f"scorer {self._name!r} did not answer within {self._timeout or TIMEOUT:g} s for {PATIENCE} texts in a row; "
                f"look at it, or raise scorers.{self._name}.timeout"
            )

    def _say(self, failures: Sequence[BaseException], texts: list[str], of: int = 1) -> None:
        """How many texts have no score, and why the first has none; an error's own words may quote the text."""
        log.warning(
            "%s could not score %d of %d texts, the first of %d characters: %s",
            self._name, len(failures), of, len(texts[0]), _reason(failures[0]),
        )  # fmt: skip


def _identity(scorer: Any, name: str, file: Mapping[str, Any]) -> dict[str, Any]:
    """A scorer's identity, which goes into records as JSON; raises BadScorer."""
    if not callable(getattr(scorer, "score", None)):
        raise BadScorer(f"scorer {name!r} has no method score(prompts, responses)")
    identity = getattr(scorer, "identity", {} if file else None)
    identity = {**identity, **file} if isinstance(identity, dict) else identity
    if not isinstance(identity, dict) or not isinstance(identity.get("name"), str):
        raise BadScorer(f"scorer {name!r} has no identity; expected a table with its name, version, hashes")
    try:
        json.dumps(identity, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise BadScorer(f"the identity of scorer {name!r} cannot be written as JSON ({e}); keep to text and numbers") from None
    return identity


def _seconds(name: str, timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e9:
        raise BadSetting(f"scorers.{name}.timeout is {timeout!r}; expected seconds above 0")
    return float(timeout)


def _reason(failed: BaseException) -> str:
    if isinstance(failed, TooSlow):
        return "no answer in time"
    last = traceback.extract_tb(failed.__traceback__)[-1]
    return f"{type(failed).__name__} in {Path(last.filename).name}, line {last.lineno}"


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise TooSlow in the block after so many seconds; in the main thread only. An alarm that was set before goes on."""
    if seconds is None:
        yield
        return
    started, inside = time.monotonic(), True

    def late(number: int, frame: Any) -> None:
        if inside:
            raise TooSlow

    handler = signal.signal(signal.SIGALRM, late)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            inside = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)
