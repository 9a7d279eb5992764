"""The one place where a causal language model is read from a folder, and nothing but weights is read there.

A folder is data: no code that it brings is run, nobody is asked whether to run it, no other place that it names is
looked at. Weights that do not fit the config are refused, whether they are too few, too many or of another shape:
transformers would start the missing at random and leave the others out, in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import BadData, refusing
from harness.core.files import json_keys

if TYPE_CHECKING:
    import torch

CONFIGS = ("config.json", "tokenizer_config.json")
LEADS_AWAY = {
    "auto_map": "names code of its own, which is never run; remove auto_map if transformers has this architecture itself",
    "transformers_weights": "names a file of weights; expected them under their usual names: rename the file, remove the key",
}
# constants that older releases saved with the weights and newer ones compute: masks, frequencies, positions
CONSTANTS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq|position_ids)$")


def read_model(folder: Path, dtype: torch.dtype | None) -> Any:
    """The causal language model in a folder, in float32 unless told otherwise; raises BadData where there is none."""
    refuse_what_leads_away(folder)
    refuse_adapter(folder)
    todo = "check its kind, or copy it again"
    with refusing(f"cannot load a causal language model from {folder}", todo), quietly():
        model, info = _from_pretrained(folder, dtype)
    _check_weights(folder, model, info)
    return model


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


def _from_pretrained(folder: Path, dtype: torch.dtype | None) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **common)
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
