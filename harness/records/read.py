"""Read records of runs from disk: strict JSON to models; unreadable records are reported, never skipped silently."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import files as inside
from harness.core.errors import CorruptRecord, EmptySelection, UnknownName, UsageError
from harness.core.hashing import canonical, content_hash

from .dedup import FOLDER, put_back
from .schema import (
    FINISHED,
    Evaluation,
    Manifest,
    Model,
    ProbeReading,
    ProbeResult,
    Problem,
    Prompts,
    Run,
    Scalars,
    Source,
    Summary,
    check_version,
    parsed,
)  # fmt: skip
from .tables.layout import is_study, study_above

if TYPE_CHECKING:
    import pyarrow

    from .tables.decode import TableRecord, Tables

MOST_READINGS = 1000  # of a probe
BELOW_A_LINK = 3  # depth of folders searched below a link: task, method, run below a preset


def read_run(dir: Path) -> Run:
    """Read the record in a folder or of that name in a study; raises CorruptRecord if it is missing, broken or too new."""
    dir = Path(dir)
    if (study := study_above(dir)) is not None:
        return _from_study(dir, study)
    manifest = read_manifest(dir)
    status, kept = manifest.status, _summary(dir, manifest, required=manifest.status in FINISHED)
    summary, same = kept if kept is not None else (None, {})
    return Run(dir, manifest, summary, _trajectory(dir, status, same))


def read_manifest(dir: Path) -> Manifest:
    """Read the manifest in a folder; raises CorruptRecord if it is missing, broken or newer than this package."""
    return parsed(Manifest, _object(dir, "manifest.json"), dir, "manifest.json")


class Folder:
    """The parts of a record in a folder of its own."""

    def __init__(self, dir: Path) -> None:
        self.dir = self.home = dir

    def prompts(self) -> Prompts | None:
        """Read prompts.json, None if the record has none; raises CorruptRecord if it is broken."""
        if not os.path.lexists(self.dir / "prompts.json"):
            return None
        return parsed(Prompts, _object(self.dir, "prompts.json"), self.dir, "prompts.json")

    def scalars(self) -> list[Scalars]:
        """The rows of scalars.jsonl, none in an older record; an unfinished last line is ignored."""
        return self._lines("scalars.jsonl", Scalars)

    def probes(self) -> list[ProbeResult]:
        """The lines of probes.jsonl, none if the policy was not probed."""
        return self._lines("probes.jsonl", ProbeResult)

    def _lines(self, file: str, model: type[Model]) -> list[Model]:
        if not os.path.lexists(self.dir / file):
            return []
        lines = _text(self.dir, file, inside.TABLE_BYTES).split("\n")[:-1]
        names = [f"{file} line {i}" for i in range(1, len(lines) + 1)]
        return [parsed(model, _parse(line, self.dir, name), self.dir, name) for line, name in zip(lines, names, strict=True)]

    def table(self, name: str, columns: Collection[str] | None = None) -> pyarrow.Table:
        """Read a Parquet file of the record; raises FileNotFoundError or CorruptRecord."""
        return inside.table(self.dir, name, columns)

    def names(self) -> list[str]:
        """The relative paths of all files in the folder, links included."""
        found = []
        for folder, below, files in os.walk(self.dir):
            links = [name for name in below if os.path.islink(os.path.join(folder, name))]
            found += [Path(folder, name).relative_to(self.dir).as_posix() for name in [*files, *links]]
        return sorted(found)

    def hash(self, name: str) -> str:
        """The content hash of a file; raises OSError, ValueError or CorruptRecord if it cannot be read."""
        return content_hash(inside.regular(self.dir, name, inside.WEIGHTS_BYTES))


def source_of(run: Run) -> Source:
    """The source of the parts of a record that are read on demand."""
    return run.source or Folder(run.dir)


def prompt_scores(of: Run | Path) -> Prompts | None:
    """The scores of each prompt of a run; None in an older record without them; raises CorruptRecord if they are broken."""
    source = source_of(of) if isinstance(of, Run) else Folder(Path(of))
    found = source.prompts()
    if found is not None:
        columns: list[list[Any]] = [found.id, found.kind, found.n_scored, *found.values.values()]
        lengths = set(map(len, columns))
        if len(lengths) > 1:
            raise CorruptRecord(f"{source.dir}: prompts.json has columns of different lengths: {sorted(lengths)}")
    return found


def scalars(run: Run) -> list[Scalars]:
    """The scalars that the method yielded at each recorded update, empty if none; raises CorruptRecord if they are broken."""
    return source_of(run).scalars()


def probes(run: Run) -> list[ProbeResult]:
    """What probes of the finished policy found, empty if there were none.

    Raises CorruptRecord if they are broken: scores outside 0 to 1, or a number that its readings do not give.
    """
    results = source_of(run).probes()
    for i, result in enumerate(results, 1):
        if wrong := impossible(result):
            raise CorruptRecord(f"{run.dir}: probes.jsonl line {i} {wrong}")
    return results


def impossible(result: ProbeResult) -> str | None:
    """What cannot be in a result of a probe, None if nothing is."""
    judge = [reading.metrics["judge"].value for reading in result.readings if "judge" in reading.metrics]
    if len(result.readings) > MOST_READINGS:
        return f"has {len(result.readings)} readings; expected at most {MOST_READINGS}"
    for score in judge:
        if score is not None and not -1e-6 <= score <= 1 + 1e-6:
            return f"has a judge score of {score:g}; expected 0 to 1"
    made, kept = probe_number(result.number, result.readings), result.value
    same = made is kept is None or (made is not None and kept is not None and math.isclose(made, kept, abs_tol=1e-6))
    return None if same else f"has the number {kept}; expected {made}, that of its readings"


def probe_number(how: str, readings: Sequence[ProbeReading]) -> float | None:
    """The judge over the readings: the lowest, or the mean over the range of their points, which must rise.

    None if a reading has none.
    """
    judge = [(reading.at, reading.metrics["judge"].value) for reading in readings if "judge" in reading.metrics]
    points = [(at, float(value)) for at, value in judge if value is not None]
    if not points or len(points) < len(readings):
        return None
    if how == "worst" or len(points) == 1:
        return min(value for _, value in points)
    if not all(a < b for (a, _), (b, _) in pairwise(points)):
        return None
    area = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def find_runs(
    dirs: Iterable[Path], read: Callable[[Path], Run] | None = None, kept: Callable[[Run], Run] | None = None
) -> tuple[list[Run], list[Problem]]:
    """Read all records below some folders in a fixed order, and list the problems of those that cannot be read.

    A study is read like a folder of records, also through a path to one of its records. `read` reads a record in a folder
    of its own, in place of `read_run`; `kept` is what is kept of each record once it is read.
    """
    dirs = [Path(dir) for dir in dirs]
    found: dict[Path, Run] = {}
    problems: list[Problem] = []
    for folder, run in _study_runs(dirs, problems, kept):
        found[folder] = run
    parents: dict[Path, Path] = {}  # resolved once for the many records in them
    for folder in _record_folders([dir for dir in dirs if study_above(dir) is None], problems):
        if folder.parent not in parents:
            parents[folder.parent] = folder.parent.resolve()
        real = folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else parents[folder.parent] / folder.name
        try:
            run = (read or read_run)(folder)
            found[real] = kept(run) if kept else run
        except CorruptRecord as error:
            problems.append(Problem(folder, str(error).removeprefix(f"{folder}: ")))
    runs = sorted(found.values(), key=_order)
    return runs, sorted({*problems, *_doubles(runs)})


def holds_records(name: str) -> bool:
    """Return True if a name is a folder or a path to records within a study."""
    if os.path.isdir(name):
        return True
    study = study_above(Path(name))
    return study is not None and bool(_study_runs([Path(name)], []))


def _study_runs(dirs: list[Path], problems: list[Problem], kept: Callable[[Run], Run] | None = None) -> list[tuple[Path, Run]]:
    """The runs of the studies that the paths name or point into, each study read once; adds to `problems`."""
    wanted: dict[Path, list[Path]] = {}
    for dir in dirs:
        study = dir if is_study(dir) else study_above(dir)
        if study is not None:
            wanted.setdefault(study, []).append(dir)
    found = []
    for study, paths in wanted.items():
        tables = _opened(study, problems)
        records = tables.records() if tables is not None else []
        chosen = [r for r in records if any(r.dir.is_relative_to(path) for path in paths)]
        for path in paths if tables is not None else ():
            if not any(r.dir.is_relative_to(path) for r in records):
                problems.append(Problem(path, f"the study {study} has no record of that name"))
        taken: set[Path] = set()
        for record in chosen:
            try:
                run = _from_tables(record)
                found.append((record.dir.resolve(), kept(run) if kept else run))
            except CorruptRecord as error:
                problems.append(Problem(record.dir, str(error).removeprefix(f"{record.dir}: ")))
            if record.dir in taken:
                problems.append(Problem(record.dir, "the study has this record twice; the later one is shown"))
            taken.add(record.dir)
    return found


def _opened(study: Path, problems: list[Problem]) -> Tables | None:
    from .tables.decode import Tables

    try:
        tables = Tables(study)
        for name in ("evaluations", "prompts", "samples", "scalars", "probes"):
            tables.check(name)
    except CorruptRecord as error:
        problems.append(Problem(study, str(error).removeprefix(f"{study}: ")))
        return None
    return tables


def _from_study(dir: Path, study: Path) -> Run:
    """Read the record of a name in a study; raises CorruptRecord if it is missing or broken."""
    from .tables.decode import Tables

    record = next((record for record in Tables(study).records() if record.dir == dir), None)
    if record is None:
        raise CorruptRecord(f"{dir}: the study {study} has no record of that name")
    return _from_tables(record)


def _from_tables(record: TableRecord) -> Run:
    """Read a record of a study with the checks of a record in a folder; raises CorruptRecord if one fails."""
    dir, found = record.dir, record.manifest()
    check_version(found, dir, "manifest.json")
    manifest = parsed(Manifest, found, dir, "manifest.json")
    kept = record.summary()
    if kept is None and manifest.status in FINISHED:
        raise CorruptRecord(f"{dir}: summary.json is missing")
    summary = _checked_summary(kept, manifest, dir) if kept is not None else None
    return Run(dir, manifest, summary, _evaluations(record.trajectory(), dir), record)


def cell(run: Run) -> str:
    """A key that is equal for two records exactly if they are of the same cell."""
    m = run.manifest
    return canonical([m.preset, m.task, m.method, m.seed, m.identity])


def _order(run: Run) -> tuple:
    m = run.manifest
    return m.preset, m.task, m.method, m.seed, m.run_id, str(run.dir)


def _doubles(runs: list[Run]) -> list[Problem]:
    first: dict[str, Run] = {}
    problems = []
    for run in runs:
        other = first.setdefault(cell(run), run)
        if other is not run:
            where = "/".join(other.dir.parts[-4:]).lstrip("/")
            problems.append(Problem(run.dir, f"a second record of the cell of {where}; both are shown, the seed counts once"))
    return problems


def _record_folders(dirs: Iterable[Path], problems: list[Problem]) -> list[Path]:
    """The folders that hold a complete or partial record; archives and studies below `dirs` are skipped unless named."""

    folders: list[Path] = []

    def unreadable(error: OSError) -> None:
        path = Path(str(error.filename))
        run = next((folder for folder in reversed(folders) if path.is_relative_to(folder)), path)
        what = "the folder" if run == path else f"its folder {path.relative_to(run)}"
        problems.append(Problem(run, f"{what} cannot be read: {error.strerror}"))

    for top in dirs:
        room: dict[str, int] = {}  # remaining depth to search below a linked folder
        linked = {os.path.realpath(top)}
        for folder, below, files in os.walk(top, onerror=unreadable, followlinks=True):
            holds = bool({"manifest.json", "summary.json", "trajectory.jsonl"} & set(files))
            below[:] = sorted(name for name in below if _goes_on(os.path.join(folder, name), holds, room, linked))
            if holds:
                folders.append(Path(folder))
    return folders


def _goes_on(folder: str, in_record: bool, room: dict[str, int], linked: set[str]) -> bool:
    """Return True if a folder is to be searched: a linked one only to the depth of a run, and never in a loop."""
    if os.path.isdir(os.path.join(folder, FOLDER)) or is_study(Path(folder)):
        return False
    left = room.get(os.path.dirname(folder), -1)
    if os.path.islink(folder):
        real = os.path.realpath(folder)
        if in_record or any(Path(other).is_relative_to(real) for other in linked):
            return False
        linked.add(real)
        left = left if left >= 0 else BELOW_A_LINK + 1
    if left >= 0:
        room[folder] = left - 1
    return left != 0


def _summary(dir: Path, manifest: Manifest, required: bool) -> tuple[Summary, dict[str, Any]] | None:
    """The summary and its metrics as plain data by side, None if there is none; raises CorruptRecord."""
    if not required and not os.path.lexists(dir / "summary.json"):
        return None
    found = _object(dir, "summary.json")
    summary = _checked_summary(found, manifest, dir)
    return summary, {side: found[side] for side in ("base", "final")}


def _checked_summary(found: Any, manifest: Manifest, dir: Path) -> Summary:
    """A summary from plain data; raises CorruptRecord if it is invalid or of another run than the manifest."""
    check_version(found, dir, "summary.json")
    summary = parsed(Summary, found, dir, "summary.json")
    for key in ("run_id", "preset", "task", "method", "seed"):
        if getattr(summary, key) not in (None, getattr(manifest, key)):
            raise CorruptRecord(f"{dir}: summary.json and manifest.json differ in {key!r}; they are of different runs")
    return summary


def _trajectory(dir: Path, status: str, same: dict[str, Any]) -> list[Evaluation]:
    """The evaluations of a run; `same` has the metrics that an archive keeps in the summary alone."""
    if status not in FINISHED and not os.path.lexists(dir / "trajectory.jsonl"):
        return []
    *lines, rest = _text(dir, "trajectory.jsonl").split("\n")
    if rest and status != "running":  # only a running process may leave an unfinished line
        raise CorruptRecord(f"{dir}: trajectory.jsonl is truncated: its last line has no end")
    rows = [_parse(line, dir, f"trajectory.jsonl line {i}") for i, line in enumerate(lines, 1)]
    for row in rows:
        if same and isinstance(row, dict) and row.get("metrics") in ("base", "final"):  # in an archive
            row["metrics"] = same[row["metrics"]]
    return _evaluations(rows, dir)


def _evaluations(rows: list[Any], dir: Path) -> list[Evaluation]:
    return [parsed(Evaluation, row, dir, f"trajectory.jsonl line {i}") for i, row in enumerate(rows, 1)]


def _object(dir: Path, name: str) -> dict[str, Any]:
    """Read a JSON object with its shared values put back; raises CorruptRecord if it is invalid or too new."""
    text = _text(dir, name)
    value = _parse(text, dir, name)
    check_version(value, dir, name)
    return put_back(value, dir) if '"shared"' in text else value


def _text(dir: Path, name: str, limit: int = inside.JSON_BYTES) -> str:
    try:
        return inside.read(dir, name, limit).decode()
    except FileNotFoundError:
        raise CorruptRecord(f"{dir}: {name} is missing") from None
    except OSError as error:
        raise CorruptRecord(f"{dir}: {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CorruptRecord(f"{dir}: {name} is not UTF-8 text") from None


def _parse(text: str, dir: Path, name: str) -> Any:
    try:
        return inside.strict_json(text)
    except ValueError as error:
        raise CorruptRecord(f"{dir}: {name} is not strict JSON, or is cut off: {error}") from None


def locate(name: str, out: Path) -> Run:
    """Find a run by its folder, its id, or a unique prefix of its id.

    Raises UnknownName if no run matches, UsageError if several do, EmptySelection if `out` has no runs, CorruptRecord.
    """
    if os.path.isdir(name) or study_above(Path(name)) is not None:
        return read_run(Path(name))
    found, _ = find_runs([out], kept=_named_alone) if holds_records(str(out)) else ([], [])
    if not found:
        raise EmptySelection(f"no folder {name}, and no runs in {out}; see harness list runs --out DIR")
    match = by_id(name, found)
    if match is None:
        raise UnknownName("run", name, [run.dir.name for run in found], "harness list runs")
    return read_run(match.dir)


def _named_alone(run: Run) -> Run:
    """A record without anything but what tells which it is: of many only one is wanted whole."""
    m = run.manifest
    names = {name: getattr(m, name) for name in ("schema_version", "run_id", "status", "preset", "task", "method", "seed")}
    return Run(run.dir, Manifest(**names, identity={"of": cell(run)}), None, [], None)


def by_id(name: str, runs: list[Run]) -> Run | None:
    """The run of an id or of a unique prefix of its id, None if there is none; raises UsageError if several match."""
    exact = [run for run in runs if name in (run.dir.name, run.manifest.run_id)]
    matches = exact or [run for run in runs if run.dir.name.startswith(name)]
    if len(matches) > 1:
        raise UsageError(
            f"{name!r} matches {len(matches)} runs: {', '.join(str(run.dir) for run in matches)}; give the folder of one"
        )
    return matches[0] if matches else None


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run; empty if its record has none."""
    return run.manifest.settings or (run.summary and run.summary.settings) or {}


def as_table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
