"""The evaluation of the base policy, kept by identity: it is the same for every method and seed of a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.core.errors import BadData
from harness.core.types import Metric

from .base_responses import Cache, Expected
from .evaluator import Evaluation

KIND = "base-evaluation"
EXPECTED = {"json": Expected((-1,), "u", 255)}


class KeptEvaluation:
    """One evaluation in a cache, as JSON in an array of bytes, which is read without unpickling."""

    def __init__(self, cache: Cache, identity: dict[str, Any], say: Callable[[str], None]) -> None:
        self.cache, self.identity, self.say = cache, identity, say

    def read(self) -> tuple[Evaluation, bool] | None:
        """The evaluation and whether it lay above the frontier; None if there is none, or, with a message, an unusable one."""
        try:
            found = self.cache.get(KIND, self.identity, EXPECTED)
        except BadData as e:
            self.say(f"{e}; it is computed again")
            return None
        try:
            return None if found is None else _loaded(bytes(found["json"]))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            self.say(f"the cached {KIND} in {self.cache.folder} is not one ({type(e).__name__}); it is computed again")
            return None

    def write(self, evaluation: Evaluation, above: bool) -> None:
        """Keep an evaluation, unless a response could not be scored: that is tried again next time. Raises CannotWrite."""
        if evaluation.unscored_share:
            return
        text = json.dumps({"evaluation": evaluation._asdict(), "above": above}, default=_plain)
        self.cache.put(KIND, self.identity, json=np.frombuffer(text.encode(), np.uint8))


def _loaded(text: bytes) -> tuple[Evaluation, bool]:
    found = json.loads(text)
    fields = found["evaluation"]
    fields["metrics"] = {name: Metric(*values) for name, values in fields["metrics"].items()}
    return Evaluation(**fields), bool(found["above"])


def _plain(value: Any) -> Any:
    return value.item()  # of numpy's numbers and truth values
