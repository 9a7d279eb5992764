"""Reading and writing files of records, and claiming their folders.

Writes are atomic: a file is complete or absent, whatever the disk does, and a folder is removed in one step. A claimed folder
has one writer, also where machines share it. Records may come from somebody else, so reads accept only regular files inside
the record's folder, up to a maximum size.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadData, BenchError, Busy, CannotWrite, CorruptRecord, LeaseLost, Unwritable, one_line

if TYPE_CHECKING:
    import pyarrow
    from filelock import OwnerRecord, SoftFileLease

LEASE = 60.0  # seconds without a sign of life after which another host may take over a folder
LONGEST_LEASE = 86_400.0  # seconds; what has a longer one was not written by this package
CLAIM_FILES = re.compile(r"\.lock|\.lease(\.(break|restore)\.\d+\.[0-9a-f]{32})?")  # no part of a folder's content


class Claim:
    """The exclusive use of a folder by one process: a kernel lock within a host, and a lease among hosts.

    The kernel lock ends with its process, but some network file systems do not pass it on to other hosts. The lease is a file
    that names its owner, and a thread touches it every third of its length. Another host takes over after it has seen the
    file unchanged for that length, by its own monotonic clock; of several that try, one succeeds.
    """

    def __init__(self, folder: Path, lease: float = LEASE, or_else: str = ", or choose another --out") -> None:
        self.folder, self.length, self._or_else = folder, lease, or_else  # what to do but to wait for another process
        self._lock: int | None = None  # file descriptor
        self._lease: SoftFileLease | None = None

    def take(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Claim the folder; raises Busy if another process has it, OSError if the folder cannot be written to.

        The lease of an owner that may be dead is watched for its length, which `say` is told.
        """
        # never through a link, which in a foreign record may point anywhere
        self._lock = os.open(self.folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            alone = self._locked()
            self._lease = self._leased(alone, say)
        except BaseException:
            self.release()
            raise

    def _locked(self) -> bool:
        """Take the kernel lock; False where the file system has none; raises Busy."""
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy(lease_owner(self.folder)) from None
        except OSError:
            return False
        return True

    def _leased(self, alone: bool, say: Callable[[str], None]) -> SoftFileLease:
        """Take the lease, after its length where its owner does not touch it; raises Busy, also for one of over a day.

        `alone` says that no other process of this host uses the folder: a lease of this very process is then left over.
        """
        from filelock import SoftFileLease, Timeout

        path, owner = self.folder / ".lease", lease_owner(self.folder)
        length = (owner and owner.lease_duration) or self.length  # that of the owner, which it keeps to
        if length > LONGEST_LEASE:
            raise Busy(f"{path} has a lease of {length:.3g} s, more than a day; delete the file if no process is at work there")
        lease = SoftFileLease(path, lease_duration=length, thread_local=False)
        if alone and lease.is_lock_held_by_us:
            lease.force_break()
        first = None
        while True:
            try:
                lease.acquire(timeout=0)
                return lease
            except Timeout:
                seen = _touched(path)
            except ValueError:  # meanwhile taken by an owner with another length
                seen = None
            first = first or seen
            if seen and seen != first:  # touched, or another's by now; without one the next attempt takes it
                raise self._busy(lease_owner(self.folder))
            if first and owner:
                say(f"waiting up to {length:.0f} s for a sign of life of {_named(owner)}, which was at work on {self.folder}")
                owner = None
            time.sleep(min(1.0, length / 20))

    def _busy(self, owner: OwnerRecord | None) -> Busy:
        return Busy(f"{_named(owner)} is at work on {self.folder}; wait for it{self._or_else}")

    def check(self) -> None:
        """Raise LeaseLost if another process has taken the folder over."""
        for attempt in range(3):  # a contender that gives up puts the file back
            if self._lease is None or self._owns(self._lease):
                return
            time.sleep(0.05 * attempt)
        by = lease_owner(self.folder)
        raise LeaseLost(
            f"{self.folder} was taken over by {_named(by)}: this process had given no sign of life for {self.length:.0f} s; "
            "it stops here and has written nothing since"
        )

    @staticmethod
    def _owns(lease: SoftFileLease) -> bool:
        owner = lease.owner
        return owner is not None and owner.token == lease.token

    def release(self) -> None:
        """Give the folder up; safe to repeat."""
        lease, lock, self._lease, self._lock = self._lease, self._lock, None, None
        try:
            if lease is not None:
                with suppress(OSError):  # it ends with this process
                    lease.release()
        finally:
            if lock is not None:
                os.close(lock)


def lease_owner(folder: Path) -> OwnerRecord | None:
    """The process that the lease of a folder names, None without a readable lease."""
    from filelock import SoftFileLease

    return SoftFileLease(folder / ".lease").owner if os.path.lexists(folder / ".lease") else None


def held(folder: Path) -> bool:
    """Return True if a process has claimed a folder; never blocks and changes nothing."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe in its place cannot block
    except OSError:  # no lock: a copy, or an archive
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without kernel locks
        return _leased_elsewhere(folder, here=True)
    finally:
        os.close(lock)
    return _leased_elsewhere(folder, here=False)


def _leased_elsewhere(folder: Path, here: bool) -> bool:
    """Return True if the lease of a folder is fresh, and of another host unless those of `here` count."""
    owner, touched = lease_owner(folder), _touched(folder / ".lease")
    if owner is None or touched is None:
        return False
    if not here and owner.hostname.partition("?")[0] == socket.gethostname():
        return False
    return _now(folder) - touched[0] / 1e9 < (owner.lease_duration or LEASE)


def _now(folder: Path) -> float:
    """The time of a folder's file system, in seconds; that of this host where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _touched(path: Path) -> tuple[int, int] | None:
    """When and as which file a lease was last touched; None if it is gone."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _named(owner: OwnerRecord | None) -> str:
    return "another process" if owner is None else f"another process ({owner.pid} on {owner.hostname.partition('?')[0]})"


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a killed process, or a link that would redirect the write
    with whole(temporary):
        with temporary.open("xb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Context manager that deletes a file or a folder that could not be written whole: a full disk stays full of it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        raise


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
    in_a_file_system(folder, told_by)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise Unwritable(f"cannot write to {folder}: {e.strerror}; choose another folder with {told_by}") from None


def in_a_file_system(folder: Path, told_by: str = "--out") -> None:
    """Raise Unwritable for a folder of an object store, such as s3://bucket/results."""
    if re.match(r"(\w{2,}:/)|\w+://", str(folder)):  # pathlib makes one slash of two
        named = re.sub(":/(?!/)", "://", str(folder), count=1)
        raise Unwritable(
            f"{told_by} {named}: records need atomic renames and locks, which an object store does not have; choose a folder "
            "that the machines share, and copy the records when they are finished"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager that turns write errors of the disk into CannotWrite with the path and the reason."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        if (reason := refused(error)) is None:
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
    """The path of a record's file, with its links resolved, checked to be safe to open.

    Raises CorruptRecord if it is not a regular file inside the folder or has more than `limit` bytes, OSError if missing.
    """
    if os.sep not in name and stat.S_ISREG((found := os.lstat(dir / name)).st_mode) and found.st_size <= limit:
        return dir / name  # nothing to resolve, which takes most of the time of reading a small file
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
