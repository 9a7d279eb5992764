"""A transformer encoder fitted to labelled texts: a small one from scratch, or any encoder fine-tuned.

It has one output, the logit of how undesired a text is. The epoch with the lowest loss on validation texts is kept.
"""

from __future__ import annotations

import copy
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.api import BadData, refusing

from ..scorers import classifier
from .measures import CommonSettings
from .scorer import UNDESIRED

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
BUCKET = 50  # batches that are sorted by length together, so that a batch needs little padding
SCORED = 128  # texts in one forward pass without gradients


class EncoderSettings(CommonSettings):
    """Settings of the encoder; the sizes and the vocabulary apply to one from scratch."""

    layers: int = Field(2, ge=1, description="layers")
    width: int = Field(128, ge=8, multiple_of=8, description="width of the hidden states, in numbers")
    heads: int = Field(4, ge=1, description="attention heads")
    vocabulary: int = Field(8000, ge=300, description="maximum number of tokens of the vocabulary")
    max_tokens: int = Field(64, ge=8, description="maximum length of a text in tokens; the rest is cut off")
    epochs: int = Field(3, ge=1, description="passes over the training texts")
    batch_size: int = Field(32, ge=1, description="texts per update")
    lr: float | None = Field(None, gt=0, description="highest learning rate [0.001 from scratch, 5e-5 fine-tuned]")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of an encoder from scratch")
    hidden_tokens: float = Field(0.1, ge=0, lt=1, description="share of the tokens that are replaced by [MASK] in training")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of AdamW")
    device: str = Field("auto", description="device: auto, cpu, cuda or another one of torch")


