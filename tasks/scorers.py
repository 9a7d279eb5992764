"""Scorers that a task may take as its reward or its judge: in [0, 1], higher is better, NaN where one could not score."""

from __future__ import annotations

import hashlib
import logging
import re
from importlib.metadata import version
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadData, BadSetting, MissingPrerequisite, UnknownName, one_line

log = logging.getLogger(__name__)


class DetoxifyScorer:
    """1 - toxicity of the response alone, by Detoxify (Hanu and Unitary team 2020) from a local checkpoint.

    A checkpoint is a pickle, which can run any code when it is read. So its sha256 is checked first, against the one
    given or against the digits at the end of its name (`toxic_original-c1212f89.ckpt`); then it is read as tensors
    and plain data only, and Detoxify, which would unpickle anything, gets a copy of that. A checkpoint with other
    objects in it is unpickled only where its whole sha256 was given.

    config     a folder with the config and the tokenizer of the checkpoint's base model; without it they come from
               the hub or its cache, by the name in the checkpoint
    column     the class that counts, as Detoxify names it
    """

    def __init__(
        self,
        checkpoint: str | Path,
        config: str | Path | None = None,
        sha256: str | None = None,
        *,
        batch_size: int = 32,
        column: str = "toxicity",
        device: str = "cpu",
    ) -> None:
        self.batch_size, self.column = batch_size, column
        checkpoint, config = Path(checkpoint), None if config is None else Path(config)
        with _open(checkpoint, config) as file:
            digest = _check_hash(file, checkpoint, sha256)
            saved = _read(file, checkpoint, digest, trusted=sha256 is not None)
        base = config or _base_model(str(saved["config"]["arch"]["args"].get("model_type")), checkpoint)
        self._detoxify = _build(saved, checkpoint, base, device)
        if column not in self._detoxify.class_names:
            raise UnknownName("class of the checkpoint", column, self._detoxify.class_names)
        self.identity: dict[str, Any] = {
            "name": "detoxify",
            "version": version("detoxify"),
            "sha256": digest,
            "base_sha256": _digest(base),
            "column": column,
        }

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """1 - toxicity of each response: -> [N] float64. An empty response is scored as the empty text, like any other."""
        starts = range(0, len(responses), self.batch_size)
        return np.concatenate([np.empty(0), *(self._score(responses[i : i + self.batch_size]) for i in starts)])

    def _score(self, texts: list[str]) -> NDArray:
        try:
            # Detoxify gives a number for a list of one
            return 1.0 - np.atleast_1d(self._detoxify.predict(texts)[self.column])
        except Exception as e:  # the tokenizer and the model raise a dozen kinds; one bad text must not cost a run
            if len(texts) == 1:
                log.warning(
                    "Detoxify could not score a text of %d characters: %s: %s", len(texts[0]), type(e).__name__, one_line(e)
                )
                return np.array([np.nan])
        return np.concatenate([self._score([text]) for text in texts])


def _open(checkpoint: Path, config: Path | None) -> BufferedReader:
    if config and not (config / "config.json").is_file():
        raise MissingPrerequisite(
            f"no config.json in {config}; expected the folder with the config and the tokenizer of the checkpoint's base model"
        )
    try:
        return checkpoint.open("rb")
    except OSError as e:
        raise MissingPrerequisite(
            f"cannot read the Detoxify checkpoint {checkpoint} ({e.strerror}); "
            f"download one from the releases of github.com/unitaryai/detoxify"
        ) from e


def _check_hash(file: BufferedReader, checkpoint: Path, pinned: str | None) -> str:
    """The sha256 of the open file, which is the one expected; the same file is read after, so it cannot change between."""
    if pinned is not None and not re.fullmatch("[0-9a-fA-F]{64}", pinned):
        raise BadSetting(f"sha256 is {pinned!r}; expected 64 hexadecimal digits, as `sha256sum {checkpoint}` prints them")
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    in_name = re.search(r"-([0-9a-f]{8})\.\w+$", checkpoint.name)
    expected = pinned.lower() if pinned else in_name[1] if in_name else None
    if expected is None:
        raise BadData(f"{checkpoint} is a pickle that nothing vouches for; if you trust it, pin it: set sha256={digest}")
    if not digest.startswith(expected):
        where = "the setting sha256" if pinned else "its name"
        raise BadData(f"{checkpoint} has the sha256 {digest}, not {expected} as in {where}; download it again")
    return digest


