"""One folder a run: written so that a kill at any moment loses nothing that was finished.

manifest.json      identity, status, provenance; written first, replaced atomically
trajectory.jsonl   a row an evaluation, flushed
checkpoints/       the last state to resume from; `policy/` once the run is done
samples/           what the policy said, as parquet
prompts.json       what the final policy scored on each prompt: differences are paired by it
summary.json       last; a run with one is done
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import Busy, CorruptRecord, Unwritable
from .shared import put_back
from .types import Metric

SCHEMA_VERSION = 1


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value; raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_hash(identity: Any) -> str:
    """sha256 of plain data, such as of what decides a run's result, known before it starts."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """sha256 of what a record's file says: of JSON its values, however they are spelled; of any other file its bytes.

    Raises OSError or ValueError where it cannot be read.
    """
    if path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))
        with suppress(ValueError):  # a number that JSON does not have, which the config of a model may hold
            return identity_hash(value)
    if path.suffix == ".jsonl":
        return identity_hash([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def metric_record(metric: Metric) -> dict[str, Any]:
    """A metric as strict JSON: null with a reason where it has no finite value."""
    value, stderr, n, n_unscored, reason = metric
    if value is not None and not math.isfinite(value):
        value, reason = None, f"not finite: {value}"
    stderr = stderr if stderr is not None and math.isfinite(stderr) else None
    record = {"value": value, "stderr": stderr if value is not None else None, "n": n, "n_unscored": n_unscored}
    return record | ({"reason": reason} if reason else {})


def writable(folder: Path) -> None:
    """Make a folder for records; raises Unwritable where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise Unwritable(f"cannot write to {folder}: {e.strerror}; choose another folder with --out") from None


def held(path: Path) -> bool:
    """Whether a process holds the folder of a run; looking takes no more than a moment and changes nothing."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK)  # which no pipe in its place can hold up
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(lock)
    except BlockingIOError:
        return True
    except OSError:  # no lock: a copy, or an archive
        return False
    return False


class RunStore:
    """The folder of one run, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    def open(self) -> None:
        """Make the folder and hold it; raises Unwritable, or Busy where another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as e:
            raise Unwritable(f"cannot write to {self.path}: {e.strerror}; choose another folder with --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise Busy(f"another process is at work on {self.path}; wait for it, or choose another --out") from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Forget everything about the run."""
        for entry in self.path.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None for a new run; raises CorruptRecord."""
        return self._read("manifest.json")

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None for a run that is not done; raises CorruptRecord."""
        return self._read("summary.json")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self._write("manifest.json", manifest)

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", summary)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the trajectory, on disk before this returns."""
        with (self.path / "trajectory.jsonl").open("a") as f:
            f.write(canonical(row) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def rewind(self, rows: int) -> None:
        """Keep the first rows of the trajectory, those that the checkpoint knows; the others are measured again."""
        path = self.path / "trajectory.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) < rows:
            raise CorruptRecord(f"{path} has {len(lines)} rows, its checkpoint knows {rows}; start again with --fresh")
        replace(path, b"".join(lines[:rows]))

    def write_prompts(self, split: str, columns: dict[str, list[Any]]) -> None:
        """The final policy's scores, an entry a prompt, to six digits; null is a prompt without a score."""
        short = {name: [_short(v) for v in column] for name, column in columns.items()}
        record = {"schema_version": SCHEMA_VERSION, "split": split, **short}
        replace(self.path / "prompts.json", (canonical(record) + "\n").encode())

    def write_samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """What the policy said, a row a response; unscored is null."""
        import pandas as pd

        (self.path / "samples").mkdir(exist_ok=True)
        target = self.path / "samples" / f"{name}.parquet"
        pd.DataFrame(rows).to_parquet(target.with_suffix(".tmp"), index=False)
        os.replace(target.with_suffix(".tmp"), target)

    def hashes(self, coming: dict[str, Any]) -> dict[str, str]:
        """The content hash of each file of a finished run, and of JSON that is still to be written, by its name."""
        names = ("trajectory.jsonl", "prompts.json", "samples/*.parquet", "policy/**/*")
        paths = sorted(path for name in names for path in self.path.glob(name) if path.is_file())
        return {name: identity_hash(value) for name, value in coming.items()} | {
            path.relative_to(self.path).as_posix(): content_hash(path) for path in paths
        }

    def save_checkpoint(self, policy: Any, state: dict[str, Any]) -> None:
        """Weights and state, complete under their final name or not there at all; older ones go."""
        import torch

        root = self.path / "checkpoints"
        new = root / f"update-{state['trial']['cost']['updates']:07d}"
        unfinished = root / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        policy.save(unfinished)
        torch.save(state, unfinished / "state.pt")
        shutil.rmtree(new, ignore_errors=True)
        os.replace(unfinished, new)
        for old in self.checkpoints():
            if old != new:
                shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("update-*"))

    def keep_policy(self, policy: Any, update: int) -> None:
        """The policy of a point that may be deployed at the end, whole or not there; the ones before it stay."""
        unfinished = self.path / "checkpoints" / "unfinished-kept"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        policy.save(unfinished)
        shutil.rmtree(self.kept_policy(update), ignore_errors=True)
        os.replace(unfinished, self.kept_policy(update))

    def kept_policy(self, update: int) -> Path:
        """Where the policy of a point is kept until the end of the run."""
        return self.path / "checkpoints" / f"kept-{update:07d}"

    def drop_kept(self, but: int) -> None:
        """Forget the kept policies but one; only after the checkpoint that knows of it is on disk."""
        for old in (self.path / "checkpoints").glob("kept-*"):
            if old != self.kept_policy(but):
                shutil.rmtree(old)

    def load_state(self, checkpoint: Path) -> dict[str, Any]:
        """The state beside a checkpoint's weights: plain data and tensors only; raises CorruptRecord."""
        import torch

        try:
            return torch.load(checkpoint / "state.pt", weights_only=True)
        except Exception as e:
            first = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise CorruptRecord(f"checkpoint {checkpoint} cannot be read ({first}); start again with --fresh") from None

    def finish(self, policy: Any) -> None:
        """Keep the final policy where `eval` and other programs can load it, and drop the checkpoints."""
        policy_dir = self.path / "policy"
        shutil.rmtree(policy_dir, ignore_errors=True)
        if hasattr(policy, "save"):
            policy.save(self.path / "policy.tmp")
            os.replace(self.path / "policy.tmp", policy_dir)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            version = record["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise CorruptRecord(f"{path} is not a readable record; start again with --fresh") from None
        if version > SCHEMA_VERSION:
            raise CorruptRecord(f"{path} has schema {version}, newer than this program's {SCHEMA_VERSION}; update the package")
        return put_back(record, self.path)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        replace(self.path / name, text.encode())


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
