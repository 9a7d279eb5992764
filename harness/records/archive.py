"""Copies of records for keeping, in git for instance: `python -m harness.records.archive SRC... DST [--samples N]`.

A copy keeps manifest, summary, trajectory and the scores of each prompt, with every value unchanged, but no policy,
checkpoint or picture. DST is a study: a folder of Parquet tables (`harness.records.tables`). Of the samples it keeps one
response to each of N prompts, the same prompts for every run: chosen by the hash of their text, from each kind in turn. With
--folders DST has one folder per run in compact JSON, which a sweep can resume; values that runs share are kept once
(`harness.records.dedup`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.core.errors import CorruptRecord, EmptySelection, MissingPrerequisite, Unwritable
from harness.core.files import replace, writing
from harness.core.hashing import canonical
from harness.core.process import script
from harness.core.text import escaped

from .dedup import digest, file_name, reference
from .read import find_runs, probes, scalars, source_of
from .samples import read
from .schema import Kept, Problem, Run, Sample, place
from .tables.encode import Record, encode, thinned
from .tables.layout import is_study

KEPT = ("done", "degraded", "failed")
TEXTS = ("kind", "prompt", "response")
COLUMNS = ("prompt_id", *TEXTS, "reward", "judge", "kl", "nll", "nll_tokens")
IN_COMMON = {
    "manifest.json": (
        "settings", "identity.model", "identity.data", "identity.scorers", "identity.fluency", "identity.decoding",
        "identity.evaluation", "identity.optimizer", "provenance.packages",
    ),
    "summary.json": ("frontier", "base", "settings"),
    "prompts.json": ("id", "kind", "n_scored", "base_reward", "base_judge"),
}  # fmt: skip


class Archived(NamedTuple):
    """The result of archiving: folders added, updated and unchanged, and the records left out with the reason."""

    added: list[Path]
    updated: list[Path]
    unchanged: list[Path]
    problems: list[Problem]


def archive(sources: list[Path], target: Path, samples: int = 0) -> Archived:
    """Copy the records below some folders into an archive, keeping the records already in it.

    Raises EmptySelection if there is no record, Unwritable if the archive cannot be written.
    """
    runs, problems = find_runs(sources)
    if not runs:
        why = f" ({problems[0].path}: {problems[0].what})" if problems else ""
        raise EmptySelection(f"no record below {', '.join(map(str, sources))} to keep{why}")
    done = Archived([], [], [], problems)
    for run in _kept_once(runs, problems):
        _keep(run, target, samples, done)
    return done


def place_of(run: Run) -> Path:
    """The path of a record in an archive: preset/task/method/run, whatever its original folder."""
    m = run.manifest
    return place(m.preset, m.task, m.method, m.run_id, m.seed)


def write_study(sources: list[Path], target: Path, samples: int = 0) -> Archived:
    """Add the records below some folders to the study at `target`, keeping the records already in it.

    Raises EmptySelection if there is no record, CorruptRecord if the study cannot be read, Unwritable if it cannot be written.
    """
    runs, problems = find_runs(sources)
    if not runs:
        why = f" ({problems[0].path}: {problems[0].what})" if problems else ""
        raise EmptySelection(f"no record below {', '.join(map(str, sources))} to keep{why}")
    before = _of_study(target)
    done, found = Archived([], [], [], problems), dict(before)
    for run in _kept_once(runs, problems):
        where = place_of(run)
        record = _record(run, samples, before.get(where))
        found[where] = record
        changed = where not in before or before[where].digest() != record.digest()
        (done.unchanged if not changed else done.updated if where in before else done.added).append(target / where)
    for name, content in _encoded(found, target, done).items():
        _write(target / name, content)
    return done


def _encoded(found: dict[Path, Record], target: Path, done: Archived) -> dict[str, bytes]:
    """The files of a study; a record that the tables cannot hold is left out and reported as a problem."""
    for where in [] if _fits([found[where] for where in sorted(found)]) else sorted(found):
        if not _fits([found[where]]):
            del found[where]
            what = "left out: no table holds it, since a text of it is not UTF-8 or a number has more than 64 bits"
            done.problems.append(Problem(target / where, what))
            for places in (done.added, done.updated, done.unchanged):
                places[:] = [place for place in places if place != target / where]
    return encode([found[where] for where in sorted(found)])


def _of_study(target: Path) -> dict[Path, Record]:
    """The records of an existing study by their paths, none if there is no study; raises CorruptRecord."""
    if not is_study(target):
        return {}
    runs, problems = find_runs([target])
    if problems:
        raise CorruptRecord(f"{problems[0].path}: {problems[0].what}; choose another study, or remove it and run again")
    return {place_of(run): _record(run, sys.maxsize) for run in runs}


def _kept_once(runs: list[Run], problems: list[Problem]) -> Iterator[Run]:
    """Yield the runs that have ended, one per path; add those left out to the problems."""
    places: dict[Path, Run] = {}
    for run in runs:
        if run.manifest.status not in KEPT:
            problems.append(Problem(run.dir, f"left out: the run is {run.manifest.status}"))
        elif (first := places.setdefault(place_of(run), run)) is not run:
            problems.append(Problem(run.dir, f"left out: a second record of {first.dir}"))
        else:
            yield run


def _record(run: Run, samples: int, before: Record | None = None) -> Record:
    """A run as kept in a study, with at most `samples` samples, but no fewer than the study already had."""
    had = max((len(rows) for rows in before.samples.values()), default=0) if before else 0
    tables = {of: [_sample(row) for row in rows] for of, rows in _tables(run, max(samples, had)).items()}
    kept = max((len(rows) for rows in tables.values()), default=0)
    if before and had > kept:
        tables, kept = before.samples, had
    manifest = run.manifest.model_copy(update={"archive": Kept(samples=kept)})
    return Record(manifest, run.summary, run.trajectory, source_of(run).prompts(), tables, thinned(scalars(run)), probes(run))


def _sample(row: Mapping[str, Any]) -> Sample:
    """A sample as a row of a study's table: ids as int, texts as str, scores as float or None."""
    texts = {key: str(row[key]) for key in TEXTS}
    scores = {key: row.get(key) for key in COLUMNS if key not in ("prompt_id", *TEXTS)}
    shorn = {k: None if v is None or v != v else float(v) for k, v in scores.items()}
    return cast(Sample, {"prompt_id": int(row["prompt_id"]), **texts, **shorn})


