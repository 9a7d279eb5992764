"""`harness train-scorer`: a scorer from labelled texts. Nothing heavy is imported at the top, since `main` imports this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.core.text import escaped_lines

from .result import local

OF_THE_HUB = ("split", "config", "revision")  # settings of a data set on the hub, beside those of the kind


def train_scorer(
    data: Annotated[str, typer.Option(metavar="FILE|ID", help="labelled texts: a file as for --prompts, or a hub id")],
    text: Annotated[list[str], typer.Option(metavar="COLUMN", help="column of texts, repeatable: continuation.text")],
    score: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="column of the scores of these texts, in [0, 1]: continuation.toxicity")
    ],
    kind: Annotated[str, typer.Option(help="kind: linear (words and character n-grams) or encoder (a transformer)")],
    out: Annotated[Path, typer.Option(help="folder of the scorer", callback=local)],
    start: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="encoder to fine-tune, a folder or a hub id [from scratch]")
    ] = None,
    higher_is: Annotated[str, typer.Option(metavar="worse|better", help="meaning of a high score in the data")] = "worse",
    seed: Annotated[int, typer.Option(min=0, help="random seed of the training of an encoder")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="setting of the kind, repeatable: epochs=4; of a hub data set: split=test"
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="discard the scorer in the folder and train again")] = False,
    offline: Annotated[bool, typer.Option(help="use local files and caches only")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="scorer.json as one JSON object on the last line of stdout")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="full tracebacks of errors")] = False,
) -> None:
    """Train a scorer on labelled texts and measure it on held-out ones; use it with --set task.reward=DIR or task.judge=DIR.

    The same command again finds the scorer. A judge must be of another kind than the reward, and trained on other texts.
    """
    source: dict[str, Any] = {"data": data, "text": text, "score": score, "higher_is": higher_is}
    _command(source, kind, start, out, seed, settings or [], fresh=fresh, offline=offline, as_json=as_json)


def _command(
    source: dict[str, Any], kind: str, start: str | None, out: Path, seed: int, overrides: Sequence[str],
    *, fresh: bool, offline: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a scorer, or find the one of the same command, and print how it does on held-out texts."""
    from harness.core.errors import Interrupted, UnknownKind
    from harness.core.settings import check_seed, checked, parse_override
    from harness.runs.progress import loading

    progress = loading(f"{kind} scorer from {source['data']}")
    from harness.core.hub import hub_offline
    from harness.tasks.labels import rows, train

    settings = train.SETTINGS.get(kind)
    if settings is None:
        raise UnknownKind("cannot train", kind, train.SETTINGS)
    given = dict(map(parse_override, overrides))
    source |= {name: given.pop(name) for name in OF_THE_HUB if name in given}
    asked = train.Asked(checked(rows.Source, source), checked(settings, given, kind), start, check_seed(seed), offline)
    hooks = train.Hooks(progress.say, lambda share, loss: progress.at(share, {"loss": f"{loss:.3f}"}))
    progress.start(f"{kind} scorer")
    try:
        with hub_offline(offline):
            found, there = train.train(asked, out, fresh=fresh, hooks=hooks)
    except KeyboardInterrupt:  # a scorer is written whole at the end
        raise Interrupted("interrupted; nothing was written; the same command begins anew") from None
    finally:
        progress.stop()
    progress.say(f"already trained: {out} (--fresh trains it again)" if there else f"trained: {out}")
    print(json.dumps(found.card.model_dump()) if as_json else escaped_lines(shown(out, found)))


def shown(out: Path, found: Any) -> str:
    """The description of a trained scorer as text."""
    card, test = found.card, found.card.test
    sizes = ", ".join(f"{n:,} {name}" for name, n in card.rows.model_dump().items())
    left = "".join(f"; {n:,} rows with {why} left out" for why, n in card.left_out.items())
    columns = "".join(f", {_number(auc)} in {column}" for column, auc in card.auc_by_column.items())
    return "\n".join(
        [
            f"{card.kind} scorer of {card.request.source.data}, seed {card.request.seed}",
            f"texts        {sizes}, of which {test.undesired:,} undesired{left}",
            f"AUC          {_number(test.auc)}{columns}",
            f"Spearman     {_number(test.spearman)}",
            f"calibration  {test.ece:.3f} expected error{_where(card.request.settings.get('undesired_share'))}",
            "",
            "prediction      texts   mean prediction   mean label",
            *(
                f"{b.low:.1f} to {b.high:.1f} {b.n:12,} {_number(b.predicted):>17} {_number(b.label):>12}"
                for b in test.reliability
            ),
            "",
            f"sha256       {found.sha256}",
            f"use          --set task.reward={out} or --set task.judge={out}",
        ]
    )


def _where(share: float | None) -> str:
    return "" if share is None else f", where {share:.0%} of the texts are undesired"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
