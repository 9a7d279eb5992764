"""`harness train-scorer`: from labelled texts to a folder with a scorer, its description and the hashes of its rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.api import BadSetting, Unwritable, hub

from . import card, encoder, linear, measures, rows
from .card import Card, Request, Split, Trained
from .encoder import EncoderSettings
from .linear import LinearSettings
from .rows import Labelled, Source

SETTINGS: dict[str, type[LinearSettings] | type[EncoderSettings]] = {"linear": LinearSettings, "encoder": EncoderSettings}
PACKAGES: dict[str, tuple[str, ...]] = {
    "linear": ("numpy", "scipy", "scikit-learn"),
    "encoder": ("numpy", "torch", "transformers", "tokenizers"),
}


class Asked(NamedTuple):
    """A request for a scorer, as on the command line."""

    source: Source
    settings: LinearSettings | EncoderSettings  # decides the kind
    start: str | None = None  # encoder to fine-tune: a folder or a hub id
    seed: int = 0
    offline: bool = False

    @property
    def kind(self) -> card.Kind:
        """The kind of scorer: linear or encoder."""
        return "linear" if isinstance(self.settings, LinearSettings) else "encoder"


class Hooks(NamedTuple):
    """Where progress is reported: a line, and the share of the training that is done with its loss."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[float, float], None] = lambda share, loss: None


def train(asked: Asked, out: Path, *, fresh: bool = False, hooks: Hooks = Hooks()) -> tuple[Trained, bool]:  # noqa: B008
    """Train a scorer in a folder, or find the one that the same request has trained there: -> it, and whether it was there.

    Raises BadSetting if the folder holds another scorer (without `fresh`) or other files; reading and loading raise theirs.
    """
    asked.source.columns()
    if asked.start is not None and asked.kind == "linear":
        raise BadSetting("a linear scorer starts from nothing; leave out --from, or take --kind encoder")
    if asked.seed and asked.kind == "linear":
        raise BadSetting(f"a linear scorer draws nothing at random; leave out --seed {asked.seed}, or take --kind encoder")
    folder = None if asked.start is None else _start(asked.start)
    found, sha256 = None, rows.data_sha256(asked.source)
    if sha256 is None:
        found = rows.labelled(asked.source, asked.offline)
        sha256 = found.sha256()
    request = _request(asked, sha256, folder)
    if (there := _there(out, request, fresh)) is not None:
        return there, True
    hooks.say("reading the labelled texts")
    found = found or rows.labelled(asked.source, asked.offline)
    _written(out, lambda new: _build(new, request, asked, found, folder, hooks))
    return card.read(out), False


def _start(start: str) -> Path:
    """The folder of the encoder to fine-tune, from the hub if need be; raises MissingPrerequisite."""
    path = Path(start).expanduser()
    if path.is_dir():
        return path
    return hub.snapshot(start, [*hub.TEXT_FILES, "*.safetensors"], None, f"encoder {start!r}", "give a folder: --from FOLDER")


def _request(asked: Asked, sha256: str, folder: Path | None) -> Request:
    source = asked.source
    if rows.is_file(source.data):
        source = source.model_copy(update={"data": Path(source.data).name})
    start = asked.start if folder is None or not Path(str(asked.start)).expanduser().is_dir() else folder.resolve().name
    return Request(
        kind=asked.kind, source=source, data_sha256=sha256, start=start, start_sha256=_folder_sha256(folder), seed=asked.seed,
        settings=asked.settings.model_dump(),
    )  # fmt: skip


