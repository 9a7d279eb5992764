"""The classifier scorer: any transformers sequence classifier, from a folder or a hub id, and the label to score."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.api import BadData, BadSetting, UnknownName, hub, one_line

log = logging.getLogger(__name__)
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
PROBES = ("we walked along the river until the sun went down, and then the rain began to fall on us", "the cat sat", "tea")
SAME = 1e-5  # tolerance between two scores of one text, for the rounding of float32


class ClassifierScorer:
    """The probability of a label for the response, by a sequence classifier.

    model        a Hugging Face folder or a hub id; custom code in it is never run
    label        the label whose probability is the score, or a table of labels with weights in [0, 1]
    invert       return 1 - score, for an undesired label
    revision     commit, tag or branch of a hub id
    sha256       hash of the weights file; required if it is a pickle
    activation   softmax or sigmoid; auto follows the config: sigmoid for multi-label or single-label models
    with_prompt  score the prompt together with the response
    batch_size   texts in one forward pass
    max_tokens   maximum length of a text in tokens; the rest is cut off
    device       cpu, cuda or another device of torch; auto is CUDA if available
    """

    slow = True  # scores are cached

    def __init__(
        self,
        model: str,
        label: str | dict[str, float],
        *,
        invert: bool = False,
        revision: str | None = None,
        sha256: str | None = None,
        activation: Literal["auto", "softmax", "sigmoid"] = "auto",
        with_prompt: bool = False,
        batch_size: int = 64,
        max_tokens: int | None = None,
        device: str = "auto",
    ) -> None:
        if activation not in ("auto", "softmax", "sigmoid"):
            raise BadSetting(f"activation is {activation!r}; expected auto, softmax or sigmoid")
        self.invert, self.reads_prompt, self.batch_size = invert, with_prompt, batch_size
        folder = _folder(model, revision)
        weights, digest = _checked(folder, sha256)
        self._tokenizer, self._model = _read(folder, weights)
        self._model.to(device_of(device))
        self._activation = _activation(self._model.config) if activation == "auto" else activation
        self._weights = self._label_weights(label)
        self._max_tokens = min(max_tokens or 2**31, longest(self._tokenizer, self._model.config))
        if not self._ignores_padding(folder):
            log.warning("scores of classifier %s depend on padding, so texts are scored one by one", folder)
            self.batch_size = 1
        self.identity: dict[str, Any] = {
            "name": "classifier",
            "version": 1,
            "sha256": digest,
            "config_sha256": config_digest(folder),
            "label": label,
            "invert": invert,
            "activation": self._activation,
            "with_prompt": with_prompt,
            "max_tokens": self._max_tokens,
        }

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """The prerequisites of the scorer with the given options."""
        return [hub.model(str(options.get("model")), options.get("revision"))]

    def score(self, prompts: list[str], responses: list[str]) -> NDArray:
        """The score of each response, NaN for a text without tokens: -> [N] float64."""
        texts = [p + r for p, r in zip(prompts, responses, strict=True)] if self.reads_prompt else responses
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths need little padding
        scores = np.full(len(texts), np.nan)
        for start in range(0, len(texts), self.batch_size):
            rows = order[start : start + self.batch_size]
            scores[rows] = self._forward([texts[i] for i in rows])
        return 1.0 - scores if self.invert else scores

    def _forward(self, texts: list[str]) -> NDArray:
        """The probability of the label, NaN for a text without tokens: -> [N]."""
        import torch

        with torch.no_grad():
            inputs = self._tokenizer(
                texts, return_tensors="pt", padding=len(texts) > 1, truncation=True, max_length=self._max_tokens
            )
            read = inputs["attention_mask"].sum(1).numpy() > 0
            if not read.all():
                return self._of_those(read, texts)
            logits = self._model(**inputs.to(self._model.device)).logits.double()
            probs = logits.sigmoid() if self._activation == "sigmoid" else logits.softmax(-1)
        return (probs.cpu().numpy() * self._weights).sum(1)

    def _of_those(self, read: NDArray, texts: list[str]) -> NDArray:
        """The scores of the texts with tokens, NaN for the others: -> [N]."""
        scores = np.full(len(texts), np.nan)
        if read.any():
            scores[read] = self._forward([text for text, some in zip(texts, read, strict=True) if some])
        return scores

    def _ignores_padding(self, folder: Path) -> bool:
        """True if a text has the same score in a padded batch as alone; raises BadData if scoring fails.

        A decoder needs a padding token to find its last token, and with left padding it may count positions from the
        padding.
        """
        try:
            alone = np.concatenate([self._forward([text]) for text in PROBES])
        except Exception as e:  # the tokenizer and the model raise many types
            raise BadData(f"the classifier in {folder} cannot score a plain text ({one_line(e)}); check its type") from e
        try:
            return bool((np.abs(self._forward(list(PROBES)) - alone) < SAME).all())
        except Exception:  # there is no padding token, which a batch needs
            return False

    def _label_weights(self, label: str | dict[str, float]) -> NDArray:
        """The weight of each label of the model: -> [L]."""
        table = {label: 1.0} if isinstance(label, str) else label
        names = [self._model.config.id2label[i] for i in range(self._model.config.num_labels)]
        for name, weight in table.items():
            if name not in names:
                raise UnknownName("label of the classifier", name, names)
            if not 0 <= weight <= 1:
                raise BadSetting(f"the weight of label {name!r} is {weight}; expected a number in [0, 1]")
        if self._activation == "sigmoid" and len(table) > 1:
            raise BadSetting("expected one label for a multi-label classifier (sigmoid); found a table of labels")
        return np.array([table.get(name, 0.0) for name in names])


def device_of(name: str) -> str:
    """The device of a name: auto is CUDA if available, else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def longest(tokenizer: Any, config: Any) -> int:
    """The maximum input length of a model in tokens; RoBERTa models start their positions after the padding index."""
    positions = getattr(config, "max_position_embeddings", None) or 2**31
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return min(tokenizer.model_max_length, positions - unused)


