"""The process that a command runs in: its variables, its streams, its warnings, and the packages that are its own.

Nothing heavy is imported here, and what libraries read when they are loaded is set before that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .errors import MissingPrerequisite, UsageError

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # threads that spin briefly while they wait: on a shared machine the usual long spin makes two threads slower than one
    "GOMP_SPINCOUNT": "10000",
    "OMP_WAIT_POLICY": "passive",
}
PASSING = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # of libraries, for those who write against them
ROOT = Path(__file__).resolve().parent.parent
OWN = ("tasks", "methods")  # beside this package


def prepare() -> None:
    """Make this process one of ours: quiet libraries, and streams that can print any text."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # -W and PYTHONWARNINGS say what the user wants to see
        _ignore_passing()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal's encoding lacks is shown by its number
            stream.reconfigure(errors="backslashreplace")


def _ignore_passing() -> None:
    for category in PASSING:
        warnings.filterwarnings("ignore", category=category)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no deprecations of libraries inside, for a process that is the user's own."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                _ignore_passing()
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def threads(available: int) -> int:
    """The threads that OMP_NUM_THREADS asks for, of a list the first; those available where it is no number from 1."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"0*[1-9][0-9]{0,3}", first) else available


def readable(words: Iterable[str]) -> None:
    """Raises UsageError where a word of a command line is not UTF-8 or has a null: not every system takes such a name."""
    for word in words:
        try:
            if "\0" in word:  # no system hands one on; a caller from Python may
                raise ValueError
            word.encode()
        except ValueError:
            raise UsageError(
                f"expected words in UTF-8 without a null on the command line; found {word!a}; choose another name"
            ) from None


def own_packages() -> None:
    """Let `tasks` and `methods` be those of this suite, whatever the working folder holds under these names.

    Raises MissingPrerequisite where the program has imported others before.
    """
    for name in OWN:
        found = sys.modules.get(name)
        if found is None:
            _import(name)
        elif not _ours(found):
            raise MissingPrerequisite(
                f"this program has imported {getattr(found, '__file__', None) or 'another module'} as {name!r}, a name that "
                "the suite needs for a package of its own; rename that file, or use the command line, which does not mind it"
            )


def _import(name: str) -> None:
    folder = ROOT / name
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _ours(module: ModuleType) -> bool:
    return any(Path(place).resolve() == ROOT / module.__name__ for place in getattr(module, "__path__", ()))