class Encoder(NamedTuple):
    """A sequence classifier with one label, and its tokenizer."""

    model: Any
    tokenizer: Any
    max_tokens: int

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, special tokens included."""
        with refusing("the tokenizer fails on the texts", "use another one: --from MODEL"):
            return self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]

    def batch(self, rows: list[list[int]]) -> dict[str, Any]:
        """Padded ids and their mask: -> [B, T], [B, T]."""
        import torch

        width, pad = max(1, *map(len, rows)), self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def logits(self, rows: list[list[int]]) -> NDArray[np.float64]:
        """The logit of each text, without dropout: [N] rows of ids -> [N]."""
        import torch

        self.model.eval()
        found, order = np.zeros(len(rows)), sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with torch.no_grad():
            for start in range(0, len(rows), SCORED):
                here = order[start : start + SCORED]
                found[here] = self.model(**self.batch([rows[i] for i in here])).logits[:, 0].double().cpu().numpy()
        return found

    def calibrate(self, scale: float, shift: float) -> None:
        """Scale and shift the logits by the weights of the last layer."""
        import torch

        last = [m for m in self.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1][-1]
        with torch.no_grad():
            last.weight.mul_(scale)
            if last.bias is None:
                raise BadData(f"the last layer of a {type(self.model).__name__} has no bias; choose another --from MODEL")
            last.bias.mul_(scale).add_(shift)

    def write(self, folder: Path) -> None:
        """Write a Hugging Face folder: config, weights as safetensors, tokenizer."""
        self.tokenizer.model_max_length = self.max_tokens
        with classifier.quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


class Fitting(NamedTuple):
    """What the training of an encoder reports."""

    loss: float  # cross-entropy on the validation texts, nats
    epoch: int  # the epoch that was kept, from 1

    def plain(self) -> dict[str, float]:
        """The same as a table."""
        return {"validation_loss": round(self.loss, 6), "epoch": float(self.epoch)}


def start(texts: list[str], settings: EncoderSettings, seed: int, folder: Path | None) -> Encoder:
    """An encoder that is not fitted yet, from scratch with a tokenizer trained on the texts, or from a folder.

    Raises BadData if the folder cannot be loaded.
    """
    import torch

    torch.manual_seed(seed)
    found = _scratch(texts, settings) if folder is None else _loaded(folder, settings)
    found.model.to(classifier.device_of(settings.device))
    return found


def _scratch(texts: list[str], settings: EncoderSettings) -> Encoder:
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _tokenizer(texts, settings)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, intermediate_size=4 * settings.width,
        max_position_embeddings=settings.max_tokens, hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout, pad_token_id=0, **_one_label(),
    )  # fmt: skip
    return Encoder(BertForSequenceClassification(config), tokenizer, settings.max_tokens)


def _one_label() -> dict[str, Any]:
    return {"id2label": {0: UNDESIRED}, "label2id": {UNDESIRED: 0}, "problem_type": "multi_label_classification"}


def _tokenizer(texts: list[str], settings: EncoderSettings) -> Any:
    """A byte-level BPE tokenizer in lower case, trained on the texts: the same texts give the same one, unlike WordPiece."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found, special = Tokenizer(models.BPE()), list(SPECIAL.values())
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    ids = [(word, found.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=settings.max_tokens, **SPECIAL)


def _loaded(folder: Path, settings: EncoderSettings) -> Encoder:
    """An encoder with a new last layer of one output; only safetensors are read, and no code."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    todo = "give a folder with config, safetensors and tokenizer"
    with classifier.quiet(), refusing(f"cannot load an encoder from {folder}", todo):
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        config = AutoConfig.from_pretrained(folder, **common)
        for key, value in {**_one_label(), "pad_token_id": tokenizer.pad_token_id}.items():
            setattr(config, key, value)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, attn_implementation=None, **common
        )
    longest = classifier.longest(tokenizer, model.config)
    return Encoder(model.float(), tokenizer, min(longest, settings.max_tokens))


def fit(
    encoder: Encoder, texts: list[str], undesired: NDArray, validation: tuple[list[str], NDArray], settings: EncoderSettings,
    seed: int, fresh: bool, progress: Callable[[float, float], None],
) -> Fitting:  # fmt: skip
    """Fit an encoder to N texts and how undesired each is, in place; `progress` is given the share that is done and the loss.

    `fresh` says that the encoder starts from scratch, which decides the default of the learning rate.
    """
    import torch

    rows, held_out = encoder.ids(texts), encoder.ids(validation[0])
    lr = settings.lr or (1e-3 if fresh else 5e-5)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=lr, weight_decay=settings.weight_decay)
    updates, done, rng = settings.epochs * -(-len(rows) // settings.batch_size), 0, random.Random(seed)
    best, kept, losses = Fitting(math.inf, 0), encoder.model.state_dict(), []
    with _deterministic():
        for epoch in range(1, settings.epochs + 1):
            encoder.model.train()
            for batch in batches([len(row) for row in rows], settings.batch_size, rng):
                optimizer.param_groups[0]["lr"] = lr * _schedule((done + 0.5) / updates)
                losses.append(_update(encoder, optimizer, [rows[i] for i in batch], undesired[batch], settings))
                done += 1
                progress(done / updates, float(np.mean(losses[-100:])))
            loss = cross_entropy(validation[1], encoder.logits(held_out))
            if loss < best.loss:
                best, kept = Fitting(loss, epoch), copy.deepcopy(encoder.model.state_dict())
    encoder.model.load_state_dict(kept)
    return best


def batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """The indices of N texts in batches of similar length, in random order."""
    order, found = list(range(len(lengths))), []
    rng.shuffle(order)
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=lambda i: lengths[i])
        found += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    rng.shuffle(found)
    return found


def _schedule(share: float) -> float:
    """A rise over the first tenth, then a fall to zero, both linear."""
    return min(share / 0.1, (1 - share) / 0.9)


def _update(encoder: Encoder, optimizer: Any, rows: list[list[int]], undesired: NDArray, settings: EncoderSettings) -> float:
    import torch

    inputs = encoder.batch(rows)
    if settings.hidden_tokens and encoder.tokenizer.mask_token_id is not None:
        ids = inputs["input_ids"]
        special = torch.tensor(encoder.tokenizer.all_special_ids, device=ids.device)
        hidden = torch.rand(ids.shape).to(ids.device) < settings.hidden_tokens
        inputs["input_ids"] = ids.masked_fill(hidden & ~torch.isin(ids, special), encoder.tokenizer.mask_token_id)
    logits = encoder.model(**inputs).logits[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.as_tensor(undesired).to(logits))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def cross_entropy(labels: NDArray, logits: NDArray) -> float:
    """The mean cross-entropy of labels in [0, 1] with predictions: [N], [N]; nats."""
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


@contextmanager
def _deterministic() -> Iterator[None]:
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products are refused
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
