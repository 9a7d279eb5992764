"""The tables of a study: their columns, and reading and writing them as files.

runs.parquet           one row per run: its keys, and the rest of its manifest and summary as JSON text
evaluations.parquet    one row per metric of an evaluation: [runs x points x metrics]
prompts.parquet        one row per held-out prompt of a run: the scores of the final policy
samples.parquet        one row per kept response, before (`base`) and after training (`final`)
scalars.parquet        one row per scalar that a method yielded at an update, thinned, float32; absent if no run has any
probes.parquet         one row per probe of a finished policy, as JSON text; absent if no run was probed

`run` is the row of the run in runs.parquet. An empty cell is a key that the record does not have. A study may come from
somebody else: only these files are read, within limits; no value in them names a file, and other columns are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness.core import files
from harness.core.errors import CorruptRecord, one_line

if TYPE_CHECKING:
    import pyarrow

ROWS = 5_000_000
"""Maximum number of rows of a table; the largest today has 22,000."""
STUDY_KEY = b"harness.study"
"""Metadata key of each file: the hash of the records that were written together."""
LEVEL = 19
"""Compression level of zstd: a study is written rarely and read often."""
SCATTERED = ("value", "stderr", "kl", "nll", "nll_per_token")
"""Columns whose values rarely repeat, stored with byte-stream split instead of a dictionary."""


OPTIONAL = ("scalars", "probes")
"""Tables that are written only if a run has rows for them."""


class Column(NamedTuple):
    """A column of a table: its name, its type, and True if every row has a value."""

    name: str
    kind: Literal["int", "float", "text"]
    filled: bool = False


def _columns(filled: str, texts: str = "", floats: str = "", ints: str = "", order: str = "") -> tuple[Column, ...]:
    kinds: dict[str, Literal["int", "float", "text"]] = {name: "text" for name in texts.split()}
    kinds.update(dict.fromkeys(floats.split(), "float"))
    kinds.update(dict.fromkeys(ints.split(), "int"))
    return tuple(Column(name, kinds[name], name in filled.split()) for name in order.split())


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "runs": _columns(
        filled="run run_id preset task method seed status manifest identity",
        texts="run_id preset task method status manifest identity settings provenance files summary frontier prompts",
        ints="run seed base_point final_point",
        order="run run_id preset task method seed status manifest identity settings provenance files summary frontier "
        "base_point final_point prompts",
    ),
    "evaluations": _columns(
        filled="run point",
        texts="split cost other metric reason exact",
        floats="seconds value stderr",
        ints="run point update n n_unscored",
        order="run point update split seconds cost other metric value stderr n n_unscored reason exact",
    ),
    "prompts": _columns(
        filled="run id kind n_scored",
        texts="id kind",
        floats="reward judge kl nll_per_token",
        ints="run n_scored",
        order="run id kind reward judge kl nll_per_token n_scored",
    ),
    "samples": _columns(
        filled="run of prompt_id kind prompt response",
        texts="of kind prompt response",
        floats="reward judge kl nll nll_tokens",
        ints="run prompt_id",
        order="run of prompt_id kind prompt response reward judge kl nll nll_tokens",
    ),
    "scalars": _columns(
        filled="run update name", texts="name", floats="value", ints="run update", order="run update name value"
    ),
    "probes": _columns(filled="run result", texts="result", ints="run", order="run result"),
}


def is_study(folder: Path) -> bool:
    """Return True if a folder holds the tables of a study."""
    return os.path.lexists(folder / "runs.parquet")


def study_above(path: Path) -> Path | None:
    """The study that contains the record named by a path; None if the path exists or there is no study above it."""
    if os.path.lexists(path):
        return None
    return next((above for above in path.parents if is_study(above)), None)


def _empty(name: str) -> pyarrow.Table:
    import pyarrow

    return pyarrow.table({c.name: pyarrow.array([], pyarrow.string() if c.kind == "text" else None) for c in COLUMNS[name]})


def read(dir: Path, name: str) -> tuple[pyarrow.Table, str | None]:
    """Read a table of a study, and the hash of the records that it was written with; raises CorruptRecord if it is broken.

    An absent optional table is read as empty, with None for its hash.
    """
    file, wanted = f"{name}.parquet", COLUMNS[name]
    try:
        found = files.table(dir, file, [c.name for c in wanted], ROWS, "copy the study again")
        found.validate(full=True)
    except FileNotFoundError:
        if name in OPTIONAL:
            return _empty(name), None
        raise CorruptRecord(f"{dir}: {file} is missing; a study is copied with all its tables") from None
    except ValueError as error:  # pyarrow's, of text that is not UTF-8 for instance
        raise CorruptRecord(f"{dir}: {file} cannot be read ({one_line(error)}); copy the study again") from None
    for column in wanted:
        _check(found, column, f"{dir}: {file}")
    written_with = (found.schema.metadata or {}).get(STUDY_KEY, b"").decode("ascii", "replace")
    return found.select([c.name for c in wanted]), written_with


def _check(table: pyarrow.Table, column: Column, where: str) -> None:
    """Raise CorruptRecord if a column is missing, has another type, or lacks a required value."""
    import pyarrow.compute as c
    from pyarrow import types

    if column.name not in table.column_names:
        raise CorruptRecord(f"{where} has no column {column.name!r}; it is not a table of a study of this package")
    values = table[column.name]
    is_kind = {
        "int": types.is_integer(values.type),
        "float": types.is_floating(values.type),
        "text": types.is_string(values.type) or types.is_large_string(values.type),
    }
    if not is_kind[column.kind] and not types.is_null(values.type):
        raise CorruptRecord(
            f"{where} has {values.type} in column {column.name!r}, expected {column.kind}; copy the study again"
        )
    if column.filled and values.null_count:
        raise CorruptRecord(f"{where} has rows without {column.name!r}; copy the study again")
    if column.kind == "float" and not c.all(c.is_finite(values)).as_py() and values.null_count < len(values):
        raise CorruptRecord(f"{where} has a number that is not finite in column {column.name!r}; copy the study again")


def content(name: str, columns: Mapping[str, list[Any]], narrow: bool, written_with: str) -> bytes:
    """Encode a table as Parquet from its columns; `narrow` stores the six-digit scores of prompts as float32."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"int": pyarrow.int64(), "text": pyarrow.string(), "float": pyarrow.float64()}
    if name == "scalars" or (narrow and name == "prompts"):
        kinds["float"] = pyarrow.float32()
    schema = pyarrow.schema([(c.name, kinds[c.kind]) for c in COLUMNS[name]], metadata={STUDY_KEY: written_with.encode()})
    table = pyarrow.table({c.name: columns[c.name] for c in COLUMNS[name]}, schema=schema)
    scattered = [c.name for c in COLUMNS[name] if c.name in SCATTERED]
    target = BytesIO()
    parquet.write_table(
        table, target, compression="zstd", compression_level=LEVEL,
        use_dictionary=[c.name for c in COLUMNS[name] if c.name not in SCATTERED],
        column_encoding={name: "BYTE_STREAM_SPLIT" for name in scattered},
    )  # fmt: skip
    return target.getvalue()
