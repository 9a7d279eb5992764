"""The errors that a user can cause, in one tree; any other exception that escapes is a bug of the harness.

Each class carries the exit code of the command line: 1 run failed, 2 usage or settings, 3 a prerequisite
is missing or unusable, 4 partial or degraded, 5 a check did not match, 130 interrupted.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


def one_line(error: BaseException) -> str:
    """The message of any exception on one line, at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def cut(text: str, longest: int = 80) -> str:
    """The first `longest` characters of a text given by the user, for an error message of one line."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class BenchError(Exception):
    """The base class of every error with a message for the user. Exit code 1."""

    exit_code = 1


class UsageError(BenchError):
    """An invalid command line or settings file. Exit code 2."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not registered: the message gives the nearest match. Exit code 2."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = get_close_matches(cut(name), known, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"no {kind} named {cut(name)!r}; {meant}" + (f" ({hint})" if hint else ""))


class UnknownKind(UnknownName):
    """A kind of thing that a command does not have: the message lists all that it has. Exit code 2."""

    def __init__(self, doing: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = list(known)
        close = get_close_matches(cut(name), known, n=1, cutoff=0.7)
        meant = f"did you mean {close[0]!r}? " if close else ""
        super(UnknownName, self).__init__(
            f"{doing} {cut(name)!r}: no such kind; {meant}kinds: {', '.join(known)}" + (f" ({hint})" if hint else "")
        )


class BadSetting(UsageError):
    """A setting with an unknown key or a value out of range. Exit code 2."""


class PromptTooLong(UsageError):
    """A prompt that leaves no room for the response in the model's context. Exit code 2."""


class EmptySelection(UsageError):
    """A selection without prompts or without runs. Exit code 2."""


class Unwritable(UsageError):
    """A folder that cannot be written to. Exit code 2."""


class MissingPrerequisite(BenchError):
    """A model, a data set or a scorer that is missing. Exit code 3."""

    exit_code = 3


class BadData(MissingPrerequisite):
    """A file that exists but cannot be used: an invalid row, a corrupt checkpoint, a different hash. Exit code 3."""


class BadScorer(MissingPrerequisite):
    """A scorer that cannot be built, or that does not return one score in [0, 1] for each text. Exit code 3."""


class RunFailed(BenchError):
    """A run that cannot continue, or a file of a run that cannot be read or written. Exit code 1."""


class MethodFailed(RunFailed):
    """A method that raised an exception or violated a rule of the method interface."""


class NotFinite(RunFailed):
    """A loss or a gradient that is not a finite number."""


class CorruptRecord(RunFailed):
    """A record on disk that cannot be read back."""


class CannotWrite(RunFailed):
    """A file of a run that could not be written: the disk is full, read-only or unmounted."""


class Unprintable(RunFailed):
    """A result that could not be written to standard output, such as a redirect to a full disk."""


class Busy(RunFailed):
    """A run that another process is writing."""


class LeaseLost(Busy):
    """A run that another process has taken over, because this one gave no sign of life for the length of its lease."""


class Degraded(BenchError):
    """An incomplete measurement: too many responses that a scorer could not score, or a record left out. Exit code 4."""

    exit_code = 4


class Mismatch(BenchError):
    """A check whose expected and actual values differ. Exit code 5."""

    exit_code = 5


class Interrupted(BaseException):
    """An interruption by the user; the same command resumes from the last checkpoint. Exit code 130.

    It does not derive from `Exception`, so that handlers that isolate one bad text or file do not catch it.
    """

    exit_code = 130


class NoItem(ValueError):
    """Raised by `DataSet.items` for a row that yields no item; the argument is the reason under which the row is counted."""


@contextmanager
def refusing(what: str, todo: str) -> Iterator[None]:
    """Context manager that turns any exception of a library into BadData: "WHAT (its message); TODO"."""
    try:
        yield
    except BenchError:
        raise
    except BaseException as e:
        # a panic in a Rust library does not derive from Exception; nor does an interruption, which must pass
        if type(e).__name__ != "PanicException" and not isinstance(e, Exception):
            raise
        raise BadData(f"{what} ({one_line(e)}); {todo}") from e
