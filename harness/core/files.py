"""Writing to a disk that may be full, slow or gone: files are whole or not there, and folders go in one step.

Reads the files of a record, which may be somebody else's: regular files inside its folder, of a size that one can have."""

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


def writable(folder: Path) -> None:
    """Make a folder for records; raises Unwritable where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise Unwritable(f"cannot write to {folder}: {e.strerror}; choose another folder with --out") from None


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


JSON_BYTES = 2**25  # of a file of JSON; the largest of the presets has a hundredth of it
WEIGHTS_BYTES = 2**36  # of a file of a policy
TABLE_BYTES = 2**28  # of a table of samples on disk, and of the texts in it
UNPACKED_BYTES = 2**29  # of a table by its own footer
ROWS = 500_000  # of a table; the largest of the presets has 75,000
VALUES = 50_000_000  # of a table, the tokens of responses among them
DEEPEST = 64  # JSON values within values; a record of ours has nine


def regular(dir: Path, name: str, limit: int) -> Path:
    """The path of a record's file that may be opened.

    Raises CorruptRecord for whatever is no regular file inside the folder or has more than `limit` bytes, else OSError.
    """
    real, home = os.path.realpath(dir / name), os.path.realpath(dir)
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(real).is_relative_to(home):
        raise CorruptRecord(f"{dir}: {name} leads out of the record; copy the file itself into it")
    found = os.stat(real)
    if not stat.S_ISREG(found.st_mode):
        raise CorruptRecord(f"{dir}: {name} cannot be read: it is no regular file")
    if found.st_size > limit:
        raise CorruptRecord(f"{dir}: {name} has {found.st_size} bytes; such a file of a record has {limit} at most")
    return Path(real)


def read(dir: Path, name: str, limit: int = JSON_BYTES) -> bytes:
    """The content of a record's file; raises what `regular` does."""
    descriptor = os.open(regular(dir, name, limit), os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)


def strict_json(text: str) -> Any:
    """The value of JSON text; raises ValueError for a number that is not finite, a key that occurs twice, or deep nesting."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
        _shallow(value)
    except RecursionError as error:
        raise ValueError(one_line(error)) from None
    return value


def _shallow(value: Any, deep: int = 0) -> None:
    """Raise ValueError for values so deep within each other that whoever walks through them would fail."""
    if deep > DEEPEST:
        raise ValueError(f"it has more than {DEEPEST} values within each other")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, (dict, list)):
            _shallow(part, deep + 1)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a number of JSON")


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
    """A Parquet file of a record, some columns or all.

    Raises FileNotFoundError, else CorruptRecord, also where it would unpack to more than a record's table can have.
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
    """A table whose texts stay in a dictionary until it is known how long they are all together."""
    import pyarrow
    from pyarrow import parquet

    source = pyarrow.BufferReader(content)
    file = parquet.ParquetFile(source)
    _bounded(file.metadata, rows)
    wanted = [_plain(field) for field in file.schema_arrow if columns is None or field.name in columns]
    texts = [field.name for field in wanted if _is_text(field.type)]
    found = parquet.ParquetFile(source, read_dictionary=texts).read(columns=[field.name for field in wanted])
    if (size := sum(_text_bytes(found[name]) for name in texts)) > TABLE_BYTES:
        raise CorruptRecord(f"unpacks to {size} bytes of text; a record's table has {TABLE_BYTES} at most")
    return found.select([field.name for field in wanted]).cast(pyarrow.schema(wanted, metadata=file.schema_arrow.metadata))


def _plain(field: pyarrow.Field) -> pyarrow.Field:
    """A column as it is to be read: of numbers, of texts, of lists of numbers; raises CorruptRecord for any other."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner) or types.is_null(inner)
    if not number and not _is_text(kind):
        raise CorruptRecord(f"has a column {field.name!r} of type {field.type}; a record's table has numbers and texts")
    return field.with_type(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _bounded(footer: pyarrow.parquet.FileMetaData, rows: int) -> None:
    """Raise CorruptRecord where a footer says more than a record's table can have."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    limits = {
        "rows": (footer.num_rows, rows),
        "values": (values, VALUES),
        "bytes": (sum(group.total_byte_size for group in groups), UNPACKED_BYTES),
    }
    for what, (found, most) in limits.items():
        if found > most:
            raise CorruptRecord(f"unpacks to {found} {what}; a record's table has {most} at most")


def _text_bytes(column: pyarrow.ChunkedArray) -> int:
    """How many bytes the texts of a column that is read as a dictionary have."""
    import pyarrow.compute as c

    encoded = (chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode() for chunk in column.chunks)
    parts = (c.binary_length(chunk.dictionary).take(chunk.indices) for chunk in encoded)
    return sum(c.sum(lengths.cast("int64")).as_py() or 0 for lengths in parts)


def json_keys(path: Path) -> set[str]:
    """Every key in a JSON object, at whatever depth; raises BadData where the file does not hold one."""
    keys: set[str] = set()
    _read_json(path, keys.update)
    return keys


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises BadData where there is none."""
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