def _fits(records: list[Record]) -> bool:
    """Return True if tables can hold the records: all texts are valid UTF-8, all integers fit in 64 bits."""
    try:
        encode(records)
    except (ValueError, OverflowError, TypeError):  # the base classes of pyarrow's errors
        return False
    return True


def _keep(run: Run, target: Path, samples: int, done: Archived) -> None:
    folder = target / place_of(run)
    before = _samples_of(folder)
    files, common = contents(run, max(samples, before))
    for name, content in common.items():
        if not (target / name).exists():
            _write(target / name, content)
    changed = [name for name, content in files.items() if _bytes(folder / name) != content]
    (done.unchanged if not changed else done.updated if (folder / "manifest.json").exists() else done.added).append(folder)
    for name in sorted(changed, key=lambda name: name == "manifest.json"):  # last, so that half a record is not read as one
        _write(folder / name, files[name])


def contents(run: Run, samples: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a record as kept in an archive, and the files of values that it may share with other records."""
    tables = _tables(run, samples)
    kept = max((len(rows) for rows in tables.values()), default=0)
    parts = {"manifest.json": run.manifest.model_copy(update={"archive": Kept(samples=kept)}).plain()}
    summary = run.summary.plain() if run.summary is not None else None
    parts |= {"summary.json": summary} if summary is not None else {}
    parts |= {"prompts.json": _sorted(prompts.plain())} if (prompts := source_of(run).prompts()) is not None else {}
    common: dict[str, bytes] = {}
    files = {name: _json(_without(value, IN_COMMON[name], common)) for name, value in parts.items()}
    if run.trajectory:
        files["trajectory.jsonl"] = b"".join(_json(_sorted(_row(row.plain(), summary))) for row in run.trajectory)
    if rows := thinned(scalars(run)):
        files["scalars.jsonl"] = b"".join(_json(row.plain()) for row in rows)
    if found := probes(run):
        files["probes.jsonl"] = b"".join(_json(row.plain()) for row in found)
    return files | {f"samples/{of}.parquet": _parquet(rows) for of, rows in tables.items()}, common


def choose(rows: list[Sample], n: int) -> list[Sample]:
    """Select the first response to each of n prompts, ordered by the hash of their text, from each kind in turn."""
    first = {row["prompt_id"]: row for row in reversed(rows)}
    if len(first) == len(rows) <= n:  # from an archive, already selected
        return rows
    kinds: dict[str, list[Sample]] = {}
    for row in sorted(first.values(), key=lambda row: sha256(row["prompt"].encode("utf-8", "surrogatepass")).digest()):
        kinds.setdefault(row["kind"], []).append(row)
    turns = chain(*zip_longest(*(kinds[kind] for kind in sorted(kinds))))
    return [row for row in turns if row is not None][:n]


def _tables(run: Run, samples: int) -> dict[str, list[Sample]]:
    """The samples to keep from before and after training; empty for a run without samples."""
    found = {}
    for of in ("base", "final") if samples else ():
        try:
            found[of] = choose(read(run, of), samples)
        except MissingPrerequisite:
            continue
    return found


def _without(value: dict[str, Any], paths: Iterable[str], common: dict[str, bytes]) -> dict[str, Any]:
    """Replace the values at `paths` by references and add the values to `common`."""
    for path in paths:
        key, _, rest = path.partition(".")
        if rest and isinstance(value.get(key), dict):
            value = value | {key: _without(value[key], [rest], common)}
        elif not rest and isinstance(value.get(key), dict | list):
            common[file_name(digest(value[key]))] = _json(value[key])
            value = value | {key: reference(value[key])}
    return value


def _row(row: dict[str, Any], summary: dict[str, Any] | None) -> dict[str, Any]:
    """An evaluation; if its metrics are also in the summary, the name of that side replaces them."""
    same = next((side for side in ("final", "base") if summary and row["metrics"] == summary[side]), None)
    return row | {"metrics": same} if same else row


def _sorted(value: dict[str, Any]) -> dict[str, Any]:
    """Plain data with its keys in the order of the run's own file, which is canonical JSON."""
    return json.loads(canonical(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    import pandas as pd

    content = BytesIO()
    pd.DataFrame([{k: row[k] for k in COLUMNS if k in row} for row in rows]).to_parquet(content, index=False)
    return content.getvalue()


def _samples_of(folder: Path) -> int:
    """The number of samples that an archive already has of a run; they are not removed."""
    content = _bytes(folder / "manifest.json")
    return int(json.loads(content).get("archive", {}).get("samples", 0)) if content else 0


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); choose another archive") from None
    with writing(path):
        replace(path, content)


def main(words: list[str]) -> int:
    """Run the command: print one line per run added or updated; return 4 if a record was left out."""
    parser = argparse.ArgumentParser(prog="python -m harness.records.archive", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="folders with records")
    parser.add_argument("target", type=Path, metavar="DST", help="the study")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="number of prompts with one kept response [0]")
    parser.add_argument("--folders", action="store_true", help="write one folder per run instead of the tables of a study")
    told = parser.parse_args(words)
    done = (archive if told.folders else write_study)(told.sources, told.target, max(0, told.samples))
    for what, places in (("added", done.added), ("updated", done.updated)):
        print("".join(f"{what}  {escaped(place)}\n" for place in places), end="")
    for problem in done.problems:
        print(escaped(f"warning: {problem.path}: {problem.what}"), file=sys.stderr)
    print(f"{len(done.added)} added, {len(done.updated)} updated, {len(done.unchanged)} unchanged -> {escaped(told.target)}")
    return 4 if done.problems else 0


if __name__ == "__main__":
    script(main)
