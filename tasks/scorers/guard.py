"""The guard around every scorer: a text on which the scorer fails is unscored (NaN), and invalid scores never enter a run.

The score of a text (with its prompt) must not depend on the rest of the batch. If a batch fails, its texts are therefore
scored one by one, and a text that fails alone is NaN. A score outside [0, 1], or a wrong number of scores, is an error of the
scorer and not of a text. An interruption passes through.

The time limit uses an alarm signal, so it works in the main thread only, and stops the scorer when the interpreter runs
again: at once in Python code and while waiting, on return in the loop of a compiled library.
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
"""Default time limit of one call of a scorer, in seconds."""
PATIENCE = 8
"""After this many timeouts in a row the scorer is considered hung."""
ROUNDING = 1e-6
"""Tolerance outside [0, 1] for the rounding of float32; such scores are clipped."""


NO_FILE: Mapping[str, Any] = {}


class TooSlow(BaseException):
    """A call of a scorer exceeded its time limit; not an `Exception`, so that handlers in the scorer do not catch it."""


class GuardedScorer:
    """A wrapped scorer that returns NaN for texts on which it fails, and raises BadScorer for invalid results.

    timeout    time limit of one call in seconds; a batch that exceeds it is scored text by text, and a text that exceeds
               it is unscored
    """

    def __init__(self, scorer: Any, name: str, timeout: float | None = None, file: Mapping[str, Any] = NO_FILE) -> None:
        """Wrap a scorer; `file` is added to its identity if its class comes from a file. Raises BadScorer, BadSetting."""
        self.identity: dict[str, Any] = _identity(scorer, name, file)
        self.slow, self.reads_prompt = (bool(getattr(scorer, word, False)) for word in ("slow", "reads_prompt"))
        self.items: Callable[..., float] | None = self.count if callable(getattr(scorer, "items", None)) else None
        self._scorer, self._name, self._timeout = scorer, name, seconds(name, timeout)
        self._late = 0  # consecutive timeouts

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, in [0, 1], NaN if the scorer failed: -> [N] float64; raises BadScorer."""
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
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
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
            kind = type(found).__name__
            raise BadScorer(f"scorer {self._name!r} returned {kind}; expected an array of {n} numbers, one per text") from None
        if scores.shape != (n,):
            raise BadScorer(f"scorer {self._name!r} returned scores of shape {scores.shape} for {n} texts; expected ({n},)")
        outside = (scores < -ROUNDING) | (scores > 1 + ROUNDING)  # NaN is neither
        if outside.any():
            found = f"{scores[outside][0]:g}"
            raise BadScorer(f"scorer {self._name!r} returned a score of {found}; expected [0, 1], or NaN for unscored")
        return scores.clip(0.0, 1.0)

    def count(self, *texts: str) -> float:
        """The number of items in a text by the scorer's `items`; NaN if it failed."""
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
            raise BadSetting(f"scorers.{self._name}.timeout works in the main thread only; score there, or leave it out")
        return limited(None)

    def _count_late(self, failed: BaseException) -> None:
        self._late = self._late + 1 if isinstance(failed, TooSlow) else 0
        if self._late >= PATIENCE:
            raise BadScorer(
                f"scorer {self._name!r} did not answer within {self._timeout or TIMEOUT:g} s for {PATIENCE} texts in a row; "
                f"check the scorer, or raise scorers.{self._name}.timeout"
            )

    def _say(self, failures: Sequence[BaseException], texts: list[str], of: int = 1) -> None:
        """Log the number of unscored texts and where the first failed; error messages may quote the text and are omitted."""
        log.warning(
            "%s could not score %d of %d texts, the first of %d characters: %s",
            self._name, len(failures), of, len(texts[0]), reason(failures[0]),
        )  # fmt: skip


def _identity(scorer: Any, name: str, file: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a scorer, which is stored in records as JSON; raises BadScorer if it has none or it is not JSON."""
    if not callable(getattr(scorer, "score", None)):
        raise BadScorer(f"scorer {name!r} has no method score(prompts, responses)")
    identity = getattr(scorer, "identity", {} if file else None)
    identity = {**identity, **file} if isinstance(identity, dict) else identity
    if not isinstance(identity, dict) or not isinstance(identity.get("name"), str):
        raise BadScorer(f"scorer {name!r} has no identity; expected a table with its name, version, hashes")
    try:
        json.dumps(identity, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise BadScorer(f"the identity of scorer {name!r} cannot be written as JSON ({e}); use only text and numbers") from None
    return identity


def seconds(name: str, timeout: Any) -> float | None:
    """The time limit of a scorer from its option `timeout`; raises BadSetting if it is none."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e9:
        raise BadSetting(f"scorers.{name}.timeout is {timeout!r}; expected seconds above 0")
    return float(timeout)


def reason(failed: BaseException) -> str:
    """The type and the place of an error, without its message, which may quote a text."""
    if isinstance(failed, TooSlow):
        return "no answer in time"
    last = traceback.extract_tb(failed.__traceback__)[-1]
    return f"{type(failed).__name__} in {Path(last.filename).name}, line {last.lineno}"


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise TooSlow in the block after `seconds`, in the main thread only; an earlier alarm is restored afterwards."""
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
