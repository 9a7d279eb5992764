"""The one place where a causal language model is read from a folder or a .gguf file, and nothing but weights is read there.

A folder is data: no code that it brings is run, nobody is asked whether to run it, no other place that it names is
looked at. Weights that do not fit the config are refused, whether they are too few, too many or of another shape:
transformers would start the missing at random and leave the others out, in silence.

A .gguf file (llama.cpp's format) holds config, tokenizer and weights, mostly quantised; transformers de-quantises them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core import hub
from harness.core.errors import BadData, refusing
from harness.core.files import json_keys
from harness.core.hashing import is_gguf

if TYPE_CHECKING:
    import torch

    from .policy import Policy

CONFIGS = ("config.json", "tokenizer_config.json")
LEADS_AWAY = {
    "auto_map": "names code of its own, which is never run; remove auto_map if transformers has this architecture itself",
    "transformers_weights": "names a file of weights; expected them under their usual names: rename the file, remove the key",
}
# constants that older releases saved with the weights and newer ones compute: masks, frequencies, positions
CONSTANTS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq|position_ids)$")


def read_model(folder: Path, dtype: torch.dtype | None) -> Any:
    """The causal language model in a folder or a .gguf file, in float32 unless told otherwise.

    Raises BadData where there is none, MissingPrerequisite where a .gguf file cannot be read for want of a package.
    """
    if is_gguf(folder):
        return _read_gguf(folder, dtype)
    refuse_what_leads_away(folder)
    refuse_adapter(folder)
    todo = "check its kind, or copy it again"
    with refusing(f"cannot load a causal language model from {folder}", todo), quietly():
        model, info = _from_pretrained(folder, dtype)
    _check_weights(folder, model, info)
    return model


def digest(policy: Policy) -> str:
    """SHA-256 of everything that decides the output of a policy: weights (sharded: those here), vocabulary, prefix."""
    import torch

    from .models.sharding import own

    total = hashlib.sha256(repr((policy.vocab_size, policy.num_control, policy.prefix)).encode())
    for name, weight in policy.state_dict().items():
        total.update(f"{name} {tuple(weight.shape)}".encode())
        total.update(own(weight.detach()).cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _read_gguf(path: Path, dtype: torch.dtype | None) -> Any:
    """The model of a .gguf file as any other: every weight dense, so that it can be trained and saved."""
    from transformers import GgufConfig

    with alone(path) as source:
        todo = "check its kind, or copy it again"
        # the bar over its tensors is none of transformers' own, which `quietly` turns off
        with refusing(f"cannot load a causal language model from {path}", todo), quietly(), redirect_stderr(StringIO()):
            dense = GgufConfig(dequantize=True)  # packed weights, as some GPUs would keep them, are neither trained nor saved
            model, info = _from_pretrained(source.folder, dtype, gguf_file=source.name, quantization_config=dense)
        _check_weights(path, model, info)
        _check_numbers(path, model)
    return _with_turn_ends(path, model)


def _with_turn_ends(path: Path, model: Any) -> Any:
    """The model with all ends that a .gguf file names, those of a turn and of a message too, in its generation config."""
    from transformers import GenerationConfig
    from transformers.integrations.gguf.reader import read_gguf_metadata

    said = read_gguf_metadata(str(path))[0]
    ends = [said[key] for kind in ("eos", "eot", "eom") if (key := f"tokenizer.ggml.{kind}_token_id") in said]
    if len(set(ends)) > 1:
        model.generation_config = GenerationConfig(eos_token_id=ends)
    return model


class Source(NamedTuple):
    """A .gguf file alone in a folder, as transformers asks for it."""

    folder: Path
    name: str


@contextmanager
def alone(path: Path) -> Iterator[Source]:
    """A folder that holds nothing but a link to a .gguf file: transformers would read configs that lie beside it.

    Raises MissingPrerequisite if a package that reads it is missing.
    """
    for module in hub.GGUF_READERS:
        hub.require(module, "small", f"to read {path}")
    with tempfile.TemporaryDirectory() as made:
        (link := Path(made) / "model.gguf").symlink_to(path.absolute())
        yield Source(Path(made), link.name)


def _check_numbers(path: Path, model: Any) -> None:
    """Raise BadData if the file has more weights than the model: transformers leaves out what it has no name for."""
    there = _stored_numbers(path)
    expected = sum(weight.numel() for weight in model.parameters())
    if there != expected:
        raise BadData(
            f"{path} has {there:,} weights and a {type(model).__name__} with its config {expected:,}; transformers does not "
            f"read this file in full: expected an architecture that it knows"
        )


def _stored_numbers(path: Path) -> int:
    from gguf import GGUFReader
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        return sum(prod(tensor.shape) for tensor in GgufHeader.from_file(str(path)).tensors)
    except ValueError:  # older releases have fewer quantised types there; the package itself has all, and takes seconds
        return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def refuse_what_leads_away(folder: Path) -> None:
    """Raise BadData where a folder's configs name code, other files or another model that transformers would follow."""
    for path in (folder / name for name in CONFIGS):
        keys = json_keys(path) if path.is_file() else set()
        for key in LEADS_AWAY.keys() & keys:
            raise BadData(f"{path} {LEADS_AWAY[key]}")


def refuse_adapter(folder: Path) -> None:
    """Raise BadData where a folder holds an adapter, whose config names a base that transformers would follow."""
    if (folder / "adapter_config.json").is_file():
        raise BadData(
            f"{folder} holds an adapter (adapter_config.json); expected whole weights: merge it into its base first "
            f"(a run saves them with model.lora.merge=true)"
        )


def _from_pretrained(folder: Path, dtype: torch.dtype | None, **more: Any) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, gguf_file=more.get("gguf_file"), **common)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # transformers would import every model there is to say so
        raise ValueError(f"transformers has none for a {type(config).__name__}")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype or torch.float32,
        weights_only=True,
        use_safetensors=any(folder.glob("*.safetensors")),  # never another file than the one that is hashed
        attn_implementation=None,  # transformers' own choice: a config may name a kernel, which is code from the hub
        experts_implementation=None,
        ignore_mismatched_sizes=True,  # refused by name, as the missing are
        output_loading_info=True,
        **common,
        **more,
    )
    model, info = loaded
    return model, info


def _check_weights(folder: Path, model: Any, info: dict[str, Any]) -> None:
    kind = type(model).__name__
    if lacking := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise BadData(
            f"the weights in {folder} lack, or have in another shape, {len(lacking)} that a {kind} with this "
            f"config needs, such as {lacking[0]}; expected a causal language model with its head"
        )
    if left_over := sorted(key for key in info["unexpected_keys"] if not CONSTANTS.search(key)):
        raise BadData(
            f"the weights in {folder} are {len(left_over)} more than a {kind} with this config has, such as {left_over[0]}; "
            f"expected weights and config.json of one model (the same number of layers, no other head)"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bar and no report while a model loads: what matters of it is checked here, and said in one line."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
