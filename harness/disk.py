"""Writing to a disk that may be full, slow or gone: files are whole or not there, and folders go in one step."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BenchError, CannotWrite, one_line


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # what a kill has left, or a link that would lead the write elsewhere
    with temporary.open("xb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def discard(path: Path, bin: Path) -> None:
    """Take away a file, a link or a folder: its name is free in one step, and its content goes after that, by way of `bin`.

    What a kill leaves in `bin` is for the next start to clear.
    """
    if not os.path.lexists(path):
        return
    bin.mkdir(exist_ok=True)
    os.replace(path, bin / uuid.uuid4().hex)
    shutil.rmtree(bin, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the disk refuses inside is a CannotWrite that names the path and the reason."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        reason = refused(error)
        if reason is None:
            raise
        raise CannotWrite(f"cannot write {path}: {reason}; mend that, and the same command goes on from there") from error


def refused(error: Exception) -> str | None:
    """What the disk said, where that is what an error is of; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    if "(os error " in str(error):  # safetensors and tokenizers, which are written in Rust, have errors of their own
        return one_line(error).removeprefix("Error while serializing: ")
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save does not pass the reason on
        return "the file could not be written whole"
    return None
