"""Sources of prompts by name: the micro world, a named data set, a file, or a data set on the hub by its id.

This module does not import torch, so that a plan can list missing prerequisites before anything is loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from harness.core import registry
from harness.core.errors import BadSetting
from harness.core.settings import DataSettings

Kind = Literal["micro", "facts", "named", "hub", "file"]
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
OWN = {"text", "score", "held_out"}
SETTINGS: dict[Kind, set[str]] = {
    "micro": set(),
    "facts": set(),
    "named": set(DataSettings.model_fields) - {"text", "score", "split", "config"},
    "hub": OWN | {"split", "config", "revision", "rows"},
    "file": OWN,
}
WORDS: dict[Kind, str] = {"named": "a named data set", "hub": "a data set by its id", "file": "a file"}


def kind(prompts: str) -> Kind:
    """The kind of source that a name of prompts refers to; raises UnknownName if it is neither a data set nor a file.

    `data/mine` is a mistyped path if a folder `data` exists; `someone/mine` without such a folder is an id on the hub.
    """
    from harness.tasks.data import tables

    if prompts == "micro":
        return "micro"
    if prompts == "facts":
        return "facts"
    if os.path.exists(prompts) or tables.is_table(prompts):
        return "file"
    if HUB_ID.fullmatch(prompts) and not os.path.isdir(Path(prompts).parts[0]):
        return "hub"
    if os.sep in prompts:
        return "file"
    registry.canonical("dataset", prompts)
    return "named"


def check(prompts: str, data: DataSettings) -> None:
    """Raise BadSetting if a setting of the data does not apply to these prompts."""
    source = kind(prompts)
    told = [name for name, field in DataSettings.model_fields.items() if getattr(data, name) != field.default]
    wrong = [f"task.data.{name}" for name in told if name not in SETTINGS[source]]
    if wrong and source in ("micro", "facts"):
        raise BadSetting(f"task.data applies to named data sets only, and the prompts are {prompts!r}; leave it out")
    if wrong:
        known = ", ".join(sorted(SETTINGS[source]))
        raise BadSetting(
            f"{wrong[0]} does not apply to {WORDS[source]}, and the prompts are {prompts!r}; leave it out (known: {known})"
        )


def needs(prompts: str, data: DataSettings) -> list[Any]:
    """The prerequisites for reading the prompts."""
    from harness.core import hub
    from harness.tasks.data import tables

    source = kind(prompts)
    if source == "named":
        return registry.load("dataset", prompts).needs(data)
    if source == "hub":
        return [hub.package("datasets", "data"), hub.dataset(prompts, data.config)]
    return [] if source in ("micro", "facts") else [hub.file("prompts", Path(prompts), tables.FORMATS, local=True)]
