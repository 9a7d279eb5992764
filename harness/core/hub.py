"""Locations of models, data and checkpoints: local folders, the Hugging Face cache, the cache of torch.

Nothing here imports torch, so that a plan can list missing prerequisites before anything is loaded.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .errors import MissingPrerequisite, one_line

TEXT_FILES = ["*.json", "*.txt", "*.model"]


class Need(NamedTuple):
    """One prerequisite of a run: a model, a data set, a file or a package."""

    what: str  # its name in the settings
    where: str  # the location that was searched
    there: bool
    how: str  # how to get it
    local: bool = False  # the user must provide it: it cannot be downloaded


def snapshot(name: str, patterns: list[str], revision: str | None, purpose: str, hint: str) -> Path:
    """The local folder of a hub model, downloaded if online, else from the cache; raises MissingPrerequisite if absent."""
    from huggingface_hub import constants, is_offline_mode, snapshot_download

    offline = is_offline_mode()
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=offline
            )
        )
    except (OSError, ValueError) as e:  # the base classes of all errors of the hub and its transport
        why = f"not in {constants.HF_HUB_CACHE}, and the run is offline" if offline else one_line(e)
        raise MissingPrerequisite(f"no {purpose} ({why}); download it while online (hf download {name}), or {hint}") from e


def checkpoint_folder() -> Path:
    """The folder in which torch.hub keeps checkpoints."""
    cache = os.getenv("XDG_CACHE_HOME", "~/.cache")
    return Path(os.path.expanduser(os.getenv("TORCH_HOME", os.path.join(cache, "torch")))) / "hub" / "checkpoints"


def model(name: str, revision: str | None = None) -> Need:
    """The prerequisite of a model, in a folder or in the hub's cache; a name that is no valid hub id is a missing folder."""
    if os.path.isdir(os.path.expanduser(name)):
        return Need(name, name, True, "")
    if not _is_id(name):
        where = os.path.abspath(os.path.expanduser(name))
        return Need(name, where, False, "give a folder with config.json, weights and tokenizer, or a hub id", local=True)
    return _cached(name, "config.json", "model", revision)


def _is_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def dataset_file(name: str, path: str, revision: str) -> Need:
    """The prerequisite of one file of a data set, in the hub's cache."""
    return _cached(name, path, "dataset", revision)


def dataset(name: str, config: str | None) -> Need:
    """The prerequisite of a data set, in the cache of prepared data sets."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.path.expanduser(os.getenv("HF_DATASETS_CACHE", os.path.join(HF_HOME, "datasets"))))
    folder = cache / name.replace("/", "___") / (config or "*")
    there = any(cache.glob(f"{folder.relative_to(cache)}/*/*/*.arrow"))
    return Need(name, str(folder), there, "prepared by the first run that is online")


def file(what: str, path: Path, how: str, local: bool = False) -> Need:
    """The prerequisite of a file or a folder."""
    return Need(what, str(path), os.path.exists(path), how, local)


def package(module: str, extra: str) -> Need:
    """The prerequisite of a package that only some runs need."""
    return Need(
        f"package {module}", "this environment", find_spec(module) is not None, f"pip install 'unlearning-harness[{extra}]'"
    )


def _cached(name: str, path: str, kind: str, revision: str | None) -> Need:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(name, path, revision=revision, repo_type=kind)
    where = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    how = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    return Need(name, str(where), isinstance(found, str), how)
