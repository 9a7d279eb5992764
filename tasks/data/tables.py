"""Reading rows of a file: JSON Lines, a JSON array, CSV, TSV or Parquet, by its suffix; all but Parquet may be gzipped.

Files are untrusted: they are read as text and numbers, nothing is unpickled or run, and size limits bound the cost of a small
file that unpacks without end. Every row comes with its location for error messages: a line number if the file has lines.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from harness.api import BadData, MissingPrerequisite, one_line

UNPACKED = 2**31  # maximum size of an unpacked file in bytes
LINE = 2**24  # maximum size of a line in bytes
ROWS = 5_000_000
ARRAY = 2**28  # maximum size of a JSON array in bytes, which is read at once
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
FORMATS = "give a JSON Lines file, or .csv, .tsv, .parquet"


def is_table(path: str) -> bool:
    """True if a file name has the suffix of a supported table format; the file need not exist."""
    return path.lower().removesuffix(".gz").endswith(SUFFIXES) or path.lower().endswith(".parquet")


def is_spelled(path: Path) -> bool:
    """True if the format stores all values as text, numbers included (CSV, TSV)."""
    return _suffix(path) in DELIMITERS


def read(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the location and the content of each non-blank row; of Parquet only those of `columns` that exist.

    Raises MissingPrerequisite if the file cannot be opened, BadData if it is malformed or too large.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet(_regular(path), columns)
    elif suffix in DELIMITERS:
        yield from _delimited(path, DELIMITERS[suffix])
    elif suffix == ".json" and _begins_as_array(path):
        yield from _array(path)
    else:
        yield from ((f"line {number}", _json(f"{path}, line {number}", line)) for number, line in lines(path))


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line number and the content of each non-blank row of a JSON Lines file."""
    for number, line in lines(path):
        yield number, _json(f"{path}, line {number}", line)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered non-blank lines of a file without a byte order mark, as bytes, so that only a newline ends a line."""
    total = 0
    with _opened(path) as file:
        for number in range(1, ROWS + 2):
            line = _line(path, file, number)
            total += len(line)
            if not line:
                return
            if number > ROWS or total > UNPACKED:
                raise BadData(f"{path} has more than {ROWS:,} lines or {UNPACKED >> 30} GiB; give a part of it")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def _line(path: Path, file: IO[bytes], number: int) -> bytes:
    try:
        line = file.readline(LINE + 1)
    except (EOFError, zlib.error, OSError) as e:
        raise BadData(f"{path}, line {number}: not readable ({one_line(e)}); copy or download the file again") from e
    if len(line) > LINE:
        raise BadData(f"{path}, line {number}: longer than {LINE >> 20} MiB; expected one row per line")
    return line


def _regular(path: Path) -> Path:
    try:
        path.stat()
    except OSError as e:
        raise MissingPrerequisite(f"cannot read the prompts in {path} ({e.strerror}); {FORMATS}") from e
    if not path.is_file():  # a pipe would block, and a device has no end
        raise MissingPrerequisite(f"cannot read the prompts in {path} (not a regular file); {FORMATS}")
    return path


def _opened(path: Path) -> IO[bytes]:
    try:
        return gzip.open(_regular(path), "rb") if path.name.lower().endswith(".gz") else _regular(path).open("rb")  # type: ignore[return-value]
    except OSError as e:
        raise MissingPrerequisite(f"cannot read the prompts in {path} ({e.strerror}); {FORMATS}") from e


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as e:
        raise BadData(f"{where}: not UTF-8 (byte {e.start + 1} of the line); save the file as UTF-8") from e


def _json(where: str, line: bytes) -> Any:
    text = _decoded(where, line)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadData(f"{where}: not JSON ({getattr(e, 'msg', one_line(e))}); expected one object per line") from e


def _begins_as_array(path: Path) -> bool:
    return next((line.lstrip().startswith(b"[") for _, line in lines(path)), False)


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    with _opened(path) as file:
        content = file.read(ARRAY + 1)
    if len(content) > ARRAY:
        raise BadData(f"{path} is an array of more than {ARRAY >> 20} MiB; save it as JSON Lines")
    try:
        rows = json.loads(_decoded(str(path), content.removeprefix(b"\xef\xbb\xbf")))
    except (ValueError, RecursionError) as e:
        raise BadData(f"{path}: not JSON ({one_line(e)}); expected an array of objects, or one object per line") from e
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows below a header; the location of a row is its last line, since a quoted value may span several."""
    source = (_decoded(f"{path}, line {number}", line) for number, line in _with_blanks(path))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for row in filter(None, reader):
            if header:
                yield f"line {reader.line_num}", _fields(path, reader.line_num, header, row)
            else:
                header = _header(path, row)
    except csv.Error as e:
        kind = _suffix(path)[1:].upper()
        raise BadData(
            f"{path}, line {reader.line_num}: not {kind} ({one_line(e)}); expected a header, then one row per line"
        ) from e


def _with_blanks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield all lines, blank ones included, since they may belong to a quoted value and count as lines."""
    last = 0
    for number, line in lines(path):
        yield from ((blank, b"\n") for blank in range(last + 1, number))
        yield number, line
        last = number


def _header(path: Path, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadData(f"{path}, line 1: duplicate column {shown(twice[0])}; rename one")
    return names


def _fields(path: Path, number: int, header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise BadData(
            f"{path}, line {number}: {len(row)} values, expected {len(header)} as in the header; quote a text with commas"
        )
    return dict(zip(header, row, strict=True))


def _parquet(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [name for name in names if name in columns] or names[:1]
        leaves = _leaves(path, file.metadata, wanted)
        # dictionary encoding stores a repeated text once; otherwise a few bytes could expand to gigabytes
        file = parquet.ParquetFile(path, read_dictionary=leaves, pre_buffer=False)
        empty, number = dict.fromkeys(names), 0
        for batch in file.iter_batches(1000, columns=wanted):
            for values in zip(*batch.columns, strict=True):
                number += 1
                yield f"row {number}", empty | {name: value.as_py() for name, value in zip(wanted, values, strict=True)}
    except (pa.ArrowException, OSError, ValueError) as e:
        raise BadData(f"{path} cannot be read as Parquet ({one_line(e)}); copy or download it again") from e


def _leaves(path: Path, metadata: Any, wanted: list[str]) -> list[str]:
    """The paths of the byte columns among those wanted, nested ones included; raises BadData if they are too large."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    chunks = [c for c in chunks if c.path_in_schema.partition(".")[0] in wanted]
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if metadata.num_rows > ROWS or size > UNPACKED:
        raise BadData(
            f"{path} has {metadata.num_rows:,} rows, {size >> 20:,} MiB; expected at most {ROWS:,} and {UNPACKED >> 20:,}"
        )
    return sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})


def shown(name: object) -> str:
    """A column name for an error message: shortened, with control characters escaped."""
    text = ascii(name) if not str(name).isprintable() else str(name)
    return text if len(text) <= 40 else text[:37] + "..."
