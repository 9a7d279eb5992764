"""Every error that a user can cause; anything else that escapes is a bug of ours.

The exit code of the command line is that of the error: 1 run failed, 2 usage or settings, 3 something the
run needs is missing or unusable, 4 partial or degraded, 5 a check did not match, 130 interrupted.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


def one_line(error: BaseException) -> str:
    """What an error of somebody else says, short and in one line, for a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def cut(text: str, longest: int = 80) -> str:
    """The beginning of a text of the user's, for a message of one line."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class BenchError(Exception):
    """The root of the tree: a message of one line that says what was expected, what was found, what to do."""

    exit_code = 1


class UsageError(BenchError):
    """Something on the command line or in a settings file that cannot be meant."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that no table has."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = get_close_matches(cut(name), known, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"no {kind} named {cut(name)!r}; {meant}" + (f" ({hint})" if hint else ""))


class BadSetting(UsageError):
    """A setting with an unknown key or a value out of its range."""


class PromptTooLong(UsageError):
    """A prompt that leaves no room for the response in the model's context."""


class EmptySelection(UsageError):
    """A selection with nothing in it: no prompts, no runs."""


class Unwritable(UsageError):
    """A folder that the results cannot be written to."""


class MissingPrerequisite(BenchError):
    """A model, a data set or a scorer that is not there."""

    exit_code = 3


class BadData(MissingPrerequisite):
    """A file that is there but cannot be used: a broken row, a corrupt checkpoint, a hash that differs."""


class BadScorer(MissingPrerequisite):
    """A scorer that does not do what a scorer does: it cannot be built, or gives no score in [0, 1] a text."""


class RunFailed(BenchError):
    """A run that could not go on."""


class MethodFailed(RunFailed):
    """A method that raised, or broke a rule that every method must hold."""


class NotFinite(RunFailed):
    """A loss or a gradient that is not a finite number."""


class CorruptRecord(RunFailed):
    """A record on disk that cannot be read back."""


class CannotWrite(RunFailed):
    """A file of a run that the disk did not take: it is full, read-only or gone."""


class Unprintable(RunFailed):
    """A result that standard output does not take: the file that it goes to is on a full disk."""


class Busy(RunFailed):
    """Another process is at work on the same run."""


class Degraded(BenchError):
    """A measurement that is incomplete: too many responses that a scorer could not score, a record left out."""

    exit_code = 4


class Mismatch(BenchError):
    """A check whose two sides differ."""

    exit_code = 5


class Interrupted(BaseException):
    """Stopped by the user; the same command goes on from the last checkpoint.

    No `Exception`, so that it passes through every handler that keeps one bad text or one bad file from costing a run.
    """

    exit_code = 130


class NoItem(ValueError):
    """A row of a data set that gives nothing, and why: it is counted under that word, and no error of the user's."""


@contextmanager
def refusing(what: str, todo: str) -> Iterator[None]:
    """Turn whatever a library raises inside into BadData, `what` before its own words and `todo` behind them."""
    try:
        yield
    except BenchError:
        raise
    except BaseException as e:
        # a panic of a library in Rust is no Exception; an interruption is none either, and passes
        if type(e).__name__ != "PanicException" and not isinstance(e, Exception):
            raise
        raise BadData(f"{what} ({one_line(e)}); {todo}") from e
