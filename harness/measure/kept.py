"""The evaluation of the base policy, kept by identity: it is the same for every method and seed of a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.core.errors import BadData
from harness.core.settings import EvaluationSettings
from harness.core.types import Metric

from .base_responses import SAMPLER_VERSION, Cache, Expected
from .evaluator import EVALUATION_VERSION, Evaluation

FULL, POINT = "base-evaluation", "base-point"  # the evaluation at the end of a run, and the short one during training
EXPECTED = {"json": Expected((-1,), "u", 255)}


class KeptEvaluation:
    """The evaluations of one base policy in a cache, as JSON in an array of bytes, which is read without unpickling."""

    def __init__(self, cache: Cache, base: dict[str, Any], settings: EvaluationSettings, say: Callable[[str], None]) -> None:
        """`base` is the identity of the model and the task."""
        self.cache, self.base, self.settings, self.say = cache, base, settings, say

    def read(self, full: bool) -> tuple[Evaluation, bool] | None:
        """The evaluation and whether it lay above the frontier; None if there is none, or, with a message, an unusable one."""
        kind, identity = self._key(full)
        try:
            found = self.cache.get(kind, identity, EXPECTED)
        except BadData as e:
            self.say(f"{e}; it is computed again")
            return None
        try:
            return None if found is None else _loaded(bytes(found["json"]))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            self.say(f"the cached {kind} in {self.cache.folder} is not one ({type(e).__name__}); it is computed again")
            return None

    def write(self, full: bool, evaluation: Evaluation, above: bool) -> None:
        """Keep an evaluation, unless a response could not be scored: that is tried again next time. Raises CannotWrite."""
        if evaluation.unscored_share:
            return
        kind, identity = self._key(full)
        text = json.dumps({"evaluation": evaluation._asdict(), "above": above}, default=_plain)
        self.cache.put(kind, identity, json=np.frombuffer(text.encode(), np.uint8))

    def _key(self, full: bool) -> tuple[str, dict[str, Any]]:
        """The kind of an evaluation, and all that it depends on."""
        samples = ("samples", "paper_samples") if full else ("point_samples",)
        evaluation = self.settings.model_dump(include={"split", "base_samples", "seed", *samples})
        versions = {"version": EVALUATION_VERSION, "sampler": SAMPLER_VERSION}
        return FULL if full else POINT, {"base": self.base, "evaluation": evaluation | versions}


def _loaded(text: bytes) -> tuple[Evaluation, bool]:
    found = json.loads(text)
    fields = found["evaluation"]
    fields["metrics"] = {name: Metric(*values) for name, values in fields["metrics"].items()}
    return Evaluation(**fields), bool(found["above"])


def _plain(value: Any) -> Any:
    return value.item()  # of numpy's numbers and truth values
