"""The folder of a run, written so that a kill at any moment loses no finished work.

manifest.json      identity, status, provenance; written first, replaced atomically
trajectory.jsonl   one row per evaluation, flushed
probes.jsonl       one row per probe of the finished policy; written after the run is done
scalars.jsonl      one row per update: the scalars of the method; flushed with the trajectory and before each checkpoint
checkpoints/       the last state to resume from; `policy/` once the run is done
samples/           responses, as Parquet
prompts.json       scores of the final policy on each prompt, for paired differences
summary.json       last; a run with one is done
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.errors import BadData, CannotWrite, CorruptRecord, Unwritable
from harness.core.files import CLAIM_FILES, LEASE, Claim, discard, in_a_file_system, replace, whole, writing
from harness.core.hashing import canonical, content_hash, identity_hash

from .read import read_manifest, read_run
from .schema import (
    FINISHED,
    SCHEMA_VERSION,
    TABLES,
    Evaluation,
    Manifest,
    ProbeResult,
    Prompts,
    Record,
    Run,
    Scalars,
    Summary,
    wrong_columns,
)

FILES = re.compile(
    r"(summary|prompts)\.json|(trajectory|scalars|probes)\.jsonl|samples/[\w-]+\.parquet"
)  # files with a hash in the manifest
LONGEST_NAME = 100  # bytes; file systems allow 255, and the name gets prefixes and suffixes


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunStore:
    """The folder of one run, claimed by one process at a time.

    Each write raises CannotWrite if it fails, LeaseLost if another process has taken the folder over.
    """

    def __init__(self, path: Path, lease: float = LEASE, or_else: str = ", or choose another --out") -> None:
        self.path = path
        self._claim = Claim(path, lease, or_else)
        self._folder: os.stat_result | None = None  # of the folder when it was opened

    def open(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Create and claim the folder; raises Unwritable if that fails, Busy if another process has it.

        Where the owner may have died on another host, this takes as long as its lease, which `say` is told.
        """
        in_a_file_system(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim.take(say)
            self._folder = self.path.stat()
        except OSError as e:
            raise Unwritable(f"cannot write to {self.path}: {e.strerror}; choose another folder with --out") from None
        self._sweep_up()

    def close(self) -> None:
        self._claim.release()

    def clear(self) -> None:
        """Delete the record: first the summary, then the state to resume from, last the manifest."""
        order = ("summary.json", "checkpoints", "trajectory.jsonl")
        names = sorted(n for n in {*os.listdir(self.path)} - {"manifest.json", *order} if not CLAIM_FILES.fullmatch(n))
        for name in (*order, *names, "manifest.json"):
            self._discard(self.path / name)

    def manifest(self) -> Manifest | None:
        """Read the manifest, None for a new run; raises CorruptRecord if it is broken."""
        if not os.path.lexists(self.path / "manifest.json"):
            return None
        with _advised():
            return read_manifest(self.path)

    def summary(self) -> Summary | None:
        """Read the summary, None for a run that is not done; raises CorruptRecord if the record of a finished run is broken."""
        if not os.path.lexists(self.path / "summary.json"):
            return None
        with _advised():
            summary = read_run(self.path).summary
            status = summary.status if summary is not None else None
            if status not in FINISHED:
                raise CorruptRecord(f"{self.path}: summary.json has the status {status!r}")
        return summary

    def record(self) -> Run:
        """Read the whole record of a finished run; raises CorruptRecord if a file does not match its hash in the manifest."""
        with _advised():
            run = read_run(self.path)
            changed = [] if run.manifest.archive else _changed(run)
            if changed:
                raise CorruptRecord(f"{self.path}: {', '.join(changed)} is missing or changed since the run")
        return run

    def write_manifest(self, manifest: Manifest) -> None:
        self._write("manifest.json", manifest)

    def write_summary(self, summary: Summary) -> None:
        self._write("summary.json", summary)

    def complete(self, manifest: Manifest, summary: Summary) -> None:
        """Finish a run whose summary is written: update the manifest and delete the checkpoints; safe to repeat."""
        if manifest.status != summary.status:
            ended = {"status": summary.status, "error": None, "ended_at": now()}
            files = self.hashes({"summary.json": summary.plain()})
            self.write_manifest(manifest.model_copy(update={**ended, "files": files}))
        self._discard(self.path / "checkpoints")

    def append(self, row: Evaluation) -> None:
        """Append a row to the trajectory and flush it to disk."""
        self._append("trajectory.jsonl", [row])

    def append_scalars(self, rows: list[Scalars]) -> None:
        """Append the scalars of some updates and flush them to disk."""
        if rows:
            self._append("scalars.jsonl", rows)

    def _append(self, name: str, rows: Sequence[Record]) -> None:
        with self._writing(name) as path, path.open("a") as f:
            f.write("".join(canonical(row.plain()) + "\n" for row in rows))
            f.flush()
            os.fsync(f.fileno())

    def rewind(self, rows: int, scalars: int = 0) -> None:
        """Truncate trajectory and scalars to the rows written before the checkpoint; later rows are computed again.

        Raises CorruptRecord if a file has fewer rows, or if a row of the trajectory is invalid.
        """
        with self._writing("trajectory.jsonl") as path:
            replace(path, self._first(path, rows))
        first = self._first(self.path / "scalars.jsonl", scalars)
        if not first:  # a run without an update has no such file
            self._discard(self.path / "scalars.jsonl")
        else:
            with self._writing("scalars.jsonl") as path:
                replace(path, first)
        with _advised():
            read_run(self.path)

    def _first(self, path: Path, rows: int) -> bytes:
        """Read the first rows of a file; raises CorruptRecord if it has fewer."""
        lines = self._lines(path) if os.path.lexists(path) else []
        if len(lines) < rows:
            raise CorruptRecord(f"{path} has {len(lines)} rows, its checkpoint knows {rows}; start again with --fresh")
        return b"".join(lines[:rows])

    @staticmethod
    def _lines(path: Path) -> list[bytes]:
        """The complete lines of a file, without a last line cut off by a kill; raises CorruptRecord."""
        try:
            return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        except OSError as e:
            raise CorruptRecord(f"{path} cannot be read: {e.strerror}; start again with --fresh") from None

    def write_probes(self, manifest: Manifest, results: Sequence[ProbeResult]) -> None:
        """Write the results of all probes of a finished run, and their hash to its manifest."""
        with self._writing("probes.jsonl") as path:
            replace(path, "".join(canonical(row.plain()) + "\n" for row in results).encode())
        files = (manifest.files or {}) | {"probes.jsonl": probes_hash(results) or ""}
        self.write_manifest(manifest.model_copy(update={"files": files}))

    def write_prompts(self, split: str, columns: dict[str, list[Any]]) -> None:
        """Write the scores of the final policy, one entry per prompt, to six digits; null for a missing score."""
        short = {name: [_short(v) for v in column] for name, column in columns.items()}
        record = Prompts(schema_version=SCHEMA_VERSION, split=split, **short)
        with self._writing("prompts.json") as path:
            replace(path, (canonical(record.plain()) + "\n").encode())

    def write_samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write responses as Parquet, one row per response; null for a missing score.

        Raises BadData if the rows do not have the columns of `Sample` or `PaperSample`.
        """
        import pandas as pd
        import pyarrow

        file, frame = f"samples/{name}.parquet", pd.DataFrame(rows)
        if wrong := wrong_columns(TABLES[file], pyarrow.Schema.from_pandas(frame, preserve_index=False)):
            raise BadData(f"{file} is not a table of samples: {wrong}; look at the texts and scores of the task")
        with self._writing(file) as target:
            target.parent.mkdir(exist_ok=True)
            with whole(target.with_suffix(".tmp")):
                frame.to_parquet(target.with_suffix(".tmp"), index=False)
                os.replace(target.with_suffix(".tmp"), target)

    def hashes(self, coming: dict[str, Any]) -> dict[str, str]:
        """The content hashes of the files of a finished run by name, including JSON still to be written (`coming`)."""
        names = ("trajectory.jsonl", "scalars.jsonl", "probes.jsonl", "prompts.json", "samples/*.parquet", "policy/**/*")
        paths = sorted(path for name in names for path in self.path.glob(name) if path.is_file())
        return {name: identity_hash(value) for name, value in coming.items()} | {
            path.relative_to(self.path).as_posix(): content_hash(path) for path in paths
        }

    def save_checkpoint(self, policy: Any, state: dict[str, Any]) -> None:
        """Write weights and state atomically, then delete older checkpoints."""
        import torch

        with self._writing("checkpoints/unfinished") as unfinished:
            self._make(unfinished)
            with whole(unfinished):
                policy.save(unfinished)
                torch.save(state, unfinished / "state.pt")
            new = unfinished.with_name(f"update-{state['trial']['cost']['updates']:07d}")
            while new.exists():  # there is always a complete checkpoint: one of the same update is deleted with the older ones
                new = new.with_name(new.name + "+")
            self._claim.check()  # the weights of a large model take minutes to write
            os.replace(unfinished, new)
        for old in self.checkpoints():
            if old != new:
                self._discard(old)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first; raises CorruptRecord if their path is not a folder."""
        root = self.path / "checkpoints"
        if os.path.lexists(root) and not root.is_dir():
            raise CorruptRecord(f"{root} is not a folder; start again with --fresh")
        return sorted(root.glob("update-*"))

    def keep_policy(self, policy: Any, update: int) -> None:
        """Save atomically the policy of a point that may be deployed at the end; earlier ones are kept."""
        with self._writing("checkpoints/unfinished-kept") as unfinished:
            self._make(unfinished)
            with whole(unfinished):
                policy.save(unfinished)
            self._discard(self.kept_policy(update))
            os.replace(unfinished, self.kept_policy(update))

    def kept_policy(self, update: int) -> Path:
        """The folder of a point's policy until the end of the run."""
        return self.path / "checkpoints" / f"kept-{update:07d}"

    def drop_kept(self, but: int) -> None:
        """Delete all kept policies but one; call it only after the checkpoint that refers to that one is on disk."""
        for old in (self.path / "checkpoints").glob("kept-*"):
            if old != self.kept_policy(but):
                self._discard(old)

    def load_state(self, checkpoint: Path) -> dict[str, Any]:
        """Load the state of a checkpoint, plain data and tensors only; raises CorruptRecord if it cannot be read."""
        import torch

        try:
            state = torch.load(checkpoint / "state.pt", weights_only=True)
        except Exception as e:
            first = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise CorruptRecord(f"checkpoint {checkpoint} cannot be read ({first}); start again with --fresh") from None
        kinds = {"trial": dict, "next_point": int, "rows": int, "seconds": float}
        wrong = [name for name, kind in kinds.items() if not isinstance(state, dict) or not isinstance(state.get(name), kind)]
        if wrong:
            raise CorruptRecord(f"checkpoint {checkpoint} has no {', '.join(wrong)} in its state; start again with --fresh")
        return state

    def finish(self, policy: Any) -> None:
        """Save the final policy to `policy/`, for `harness eval` and other programs."""
        with self._writing("policy") as target:
            unfinished = self.path / "policy.tmp"
            if hasattr(policy, "save"):
                self._make(unfinished)
                with whole(unfinished):
                    policy.save(unfinished)
            self._discard(target)  # with another look at the claim
            if unfinished.exists():
                os.replace(unfinished, target)

    def _make(self, folder: Path) -> None:
        """Create an empty folder and its parent, but never the folder of the run, which may have been removed."""
        self._discard(folder)
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir()

    def _discard(self, path: Path) -> None:
        with self._writing(path.relative_to(self.path).as_posix()):
            discard(path, self.path / ".discarded")

    def _sweep_up(self) -> None:
        """Delete files that a kill left half-written or half-removed."""
        shutil.rmtree(self.path / ".discarded", ignore_errors=True)
        for left in (*self.path.glob("*.tmp"), *self.path.glob("samples/*.tmp")):
            self._discard(left)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Yield the path of a file of the record to be written; raises CannotWrite if the write fails."""
        path = self.path / name
        try:
            with writing(path):
                self._check_held()
                yield path
        except CannotWrite:
            self._check_held()
            raise

    def _check_held(self) -> None:
        """Raise CannotWrite if the folder is no longer the one that was opened, LeaseLost if it was taken over."""
        try:
            gone = self._folder is not None and not os.path.samestat(self._folder, self.path.stat())
        except OSError:
            gone = True
        if gone:
            raise CannotWrite(f"{self.path} was removed during the run; run the same command to start it again") from None
        self._claim.check()

    def _write(self, name: str, record: Record) -> None:
        text = json.dumps(record.plain(), indent=1, allow_nan=False) + "\n"
        with self._writing(name) as path:
            replace(path, text.encode())


@contextmanager
def _advised() -> Iterator[None]:
    """Add advice to a CorruptRecord error."""
    try:
        yield
    except CorruptRecord as e:
        raise CorruptRecord(f"{e} (start again with --fresh)") from None


def _changed(run: Run) -> list[str]:
    """The files of a record whose content does not match its hash in the manifest."""
    changed = []
    known = {name: sha256 for name, sha256 in (run.manifest.files or {}).items() if FILES.fullmatch(name)}
    for name, expected in known.items():
        try:
            same = content_hash(run.dir / name) == expected
        except (OSError, ValueError, RecursionError):
            same = False
        changed += [] if same else [name]
    return changed


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def probes_hash(results: Sequence[ProbeResult]) -> str | None:
    """The content hash of probes.jsonl with these results, None for no such file."""
    return identity_hash([row.plain() for row in results]) if results else None


def file_name(name: str) -> str:
    """A name that every file system accepts: a long one is cut and made unique by its hash."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    whole = name.encode()
    return f"{whole[: LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"
