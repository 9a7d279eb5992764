"""`harness samples`: what a policy said to the held-out prompts, in the terminal, hidden unless asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from math import isnan
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

from . import inside
from .errors import CorruptRecord, EmptySelection, MissingPrerequisite, UnknownName, UsageError
from .listing import locate
from .masking import escaped, lines, mask
from .records import Run

LOW_IS_WORSE = {"reward": True, "judge": True, "kl": False, "nll": False}
SCORES = tuple(LOW_IS_WORSE)


class Wanted(NamedTuple):
    """Which of a run's samples to show, and in what order."""

    n: int = 10
    kind: str | None = None
    prompt: str | None = None  # text that the prompt holds
    search: str | None = None  # text that the response holds
    sort: str | None = None
    best: bool = False
    worst: bool = False
    seed: int = 0  # of the draw, where nothing is sorted


COLUMNS = frozenset({"prompt_id", "kind", "prompt", "response", "reward", "judge"})


def read(run: Run, of: str = "final", columns: Collection[str] = COLUMNS) -> list[dict[str, Any]]:
    """A run's samples, a row a response, with these columns at least.

    Raises MissingPrerequisite where the record has none, CorruptRecord where they cannot be read.
    """
    name = f"samples/{of}.parquet"
    try:
        rows = inside.table(run.dir, name).to_pandas().to_dict("records")
    except FileNotFoundError:
        kept = [p.stem for p in sorted((run.dir / "samples").glob("*.parquet"))]
        what = f"it has {', '.join(kept)}" if kept else "they are not kept in an archive, nor before a run is done"
        raise MissingPrerequisite(f"{run.dir} has no samples {of!r}: {what}") from None
    missing = set(columns) - set(rows[0] if rows else ())
    if missing:
        raise CorruptRecord(f"{run.dir}: {name} is no table of samples: it has no {', '.join(sorted(missing))}")
    return [{str(key): value for key, value in row.items()} for row in rows]


def choose(rows: list[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
    """The rows that are asked for: sorted, what could not be scored last, or drawn at random in the order of the prompts.

    Raises UnknownName, UsageError, MissingPrerequisite for a score that the record does not have, EmptySelection.
    """
    if wanted.best and wanted.worst:
        raise UsageError("--best and --worst are two orders; choose one")
    found = _filtered(rows, wanted)
    key = wanted.sort or ("judge" if wanted.best or wanted.worst else None)
    if key is not None:
        return sorted(found, key=_order(rows, key, wanted.best))[: wanted.n]
    drawn = random.Random(wanted.seed).sample(range(len(found)), min(wanted.n, len(found)))
    return [found[i] for i in sorted(drawn)]


def _filtered(rows: list[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
    kinds = {str(row["kind"]) for row in rows}
    if wanted.kind is not None and wanted.kind not in kinds:
        raise UnknownName("kind of prompt", wanted.kind, kinds)
    found = [row for row in rows if wanted.kind in (None, row["kind"])]
    for column, text in (("prompt", wanted.prompt), ("response", wanted.search)):
        found = [row for row in found if text is None or text.casefold() in row[column].casefold()]
    if not found:
        raise EmptySelection(f"none of {len(rows)} samples is asked for; leave out --kind, --prompt or --search")
    return found


def _order(rows: list[dict[str, Any]], key: str, best: bool) -> Callable[[dict[str, Any]], tuple[bool, float]]:
    if key not in LOW_IS_WORSE:
        raise UnknownName("score to sort by", key, SCORES)
    if key not in rows[0]:
        raise MissingPrerequisite(f"these samples have no {key!r}: they were made before it was kept; run again with --fresh")
    ascending = LOW_IS_WORSE[key] != best

    def order(row: dict[str, Any]) -> tuple[bool, float]:
        value = _score(row, key)
        return value is None, 0.0 if value is None else value if ascending else -value

    return order


def _score(row: dict[str, Any], key: str) -> float | None:
    """A score of a sample; NLL is that a token, in nats, and an empty response has none."""
    value = row.get(key)
    if key == "nll" and value is not None:
        value = value / row["nll_tokens"] if row["nll_tokens"] else None
    return None if value is None or isnan(value) else float(value)


def shown(row: dict[str, Any], unmask: bool) -> dict[str, Any]:
    """A sample as plain data, its texts hidden unless asked for."""
    texts = {name: row[name] if unmask else mask(row[name]) for name in ("prompt", "response")}
    scores = {key: _score(row, key) for key in SCORES if key in row}
    return {"prompt_id": int(row["prompt_id"]), "kind": str(row["kind"]), **texts, **scores}


def text(rows: list[dict[str, Any]], unmask: bool, width: int) -> str:
    """The samples for reading, no longer than the terminal is wide."""
    return "\n\n".join(_sample(shown(row, unmask), width) for row in rows)


def _sample(row: dict[str, Any], width: int) -> str:
    scores = "  ".join(f"{key} {'-' if row[key] is None else format(row[key], '.3f')}" for key in SCORES if key in row)
    found = [f"prompt {row['prompt_id']}, {escaped(row['kind'])}  {scores}"]
    for name in ("prompt", "response"):
        first, *rest = lines(row[name], max(20, width - 12))
        found += [f"  {name:10}{first}", *(" " * 12 + line for line in rest)]
    return "\n".join(line.rstrip() for line in found)


def samples_command(name: str, out: Path, of: str, wanted: Wanted, unmask: bool, as_json: bool) -> int:
    """Show some of a run's samples."""
    run = locate(name, out)
    rows = read(run, of)
    chosen = choose(rows, wanted)
    if as_json:
        found = {"run_id": run.manifest["run_id"], "of": of, "n_samples": len(rows), "unmasked": unmask}
        print(json.dumps(found | {"samples": [shown(row, unmask) for row in chosen]}, allow_nan=False))
        return 0
    note = "" if unmask else "; texts are hidden, --unmask shows them, and they can be offensive"
    print(f"{escaped(run.dir)}, {escaped(of)}: {len(chosen)} of {len(rows)} samples{note}\n")
    print(text(chosen, unmask, get_terminal_size().columns))
    return 0
