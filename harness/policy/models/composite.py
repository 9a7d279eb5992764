"""Models that are more than one language model, or one that is read in another way: what a policy's folder holds of them.

Each kind has a file of JSON beside `policy.json` and a folder for each of its own models. Any other model is one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.core.files import read_json

from .debiased import SelfDebiased
from .ensemble import Ensemble
from .steered import Steered


class Composite(Protocol):
    """A model made of others, which are saved in a folder each."""

    def parts(self) -> dict[str, Any]:
        """Its own models by name."""

    def state(self) -> dict[str, Any]:
        """What else there is of it, as plain JSON."""


KINDS: dict[str, Any] = {"ensemble.json": Ensemble, "debiased.json": SelfDebiased, "steered.json": Steered}


def file_of(model: Any) -> str | None:
    """The name of a model's file of JSON; None for a plain model."""
    return next((name for name, kind in KINDS.items() if isinstance(model, kind)), None)


def found(folder: Path) -> Path | None:
    """The file of JSON in a policy's folder; None where it holds a plain model."""
    return next((folder / name for name in KINDS if (folder / name).is_file()), None)


def named(path: Path) -> tuple[str, str]:
    """What such a file describes, and which of its models may be read alone."""
    if path.name == "ensemble.json":
        return "an ensemble of models", "expert"
    return f"two readings or a changed layer of a model ({path.name})", "base"


def files(folder: Path) -> list[Path]:
    """The files of JSON in a policy's folder, for its identity."""
    return [path for path in (found(folder),) if path is not None]


def folders(model: Any, folder: Path) -> dict[Path, Any]:
    """Where each of a model's own models is saved: below the folder, or in it for a plain model."""
    if file_of(model) is None:
        return {folder: model}
    return {folder / part: own for part, own in model.parts().items()}


def write_state(model: Any, folder: Path) -> None:
    """Write the file of JSON, of a plain model nothing."""
    if (name := file_of(model)) is not None:
        (folder / name).write_text(json.dumps(model.state()))


def mapped(model: Any, change: Callable[[Any], Any]) -> Any:
    """A model with each of its own models changed; a plain model changed."""
    name = file_of(model)
    if name is None:
        return change(model)
    return KINDS[name].of({part: change(own) for part, own in model.parts().items()}, model.state())


def read(folder: Path, one: Callable[[Path], Any]) -> Any:
    """The model that a policy's folder holds, plain or not, each of its own models read by `one`."""
    if (path := found(folder)) is None:
        return one(folder)
    kind = KINDS[path.name]
    return kind.of({part: one(folder / part) for part in kind.PARTS}, read_json(path))
