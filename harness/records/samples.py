"""Selection of recorded responses for `harness samples`; their texts are masked unless requested."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from math import isnan
from typing import Any, NamedTuple, cast

from harness.core.errors import CorruptRecord, EmptySelection, MissingPrerequisite, UnknownName, UsageError
from harness.core.text import count, mask

from .read import source_of
from .schema import PaperSample, Run, Sample, wrong_columns

LOW_IS_WORSE = {"reward": True, "judge": True, "kl": False, "nll": False}
SCORES = tuple(LOW_IS_WORSE)


class Wanted(NamedTuple):
    """The samples of a run to show, and their order."""

    n: int = 10
    kind: str | None = None
    prompt: str | None = None  # only prompts that contain it
    search: str | None = None  # only responses that contain it
    sort: str | None = None
    best: bool = False
    worst: bool = False
    seed: int = 0  # of the random selection, if unsorted


def read(run: Run, of: str = "final") -> list[Sample]:
    """Read the samples of a run, one row per response, before (`base`) or after training (`final`).

    Raises MissingPrerequisite if the record has none, CorruptRecord if they cannot be read.
    """
    return cast(list[Sample], _rows(run, of, Sample))


def read_papers(run: Run, of: str = "final") -> list[PaperSample]:
    """Read the responses under the papers' decodings, one row per response; raises the errors of `read`."""
    return cast(list[PaperSample], _rows(run, f"{of}-papers", PaperSample))


def _rows(run: Run, of: str, kind: Any) -> list[dict[str, Any]]:
    name, source = f"samples/{of}.parquet", source_of(run)
    try:
        table = source.table(name)
    except FileNotFoundError:
        kept = [name[8:-8] for name in source.names() if re.fullmatch(r"samples/[^/]+\.parquet", name)]
        what = f"it has {', '.join(kept)}" if kept else "they are not kept in an archive, and written only when a run is done"
        raise MissingPrerequisite(f"{run.dir} has no samples {of!r}: {what}") from None
    wrong = wrong_columns(kind, table.schema) if table.num_rows else "it has no rows"
    if wrong:
        raise CorruptRecord(f"{run.dir}: {name} is not a table of samples: {wrong}")
    return [{str(key): value for key, value in row.items()} for row in table.to_pandas().to_dict("records")]


def choose(rows: list[Sample], wanted: Wanted) -> list[Sample]:
    """Select rows: sorted with unscored ones last, or drawn at random and kept in the order of the prompts.

    Raises UnknownName, UsageError, EmptySelection if no row matches, MissingPrerequisite if the record lacks the score.
    """
    if wanted.best and wanted.worst:
        raise UsageError("--best and --worst exclude each other; give one of them")
    found = _filtered(rows, wanted)
    key = wanted.sort or ("judge" if wanted.best or wanted.worst else None)
    if key is not None:
        return sorted(found, key=_order(rows, key, wanted.best))[: wanted.n]
    drawn = random.Random(wanted.seed).sample(range(len(found)), min(wanted.n, len(found)))
    return [found[i] for i in sorted(drawn)]


def _filtered(rows: list[Sample], wanted: Wanted) -> list[Sample]:
    kinds = {str(row["kind"]) for row in rows}
    if wanted.kind is not None and wanted.kind not in kinds:
        raise UnknownName("kind of prompt", wanted.kind, kinds)
    found = [row for row in rows if wanted.kind in (None, row["kind"])]
    if (text := wanted.prompt) is not None:
        found = [row for row in found if text.casefold() in row["prompt"].casefold()]
    if (text := wanted.search) is not None:
        found = [row for row in found if text.casefold() in row["response"].casefold()]
    if not found:
        of = count(len(rows), "sample")
        raise EmptySelection(f"none of {of} matches these filters; leave out --kind, --prompt or --search")
    return found


def _order(rows: list[Sample], key: str, best: bool) -> Callable[[Sample], tuple[bool, float]]:
    if key not in LOW_IS_WORSE:
        raise UnknownName("score to sort by", key, SCORES)
    if key not in rows[0]:
        raise MissingPrerequisite(f"these samples have no {key!r}: the record is older than this score; run again with --fresh")
    ascending = LOW_IS_WORSE[key] != best

    def order(row: Sample) -> tuple[bool, float]:
        value = _score(row, key)
        return value is None, 0.0 if value is None else value if ascending else -value

    return order


def _score(row: Sample, key: str) -> float | None:
    """A score of a sample, None if missing; NLL is in nats per token, and None for an empty response."""
    value: float | None = row.get(key)  # type: ignore[assignment]
    if key == "nll" and value is not None:
        value = value / tokens if (tokens := row["nll_tokens"]) else None
    return None if value is None or isnan(value) else float(value)


def shown(row: Sample, unmask: bool) -> dict[str, Any]:
    """A sample as plain data, its texts masked unless `unmask` is true."""
    texts = {"prompt": row["prompt"], "response": row["response"]}
    texts = texts if unmask else {name: mask(text) for name, text in texts.items()}
    scores = {key: _score(row, key) for key in SCORES if key in row}
    return {"prompt_id": int(row["prompt_id"]), "kind": str(row["kind"]), **texts, **scores}