def _read(file: BufferedReader, checkpoint: Path, digest: str, *, trusted: bool) -> dict[str, Any]:
    """The checkpoint's plain content: {"config": ..., "state_dict": ...}."""
    saved = _unpickle(file, checkpoint, digest, trusted)
    try:
        saved["state_dict"].keys()
        return {
            "state_dict": saved["state_dict"],
            "config": {
                "dataset": {"args": {"classes": list(saved["config"]["dataset"]["args"]["classes"])}},
                "arch": {"args": dict(saved["config"]["arch"]["args"])},
            },
        }
    except (KeyError, TypeError, AttributeError) as e:
        raise BadData(f"{checkpoint} is not in Detoxify's format: expected state_dict, config.dataset, config.arch") from e


def _unpickle(file: BufferedReader, checkpoint: Path, digest: str, trusted: bool) -> Any:
    import torch

    for weights_only in (True, False) if trusted else (True,):
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=weights_only)
        except Exception as e:  # zip, pickle and torch raise a dozen kinds
            error = e
    hint = "get it again" if trusted else f"get it again, or if you trust it set sha256={digest} to unpickle all of it"
    raise BadData(f"cannot read {checkpoint} as tensors and plain data ({one_line(error)}); {hint}") from error


def _base_model(name: str, checkpoint: Path) -> Path:
    """The folder with config and tokenizer of the model that the checkpoint started from, from the hub or its cache."""
    from huggingface_hub import is_offline_mode, snapshot_download

    if Path(name).is_dir():
        return Path(name)
    try:
        wanted = ["*.json", "*.txt", "*.model"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=is_offline_mode()))
    except (OSError, ValueError) as e:  # every error of the hub and of its transport is one of these
        raise MissingPrerequisite(
            f"no config and tokenizer of {name} for {checkpoint.name} ({one_line(e)}); "
            f"download them while online, or give config=FOLDER"
        ) from e


def _build(saved: dict[str, Any], checkpoint: Path, base: Path, device: str) -> Any:
    """Detoxify with the checkpoint's weights, told the most tokens that its model can read."""
    Detoxify = _library()
    try:
        detoxify = Detoxify(checkpoint=_as_file(saved, base), device=device)
    except Exception as e:  # transformers and torch raise a dozen kinds
        raise BadData(
            f"cannot build the classifier of {checkpoint} ({one_line(e)}); check that the config in {base} belongs to it"
        ) from e
    # what is missing would start at random, with no more than a log line
    missing = [name for name, _ in detoxify.model.named_parameters() if name not in saved["state_dict"]]
    if missing:
        raise BadData(f"{checkpoint} lacks {len(missing)} weights of its classifier, such as {missing[0]}; get it again")
    detoxify.tokenizer.model_max_length = min(detoxify.tokenizer.model_max_length, _max_tokens(detoxify.model.config))
    return detoxify


def _library() -> Any:
    try:
        from detoxify import Detoxify
    except ImportError as e:
        raise MissingPrerequisite(f"no detoxify ({one_line(e)}); pip install 'alignment-harness[toxicity]'") from e
    return Detoxify


def _as_file(saved: dict[str, Any], base: Path) -> BytesIO:
    """The checkpoint as Detoxify reads one, its base model in a local folder.

    Detoxify's own `huggingface_config_path` would ask for model_type first all the same, and lose the number of classes.
    """
    import torch

    arch = {"args": saved["config"]["arch"]["args"] | {"model_type": str(base)}}
    copy = BytesIO()
    torch.save(saved | {"config": saved["config"] | {"arch": arch}}, copy)
    copy.seek(0)
    return copy


def _max_tokens(config: Any) -> int:
    """The longest text that the model has positions for; the RoBERTa family counts them from behind its padding."""
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return config.max_position_embeddings - unused


def _digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's config and tokenizer."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
