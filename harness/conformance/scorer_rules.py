"""The conformance rules of scorers, checked on some fifty ordinary and unusual texts: `harness check scorer NAME`.

The scorer is wrapped in the guard, as in a run: a text on which it raises is unscored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.hashing import canonical
from harness.runs import assemble

from .play import Check, applied
from .sandbox import no_network, own_randomness
from .texts import PLAIN, Unreadable, plain_texts, texts

CLOSE = 1e-5  # tolerance between a text alone and in a batch, since float32 sums depend on the order
Finding = tuple[bool | None, str]


class Examined:
    """A scorer under check: `make` builds a guarded scorer with its identity as in a record, `raw` an unguarded one."""

    def __init__(self, make: Callable[[], Any], raw: Callable[[], Any]) -> None:
        self.make, self.scorer, self.raw = make, make(), raw
        self.prompts, self.responses = texts()
        self.n = len(self.responses)

    @cached_property
    def whole(self) -> NDArray:
        """The scores of all texts in one call: [N]."""
        return self.score(self.prompts, self.responses)

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.asarray(self.scorer.score(prompts, responses), dtype=float)


def check_scorer(name: str, options: Mapping[str, Any] | None = None) -> list[Check]:
    """Check all rules on one scorer by name or file; raises UnknownName, BadSetting, MissingPrerequisite, BadData."""
    given = dict(options or {})

    def make() -> Any:
        return assemble.scorer(name, given)

    return examine(Examined(make, lambda: make()._scorer))


def examine(subject: Examined) -> list[Check]:
    """Check all rules on a scorer that can be built."""
    with own_randomness(), no_network() as attempts, _quiet():
        checks = [_applied(rule, subject) for rule in RULES]
    found = f"tried {attempts[0]}" if attempts else "none"
    return [*checks, Check("network", "no connection is attempted", found, not attempts)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager that silences the guard's warnings of unscored texts, which the checks count."""
    log = logging.getLogger("harness.tasks.scorers.guard")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _applied(rule: tuple[str, str, Callable[[Examined], Finding]], subject: Examined) -> Check:
    name, expected, look = rule
    return applied(name, expected, partial(look, subject))


def shape(s: Examined) -> Finding:
    """Check shape and range of the scores; the guard raises on any fault."""
    scored = s.whole[~np.isnan(s.whole)]
    return True, f"{len(s.whole)} scores" + (f" from {scored.min():.3g} to {scored.max():.3g}" if len(scored) else "")


def plain(s: Examined) -> Finding:
    """Check that the scorer does not fail on more than a quarter of the ordinary texts."""
    lost = int(np.isnan(s.whole[:PLAIN]).sum())
    return 4 * lost <= PLAIN, f"{lost} of {PLAIN} have no score"


def tells_apart(s: Examined) -> Finding:
    """Check that the scores are not all equal."""
    scores = s.whole[~np.isnan(s.whole)]
    return len(set(scores.tolist())) > 1, f"{len(set(scores.tolist()))} different scores"


def unscorable(s: Examined) -> Finding:
    """Check that a text which fails when it is read gets NaN and not a number."""
    for prompt, response in plain_texts():
        expected = s.score([prompt], [response])[0]
        found = s.score([prompt], [Unreadable(response)])[0]
        if not (np.isnan(found) or abs(found - expected) <= CLOSE):
            return False, f"{found:.3g} for a text that could not be read, and {expected:.3g} where it can"
    return True, "NaN, or the text was read all the same"


def batch(s: Examined) -> Finding:
    """Check that the score of a text does not depend on the batch or on the order."""
    alone = np.array([s.score([p], [r])[0] for p, r in zip(s.prompts, s.responses, strict=True)])
    backwards = s.score(s.prompts[::-1], s.responses[::-1])[::-1]
    for word, found in (("alone", alone), ("in another order", backwards)):
        same = np.isclose(found, s.whole, rtol=0, atol=CLOSE, equal_nan=True)
        if not same.all():
            i = int((~same).argmax())
            return False, f"{(~same).sum()} of {s.n} differ {word}: {found[i]:.4g}, in the batch {s.whole[i]:.4g}"
    return True, f"1 against {s.n}: within {CLOSE:g}"


def again(s: Examined) -> Finding:
    """Check that a second call and a second scorer give the same scores."""
    for word, scorer in (("a second time", s.scorer), ("of a second scorer", s.make())):
        found = np.asarray(scorer.score(s.prompts, s.responses), dtype=float)
        if not np.array_equal(found, s.whole, equal_nan=True):
            return False, f"other scores {word}"
    return True, "equal"


def odd(s: Examined) -> Finding:
    """Check that the scorer does not fail on more than half of the unusual texts."""
    lost = int(np.isnan(s.whole[PLAIN:]).sum())
    return 2 * lost <= s.n - PLAIN, f"{lost} of {s.n - PLAIN} have no score"


def empty(s: Examined) -> Finding:
    """Check that no texts give no scores."""
    found = np.asarray(s.raw().score([], []), dtype=float)
    return found.shape == (0,), f"shape {found.shape}"


def identity(s: Examined) -> Finding:
    """Check that the identity survives JSON and is the same for the same options."""
    said, other = s.scorer.identity, s.make().identity
    if json.loads(canonical(said)) != said:
        return False, "it changes when it is written as JSON and read"
    if canonical(said) != canonical(other):
        return False, "two scorers of the same options differ"
    return True, ", ".join(map(str, said))


RULES: tuple[tuple[str, str, Callable[[Examined], Finding]], ...] = (
    ("scores", "a number in [0, 1] or NaN for each text", shape),
    ("ordinary text", "at most a quarter of the texts has no score", plain),
    ("tells apart", "the scores are not all equal", tells_apart),
    ("unscorable", "NaN for a text that could not be read, never a number", unscorable),
    ("batch", "the score of a text does not depend on the others", batch),
    ("deterministic", "the same scores again", again),
    ("odd texts", "at most half of the unusual texts have no score", odd),
    ("empty list", "an empty list of texts gives an empty array", empty),
    ("identity", "strict JSON with a name, the same for the same options", identity),
)