def _folder(model: str, revision: str | None) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise BadSetting(f"{model} is a folder, which has no revision {revision!r}; leave it out, or give a hub id")
        return path
    hint = "give model=FOLDER"
    folder = hub.snapshot(model, [*hub.TEXT_FILES, SAFE], revision, f"classifier {model!r}", hint)
    if not (folder / SAFE).is_file():
        folder = hub.snapshot(model, [*hub.TEXT_FILES, PICKLED], revision, f"classifier {model!r}", hint)
    return folder


def _checked(folder: Path, pinned: str | None) -> tuple[str, str]:
    """The name of the weights file and its sha256; raises BadData if it differs, or for a pickle without a given sha256."""
    name = next((n for n in (SAFE, PICKLED) if (folder / n).is_file()), None)
    if name is None:
        raise BadData(f"no weights in {folder}; expected {SAFE} or {PICKLED}; download the classifier again")
    with (folder / name).open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if pinned is None and name == PICKLED:
        raise BadData(f"{folder / name} is a pickle without a known hash; if you trust it, pin it: set sha256={digest}")
    if pinned is not None and digest != pinned.lower():
        raise BadData(f"{folder / name} has the sha256 {digest}, not {pinned} as set; download it again")
    return name, digest


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that hides the warnings and progress bars of transformers."""
    from transformers.utils import logging as verbose

    level, bars = verbose.get_verbosity(), verbose.is_progress_bar_enabled()
    verbose.set_verbosity_error()
    verbose.disable_progress_bar()
    try:
        yield
    finally:
        verbose.set_verbosity(level)
        if bars:
            verbose.enable_progress_bar()


def _read(folder: Path, weights: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=AutoConfig.from_pretrained(folder, **common),
                attn_implementation=None,  # the default: a config may name a kernel, which is code from the hub
                use_safetensors=weights == SAFE,
                output_loading_info=True,
                **common,
            )
    except Exception as e:  # transformers, safetensors and pickle raise many types
        raise BadData(
            f"cannot load a sequence classifier from {folder} ({one_line(e)}); check its type, or copy it again"
        ) from e
    if missing := sorted(info["missing_keys"]):
        raise BadData(f"the weights in {folder} lack {len(missing)} of a {type(model).__name__}, such as {missing[0]}")
    return tokenizer, model.float().eval()


def _activation(config: Any) -> str:
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return "sigmoid" if several else "softmax"


def config_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the config and tokenizer files of a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