def _folder_sha256(folder: Path | None) -> str | None:
    """SHA-256 over the weights, config and tokenizer of a model folder."""
    import hashlib

    if folder is None:
        return None
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model")):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _there(out: Path, request: Request, fresh: bool) -> Trained | None:
    """The scorer in a folder if the same request has trained it; None if there is none, or `fresh` discards it."""
    if not card.is_trained(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadSetting(f"{out} exists and holds no scorer of harness train-scorer; choose another --out")
        return None
    if fresh:
        return None
    found = card.read(out)
    if (other := request.differs(found.card.request)) is not None:
        raise BadSetting(f"{out} holds a scorer of another request ({other}); choose another --out, or --fresh to replace it")
    return found


def _build(new: Path, request: Request, asked: Asked, found: Labelled, folder: Path | None, hooks: Hooks) -> None:
    """Fit, calibrate and measure a scorer, and write all of its files to a folder."""
    split = found.split()
    measures.prior_shift(asked.settings.undesired_share, found.share)  # raises before the training, not after
    hooks.say(", ".join(f"{name} {len(members):,}" for name, members in split.items()) + " texts")
    if isinstance(asked.settings, LinearSettings):
        predicted, training = _linear(new, asked.settings, found, split)
    else:
        predicted, training = _encoder(new, asked.settings, found, split, folder, asked.seed, hooks)
    used = np.concatenate([split["train"], split["validation"]])
    card.write_rows(new, rows.row_hashes(found.texts[i] for i in used))
    written = Card(
        kind=request.kind, request=request, revision=found.revision,
        rows=Split(**{name: len(members) for name, members in split.items()}), left_out=found.left_out,
        test=measures.fit_of(found.undesired[split["test"]], predicted, asked.settings.undesired_share, found.share),
        auc_by_column=_by_column(found, split["test"], predicted), training=training,
        versions={p: version(p) for p in ("unlearning-harness", *PACKAGES[request.kind])}, files=card.file_hashes(new),
    )  # fmt: skip
    (new / card.CARD).write_text(written.model_dump_json(indent=1) + "\n")


def _by_column(found: Labelled, test: NDArray[np.int64], predicted: NDArray) -> dict[str, float | None]:
    """The AUC of the test texts of each column; empty if there is one column."""
    columns, labels = found.columns[test], found.undesired[test]
    names = dict.fromkeys(found.columns.tolist())
    here = {name: columns == name for name in names if len(names) > 1}
    return {name: measures.rounded(measures.auc(labels[of] >= measures.THRESHOLD, predicted[of])) for name, of in here.items()}


def _linear(
    new: Path, settings: LinearSettings, found: Labelled, split: dict[str, NDArray[np.int64]]
) -> tuple[NDArray, dict[str, float]]:
    """Fit a linear model and write it: -> predictions for the test texts [N], facts of the training."""
    texts = {name: [found.texts[i] for i in members] for name, members in split.items()}
    model = linear.train(texts["train"], found.undesired[split["train"]], settings)
    logits = np.array([model.logit(text) for text in texts["validation"]])
    scale, shift = measures.calibration(found.undesired[split["validation"]], logits)
    model = model.calibrated(scale, shift + measures.prior_shift(settings.undesired_share, found.share))
    model.write(new)
    return model.undesired(texts["test"]), {"features": float(sum(len(block.table) for block in model.blocks))}


def _encoder(
    new: Path, settings: EncoderSettings, found: Labelled, split: dict[str, NDArray[np.int64]], folder: Path | None, seed: int,
    hooks: Hooks,
) -> tuple[NDArray, dict[str, float]]:  # fmt: skip
    """Fit an encoder and write it: -> predictions for the test texts [N], facts of the training."""
    import torch

    texts = {name: [found.texts[i] for i in members] for name, members in split.items()}
    labels = {name: found.undesired[members] for name, members in split.items()}
    model = encoder.start(texts["train"], settings, seed, folder)
    validation = (texts["validation"], labels["validation"])
    fitting = encoder.fit(model, texts["train"], labels["train"], validation, settings, seed, folder is None, hooks.progress)
    logits = model.logits(model.ids(texts["validation"]))
    scale, shift = measures.calibration(labels["validation"], logits)
    model.calibrate(scale, shift + measures.prior_shift(settings.undesired_share, found.share))
    model.write(new)
    facts = fitting.plain() | {"threads": float(torch.get_num_threads())}
    return measures.sigmoid(model.logits(model.ids(texts["test"]))), facts


def _written(out: Path, build: Callable[[Path], None]) -> None:
    """Build the files beside a folder and move them in when all are there, the description last; an older scorer goes first."""
    new = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        build(new)
        for name in card.names(out):
            (out / name).unlink(missing_ok=True)
        out.mkdir(exist_ok=True)
        for path in sorted(new.iterdir(), key=lambda p: p.name == card.CARD):
            path.replace(out / path.name)
    except OSError as e:
        raise Unwritable(f"cannot write the scorer to {out} ({e.strerror}); choose another --out") from e
    finally:
        shutil.rmtree(new, ignore_errors=True)
