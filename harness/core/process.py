"""The process that a command runs in: environment variables, streams, warnings, Ctrl-C outside a run, the line of an error.

Nothing heavy is imported here, and what libraries read when they are loaded is set before that.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import BenchError, CannotWrite, Interrupted, RunFailed, Unprintable, UsageError, one_line
from .text import escaped

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
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


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


def cores() -> int:
    """Of this process's share of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class Interrupts:
    """Whether Ctrl-C was pressed, whatever the code that it came upon made of it, and what to do about another."""

    asked = False

    def meaning(self, error: BaseException) -> BaseException:
        """The error as it is to be told: an Interrupted after Ctrl-C, as code that it breaks into may fail in any way."""
        if not self.asked and not isinstance(error, (Interrupted, KeyboardInterrupt)):
            return error
        self.deafen()
        if isinstance(error, Interrupted):
            return error
        return Interrupted("interrupted; what was finished is kept, and the same command does the rest")

    def deafen(self) -> None:
        """From now on the command only ends: another Ctrl-C would cut its one line short, and change its exit code."""
        signal.signal(signal.SIGINT, lambda *_: None)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def raised(self, number: int, frame: Any) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[Interrupts]:
    """Take note of Ctrl-C inside, which is a KeyboardInterrupt there as it always is."""
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
    """Write out what was printed; raises Unprintable where standard output takes no more, and stops trying."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as e:
        with suppress(OSError):  # a stream of the caller's own may have no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail once more at exit
        raise Unprintable(f"cannot write the result to standard output: {e.strerror}; the records are kept") from None


def explain(error: BaseException) -> int:
    """Say what went wrong in one line, and give the exit code; whatever is no error of the user's keeps its trace."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 1  # the parser's way to say that nobody reads the rest
    if isinstance(error, SystemExit):  # only `main` ends the program
        code = error.code
        error, cause = RunFailed(f"something that this command loaded ended the program by sys.exit({code!r:.40})"), error
        error.__cause__ = cause
    if isinstance(error, OSError):
        error = _of_the_system(error)
    if isinstance(error, Unprintable) and isinstance(error.__context__, BrokenPipeError):
        return error.exit_code  # whoever read the output has had enough: `| head`
    if type(error).__name__ == "PanicException":  # pyo3's, which is no Exception
        error, cause = RunFailed(f"a library broke down at what it was given ({one_line(error)})"), error
        error.__cause__ = cause
    if "-v" in sys.argv or "--verbose" in sys.argv or os.environ.get("HARNESS_DEBUG"):
        return _traced(error)
    if isinstance(error, (BenchError, Interrupted)):
        return _say(str(error), error.exit_code)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's: a missing or unknown option
        return _say(f"{error.format_message()} (harness --help)", error.exit_code)
    if isinstance(error, MemoryError):
        return _say("the memory of this machine does not suffice; ask for less at once (evaluation.batch_size, --workers)", 1)
    raise error


def _traced(error: BaseException) -> int:
    """The whole trace, for whoever asked for it; the exit code is that of the error all the same."""
    traceback.print_exception(error)
    return int(getattr(error, "exit_code", 1))


def _of_the_system(error: OSError) -> BaseException:
    """What the system refused as an error of ours, which has a line: standard output, or a file that has no other message."""
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
