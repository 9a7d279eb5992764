"""The conformance rules of scorers, checked on some fifty ordinary and unusual texts: `harness check scorer NAME`.

The scorer is wrapped in the guard, as in a run: a text on which it raises is unscored.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import BadScorer, one_line
from harness.core.hashing import canonical
from harness.core.text import mask
from harness.runs import scorers
from harness.tasks.scorers.guard import reason

from .play import Check, applied
from .sandbox import no_network, own_randomness
from .texts import PLAIN, Unreadable, texts

CLOSE = 1e-5  # tolerance between a text alone and in a batch, since float32 sums depend on the order
Finding = tuple[bool | None, str]


class Examined:
    """A scorer under check: `make` builds a guarded scorer, with options in place of the given ones if any are named."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make, self.scorer = make, make()
        self.prompts, self.responses = texts()
        self.n = len(self.responses)

    @cached_property
    def whole(self) -> NDArray:
        """The scores of all texts in one call: [N]."""
        return self.score(self.prompts, self.responses)

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        return np.asarray(self.scorer.score(prompts, responses), dtype=float)

    def alone(self, i: int) -> float:
        """The score of one text on its own."""
        return float(self.score([self.prompts[i]], [self.responses[i]])[0])

    def raw(self) -> Any:
        """A second scorer without its guard."""
        return self.make()._scorer

    def text(self, i: int) -> str:
        """A text by its number in `texts.texts()`, masked."""
        return f"text {i} {mask(self.responses[i])}"

    def lost(self, first: int, last: int, most: float) -> Finding:
        """Whether at most this share of some texts has no score; if not, which is the first of them, and why."""
        unscored = np.isnan(self.whole[first:last])
        n, held = int(unscored.sum()), float(unscored.mean()) <= most
        words = f"{n} of {len(unscored)} have no score"
        return held, words if held else f"{words}, as {self._why(first + int(unscored.argmax()))}"

    def _why(self, i: int) -> str:
        try:
            self.raw().score([self.prompts[i]], [self.responses[i]])
        except Exception as e:  # a scorer may raise anything; the message may quote the text
            return f"{self.text(i)}: {reason(e)}"
        return f"{self.text(i)}: NaN"


def check_scorer(name: str, options: Mapping[str, Any] | None = None) -> list[Check]:
    """Check all rules on one scorer by name or file; raises UnknownName, BadSetting, MissingPrerequisite, BadData."""
    given = dict(options or {})

    def make(**instead: Any) -> Any:
        return scorers.built(name, given | instead)

    return examine(Examined(make))


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
    try:
        scored = s.whole[~np.isnan(s.whole)]
    except BadScorer as e:
        i = next((i for i in range(s.n) if _is_refused(s, i)), None)
        return False, one_line(e) + ("" if i is None else f"; the first alone: {s.text(i)}")
    return True, f"{len(s.whole)} scores" + (f" from {scored.min():.3g} to {scored.max():.3g}" if len(scored) else "")


def _is_refused(s: Examined, i: int) -> bool:
    try:
        s.alone(i)
    except BadScorer:
        return True
    return False


def plain(s: Examined) -> Finding:
    """Check that the scorer does not fail on more than a quarter of the ordinary texts."""
    return s.lost(0, PLAIN, 1 / 4)


def tells_apart(s: Examined) -> Finding:
    """Check that the scores are not all equal, those of the scorer's own examples among them."""
    examples = getattr(s.raw(), "examples", ())
    own = s.score(*(list(column) for column in zip(*examples, strict=True))) if examples else np.empty(0)
    scores = np.concatenate([s.whole, own])
    scores = scores[~np.isnan(scores)]
    different = sorted(set(scores.tolist()))
    if len(different) == 1:
        return False, f"each of {len(scores)} texts has the score {different[0]:.4g}"
    return len(different) > 1, f"{len(different)} different scores"


def unscorable(s: Examined) -> Finding:
    """Check that a text which fails when it is read gets NaN and not a number."""
    for i in range(PLAIN):
        expected = s.alone(i)
        found = s.score([s.prompts[i]], [Unreadable(s.responses[i])])[0]
        if not (np.isnan(found) or abs(found - expected) <= CLOSE):
            return False, f"{found:.3g} where {s.text(i)} cannot be read, and {expected:.3g} where it can"
    return True, "NaN, or the text was read all the same"


