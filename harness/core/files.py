"""Reading and writing files of records.

Writes are atomic: a file is complete or absent, whatever the disk does, and a folder is removed in one step. Records may come
from somebody else, so reads accept only regular files inside the record's folder, up to a maximum size.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadData, BenchError, CannotWrite, CorruptRecord, Unwritable, one_line

if TYPE_CHECKING:
    import pyarrow


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a killed process, or a link that would redirect the write
    with temporary.open("xb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def discard(path: Path, bin: Path) -> None:
    """Remove a file, a link or a folder: rename it into `bin` in one step, then delete `bin`.

    If the process is killed in between, the next start clears `bin`.
    """
    if not os.path.lexists(path):
        return
    bin.mkdir(exist_ok=True)
    os.replace(path, bin / uuid.uuid4().hex)
    shutil.rmtree(bin, ignore_errors=True)


def writable(folder: Path, told_by: str = "--out") -> None:
    """Create a folder for what a command writes; raises Unwritable if it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise Unwritable(f"cannot write to {folder}: {e.strerror}; choose another folder with {told_by}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager that turns write errors of the disk into CannotWrite with the path and the reason."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        reason = refused(error)
        if reason is None:
            raise
        raise CannotWrite(f"cannot write {path}: {reason}; fix this and run the same command to resume") from error


def refused(error: Exception) -> str | None:
    """The operating system's reason if an error is a failed write or read of a file; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    if "(os error " in str(error):  # safetensors and tokenizers are written in Rust and raise their own classes
        return one_line(error).removeprefix("Error while serializing: ")
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save does not pass the reason on
        return "the file could not be written whole"
    return None


JSON_BYTES = 2**25  # maximum size of a JSON file; the presets write at most a hundredth of it
WEIGHTS_BYTES = 2**36  # maximum size of a weights file
TABLE_BYTES = 2**28  # maximum size of a table of samples on disk, and of the texts in it
UNPACKED_BYTES = 2**29  # maximum uncompressed size of a table according to its footer
ROWS = 500_000  # maximum number of rows of a table; the presets write at most 75,000
VALUES = 50_000_000  # maximum number of values in a table, response tokens included
DEEPEST = 64  # maximum nesting depth of JSON; records have nine levels


def regular(dir: Path, name: str, limit: int) -> Path:
    """The resolved path of a record's file, checked to be safe to open.

    Raises CorruptRecord if it is not a regular file inside the folder or has more than `limit` bytes, OSError if missing.
    """
    real, home = os.path.realpath(dir / name), os.path.realpath(dir)
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(real).is_relative_to(home):
        raise CorruptRecord(f"{dir}: {name} leads out of the record; copy the file itself into it")
    found = os.stat(real)
    if not stat.S_ISREG(found.st_mode):
        raise CorruptRecord(f"{dir}: {name} cannot be read: it is not a regular file")
    if found.st_size > limit:
        raise CorruptRecord(f"{dir}: {name} has {found.st_size} bytes; expected at most {limit} in a record")
    return Path(real)


def read(dir: Path, name: str, limit: int = JSON_BYTES) -> bytes:
    """The content of a record's file; raises CorruptRecord or OSError as `regular` does."""
    descriptor = os.open(regular(dir, name, limit), os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)


def strict_json(text: str) -> Any:
    """The value of JSON text; raises ValueError for a non-finite number, a repeated key, or deep nesting."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
        _shallow(value)
    except RecursionError as error:
        raise ValueError(one_line(error)) from None
    return value


def _shallow(value: Any, deep: int = 0) -> None:
    """Raise ValueError if values are nested so deeply that recursive readers would fail."""
    if deep > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, (dict, list)):
            _shallow(part, deep + 1)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits} is not a finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def table(
    dir: Path,
    name: str,
    columns: Collection[str] | None = None,
    rows: int | None = None,
    advice: str = "run it again with --fresh",
) -> pyarrow.Table:
    """Read a Parquet file of a record, all columns or those given.

    Raises FileNotFoundError if missing, CorruptRecord if unreadable or larger than a record's table may be when unpacked.
    """
    try:
        content = read(dir, name, TABLE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptRecord(f"{dir}: {name} cannot be read: {error.strerror}") from None
    try:
        return _unpacked(content, columns, ROWS if rows is None else rows)
    except CorruptRecord as error:
        raise CorruptRecord(f"{dir}: {name} {error}") from None
    except Exception as error:  # pyarrow raises many kinds
        raise CorruptRecord(f"{dir}: {name} cannot be read ({one_line(error)}); {advice}") from None


def _unpacked(content: bytes, columns: Collection[str] | None, rows: int) -> pyarrow.Table:
    """Parse a table; texts stay dictionary-encoded until their total length has been checked."""
    import pyarrow
    from pyarrow import parquet

    source = pyarrow.BufferReader(content)
    file = parquet.ParquetFile(source)
    _bounded(file.metadata, rows)
    wanted = [_plain(field) for field in file.schema_arrow if columns is None or field.name in columns]
    texts = [field.name for field in wanted if _is_text(field.type)]
    found = parquet.ParquetFile(source, read_dictionary=texts).read(columns=[field.name for field in wanted])
    if (size := sum(_text_bytes(found[name]) for name in texts)) > TABLE_BYTES:
        raise CorruptRecord(f"unpacks to {size} bytes of text; expected at most {TABLE_BYTES} in a record")
    return found.select([field.name for field in wanted]).cast(pyarrow.schema(wanted, metadata=file.schema_arrow.metadata))


def _plain(field: pyarrow.Field) -> pyarrow.Field:
    """A column with its plain type: numbers, texts or lists of numbers; raises CorruptRecord for any other type."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner) or types.is_null(inner)
    if not number and not _is_text(kind):
        raise CorruptRecord(f"has a column {field.name!r} of type {field.type}; expected numbers and texts")
    return field.with_type(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(bool(is_one(kind)) for is_one in texts)


def _bounded(footer: pyarrow.parquet.FileMetaData, rows: int) -> None:
    """Raise CorruptRecord if a footer declares more rows, values or bytes than a record's table may have."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    limits = {
        "rows": (footer.num_rows, rows),
        "values": (values, VALUES),
        "bytes": (sum(group.total_byte_size for group in groups), UNPACKED_BYTES),
    }
    for what, (found, most) in limits.items():
        if found > most:
            raise CorruptRecord(f"unpacks to {found} {what}; expected at most {most} in a record")


def _text_bytes(column: pyarrow.ChunkedArray) -> int:
    """The total size in bytes of the texts in a dictionary-encoded column."""
    import pyarrow.compute as c

    encoded = (chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode() for chunk in column.chunks)
    parts = (c.binary_length(chunk.dictionary).take(chunk.indices) for chunk in encoded)
    return sum(c.sum(lengths.cast("int64")).as_py() or 0 for lengths in parts)


def json_keys(path: Path) -> set[str]:
    """Every key in a JSON object, at any depth; raises BadData if the file does not hold an object."""
    keys: set[str] = set()
    _read_json(path, keys.update)
    return keys


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises BadData if the file does not hold one."""
    return _read_json(path, lambda found: None)


def _read_json(path: Path, seen: Any) -> dict[str, Any]:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen(key for key, _ in pairs)
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=made)
    except (OSError, ValueError, RecursionError) as e:
        raise BadData(f"{path} is not readable JSON ({one_line(e)}); copy the model again") from e
    if not isinstance(content, dict):
        raise BadData(f"{path} holds a {type(content).__name__}, expected a JSON object; copy the model again")
    return content
