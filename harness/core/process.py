"""Set-up of the process of a command: environment variables, streams, warnings, Ctrl-C outside a run, error messages.

Nothing heavy is imported here, because variables that libraries read on import must be set before.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import BenchError, CannotWrite, Interrupted, RunFailed, Unprintable, UsageError, one_line
from .text import escaped

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # waiting threads spin only briefly: on a shared machine the default long spin makes two threads slower than one
    "GOMP_SPINCOUNT": "10000",
    "OMP_WAIT_POLICY": "passive",
}
TOGETHER = ("run", "eval")  # the commands of several processes
PASSING = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # warnings for developers, not for users
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


def prepare() -> None:
    """Prepare the process of a command: quiet libraries, and streams that can print any text."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # -W and PYTHONWARNINGS take precedence
        _ignore_passing()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal cannot encode are printed as escapes
            stream.reconfigure(errors="backslashreplace")


def _ignore_passing() -> None:
    for category in PASSING:
        warnings.filterwarnings("ignore", category=category)


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that hides progress bars and deprecation warnings of libraries, for use in the user's own process."""
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
    """The number of threads set by OMP_NUM_THREADS (the first of a list); `available` if it is unset or no positive integer."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"0*[1-9][0-9]{0,3}", first) else available


def cores() -> int:
    """The number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started_by_torchrun() -> bool:
    """Whether torchrun started this process and others, to make one run together."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def started_together() -> int:
    """The number of processes that torchrun started to make one run together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1


def local_rank() -> int:
    """The place of this process among those of its machine that torchrun started, which names its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def follows() -> bool:
    """Whether torchrun started this process, but not as the first: it prints nothing and writes nothing."""
    return started_by_torchrun() and os.environ.get("RANK", "0") != "0"


def readable(words: Iterable[str]) -> None:
    """Raise UsageError if an argument is not UTF-8 or contains a null character: not every file system allows such a name.

    Also for a command that torchrun started in several processes, but that is made for one.
    """
    words = list(words)
    if started_by_torchrun() and (name := words[0] if words else "") not in TOGETHER:
        raise UsageError(f"torchrun may start `harness run` and `harness eval`, found {name!a:.40}; start it without torchrun")
    for word in words:
        try:
            if "\0" in word:  # impossible from a shell; a caller from Python may pass one
                raise ValueError
            word.encode()
        except ValueError:
            raise UsageError(
                f"expected arguments in UTF-8 without null characters; found {word!a}; choose another name"
            ) from None


class Interrupts:
    """Record of Ctrl-C, which holds even if the interrupted code caught the KeyboardInterrupt or raised another error."""

    asked = False

    def meaning(self, error: BaseException) -> BaseException:
        """The error to report: Interrupted after Ctrl-C, since interrupted code may fail in any way; else the error itself."""
        if not self.asked and not isinstance(error, (Interrupted, KeyboardInterrupt)):
            return error
        self.deafen()
        if isinstance(error, Interrupted):
            return error
        return Interrupted("interrupted; finished work is kept; run the same command to resume")

    def deafen(self) -> None:
        """Ignore further Ctrl-C: another one would cut the error message short and change the exit code."""
        signal.signal(signal.SIGINT, lambda *_: None)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def raised(self, number: int, frame: Any) -> None:
        """Handle SIGINT: note it, and raise KeyboardInterrupt."""
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[Interrupts]:
    """Context manager that records Ctrl-C, which still raises KeyboardInterrupt inside."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    old = signal.signal(signal.SIGINT, found.raised)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, old)


def flush_output() -> None:
    """Flush standard output; if that fails, redirect it to the null device and raise Unprintable."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as e:
        with suppress(OSError):  # a stream set by the caller may have no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest would fail again at exit
        raise Unprintable(f"cannot write the result to standard output: {e.strerror}; the records are kept") from None


def explain(error: BaseException) -> int:
    """Print an error as one line and return its exit code; an error that no user can cause is raised with its traceback."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 1  # raised by the parser when the reader of the output has closed it
    if isinstance(error, SystemExit):  # only `main` may end the program
        code = error.code
        error, cause = RunFailed(f"code loaded by this command called sys.exit({code!r:.40}); -v shows where"), error
        error.__cause__ = cause
    if isinstance(error, OSError):
        error = _of_the_system(error)
    if isinstance(error, Unprintable) and isinstance(error.__context__, BrokenPipeError):
        return error.exit_code  # the reader of the output has closed it: `| head`
    if type(error).__name__ == "PanicException":  # raised by pyo3, not derived from Exception
        error, cause = RunFailed(f"a library failed on its input ({one_line(error)}); -v shows where"), error
        error.__cause__ = cause
    if "-v" in sys.argv or "--verbose" in sys.argv or os.environ.get("HARNESS_DEBUG"):
        return _traced(error)
    if isinstance(error, (BenchError, Interrupted)):
        return _say(str(error), error.exit_code)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # from the parser: a missing or unknown option
        return _say(f"{error.format_message()} (harness --help)", error.exit_code)
    if isinstance(error, MemoryError):
        return _say("out of memory; reduce evaluation.batch_size or --workers", 1)
    raise error


def script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run the `main` of a module with the words of its command line; an error of ours is one line and its exit code."""
    try:
        code = main(sys.argv[1:])
    except BenchError as error:
        code = explain(error)
    sys.exit(code)


def _traced(error: BaseException) -> int:
    """Print the full traceback, as -v asks, and return the exit code of the error."""
    traceback.print_exception(error)
    return int(getattr(error, "exit_code", 1))


def _of_the_system(error: OSError) -> BaseException:
    """An error of the operating system as Unprintable, if standard output failed, or as CannotWrite."""
    try:
        flush_output()
    except Unprintable as e:
        return e
    named = f"{error.filename}: " if error.filename else ""
    found = CannotWrite(f"{named}{error.strerror or error}; -v shows where")
    found.__cause__ = error
    return found


def _say(text: str, code: int) -> int:
    print(f"error: {escaped(' '.join(text.split()))}", file=sys.stderr)
    return code