def batch(s: Examined) -> Finding:
    """Check that the score of a text does not depend on the batch or on the order."""
    alone = np.array([s.alone(i) for i in range(s.n)])
    backwards = s.score(s.prompts[::-1], s.responses[::-1])[::-1]
    for word, found in (("alone", alone), ("in another order", backwards)):
        same = np.isclose(found, s.whole, rtol=0, atol=CLOSE, equal_nan=True)
        if not same.all():
            i = int((~same).argmax())
            return (
                False,
                f"{(~same).sum()} of {s.n} differ {word}, first {s.text(i)}: {found[i]:.4g}, in the batch {s.whole[i]:.4g}",
            )
    return True, f"1 against {s.n}: within {CLOSE:g}"


def again(s: Examined) -> Finding:
    """Check that a second call and a second scorer give the same scores."""
    for word, scorer in (("a second time", s.scorer), ("of a second scorer", s.make())):
        found = np.asarray(scorer.score(s.prompts, s.responses), dtype=float)
        same = np.isclose(found, s.whole, rtol=0, atol=0, equal_nan=True)
        if not same.all():
            return False, f"other scores {word}, first of {s.text(int((~same).argmax()))}"
    return True, "equal"


def odd(s: Examined) -> Finding:
    """Check that the scorer does not fail on more than half of the unusual texts."""
    return s.lost(PLAIN, s.n, 1 / 2)


def empty(s: Examined) -> Finding:
    """Check that no texts give no scores."""
    found = np.asarray(s.raw().score([], []), dtype=float)
    return found.shape == (0,), f"shape {found.shape}"


def identity(s: Examined) -> Finding:
    """Check that the scorer has an identity, that it survives JSON, and that it is the same for the same options."""
    own = getattr(s.raw(), "identity", None)
    if not isinstance(own, dict) or not isinstance(own.get("name"), str):
        return False, "none" if own is None else "a table without a name" if isinstance(own, dict) else f"{own!r:.40}"
    said, other = s.scorer.identity, s.make().identity
    if json.loads(canonical(said)) != said:
        return False, "it changes when it is written as JSON and read"
    if canonical(said) != canonical(other):
        return False, "two scorers of the same options differ"
    return True, ", ".join(map(str, said))


def options(s: Examined) -> Finding:
    """Check that an option which moves a score is in the identity: two records of different scores need different ids."""
    tried = []
    for name, value in _others(s.raw()):
        try:
            other = s.make(**{name: value})
            tried.append(name)
            if canonical(other.identity) != canonical(s.scorer.identity):
                continue
            found = np.asarray(other.score(s.prompts, s.responses), dtype=float)
        except Exception:  # the value is not allowed: another may be, and nothing can be said
            continue
        if not np.array_equal(found, s.whole, equal_nan=True):
            return False, f"{name}={value} gives other scores and the same identity"
    return True if tried else None, ", ".join(tried) or "does not apply: no option that is a number or a switch"


def _others(scorer: Any) -> Iterator[tuple[str, Any]]:
    """Another value of each option whose default is a number or a switch."""
    for name, parameter in inspect.signature(type(scorer)).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            yield name, not default
        elif isinstance(default, int):
            yield name, 2 * default + 1
        elif isinstance(default, float):
            yield name, default / 2 if default else 0.5


def described(s: Examined) -> Finding:
    """Check that the docstring of the class or of its module names every option."""
    kind = type(s.raw())
    text = " ".join(filter(None, (kind.__doc__, kind.__init__.__doc__, sys.modules[kind.__module__].__doc__)))
    names = [n for n, p in inspect.signature(kind).parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]
    if not names:
        return None, "does not apply: it has none"
    return not missing, f"not described: {', '.join(missing)}" if missing else ", ".join(names)


RULES: tuple[tuple[str, str, Callable[[Examined], Finding]], ...] = (
    ("scores", "a number in [0, 1] or NaN for each text", shape),
    ("ordinary text", "at most a quarter of the texts has no score", plain),
    ("tells apart", "the scores are not all equal", tells_apart),
    ("unscorable", "NaN for a text that could not be read, never a number", unscorable),
    ("batch", "the score of a text does not depend on the others", batch),
    ("deterministic", "the same scores again", again),
    ("odd texts", "at most half of the unusual texts have no score", odd),
    ("empty list", "an empty list of texts gives an empty array", empty),
    ("identity", "an attribute identity: strict JSON with a name, the same for the same options", identity),
    ("options", "an option that moves a score is in the identity", options),
    ("help", "the docstring describes every option", described),
)
