"""The runs behind a claim: two studies, and what was measured on the saved policies of their runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.analysis.groups import apart, ruler
from harness.analysis.terms import PromptTerms
from harness.core import registry
from harness.core.errors import CorruptRecord
from harness.core.hashing import canonical
from harness.core.text import plain, shorten
from harness.records.schema import Run

Of = Literal["reference", "varied"]
UNSAID = (("start", "scratch"), ("mle_share", 0.0), ("quantile", 0.5))  # settings of all sides of a claim on pretraining
MIDDLE = 2  # the place of the middle one of a knob's five values, from weak to strong


class Measured(NamedTuple):
    """A quantity measured on the policy or the responses of a finished run."""

    value: float
    terms: tuple[float, ...] = ()  # whose mean is the value; in the same order for all runs


@dataclass(frozen=True)
class Records:
    """The runs of the reference study, those that vary one setting, and what was measured on them."""

    reference: Sequence[Run] = ()
    varied: Sequence[Run] = ()
    measured: Mapping[tuple[str, str], Measured] = field(default_factory=dict)  # by run_id and name
    prompts: PromptTerms = field(default_factory=PromptTerms)


@dataclass(frozen=True)
class Side:
    """The runs of one side of a comparison: a method, the study, the place of its knob's value, and settings by name."""

    method: str
    of: Of = "reference"
    knob: int | None = None  # of the reference study; None is the middle
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name on the page: the method, and the settings that the claim is about."""
        said = [f"{key} = {value}" for key, value in self.settings if (key, value) not in UNSAID]
        if self.knob not in (None, MIDDLE) and (knob := knob_of(self.method)):
            said.insert(0, f"{knob.setting} = {knob.values[self.knob]:g}")
        return f"{self.method} ({', '.join(said)})" if said else self.method

    def runs(self, records: Records, task: str) -> list[Run] | str:
        """The finished runs, or why there are none that can be used."""
        pool = records.reference if self.of == "reference" else records.varied
        found = [run for run in pool if run.manifest.task == task and self._fits(run)]
        if not found:
            return f"no finished run of {self.name}"
        choices: dict[str, list[Run]] = {}
        for run in found:
            choices.setdefault(canonical({k: v for k, v in run.manifest.identity.items() if k != "seed"}), []).append(run)
        if len(choices) > 1:
            words = "; ".join(shorten(text, 60) for text in apart(list(choices.values())))
            return plain(f"runs of {self.name} have {len(choices)} choices of settings: {words}")
        return found

    def _fits(self, run: Run) -> bool:
        m = run.manifest
        if m.method != self.method or m.status != "done" or not on_test_prompts(run):
            return False
        had = settings_of(run)
        knob = knob_of(self.method) if self.of == "reference" else None
        value = None if knob is None else knob.values[MIDDLE if self.knob is None else self.knob]
        if knob is not None and knob.setting not in dict(self.settings) and had.get(knob.setting) != value:
            return False
        return all(had.get(key) == wanted for key, wanted in self.settings)


def varied(method: str, **settings: Any) -> Side:
    """Runs of the claims study with these settings."""
    return Side(method, "varied", None, tuple(settings.items()))


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run's method."""
    method = run.manifest.identity.get("method")
    return dict(method.get("settings", {})) if isinstance(method, dict) else {}


def on_test_prompts(run: Run) -> bool:
    """Whether a run was measured on the test prompts; trials that chose settings were not."""
    evaluation = run.manifest.identity.get("evaluation")
    return not isinstance(evaluation, dict) or evaluation.get("split", "test") == "test"


def knob_of(method: str) -> Any:
    """The knob of a method; None if it has none."""
    return getattr(registry.load("method", method), "knob", None)


def one_world(runs: Iterable[Run]) -> bool:
    """Whether all runs were measured by the same ruler, so that their numbers can be compared."""
    return len({canonical([run.manifest.preset, ruler(run)]) for run in runs}) == 1


def read_measured(path: Path | None) -> dict[tuple[str, str], Measured]:
    """Read the quantities measured on finished runs, a JSON object a line; raises CorruptRecord."""
    if path is None or not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found[str(row["run_id"]), str(row["name"])] = Measured(float(row["value"]), tuple(map(float, row["terms"])))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptRecord(f"{path} line {number} is no measured quantity: {error}; write it again") from None
    return found
