"""Shapes of language models, from their configs, without torch: the numbers of parameters and of activations follow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from harness.tasks.micro.frozen import WORLDS


class Shape(NamedTuple):
    """What the memory and the arithmetic of a decoder depend on."""

    parameters: int
    vocabulary: int
    width: int
    layers: int
    projected: int  # inputs and outputs of the linear layers of a block, added: what a low-rank adapter has per rank
    activations: int  # numbers that a block keeps of a token for its backward pass


def gpt2(vocabulary: int, positions: int, width: int, layers: int, inner: int | None = None) -> Shape:
    """The shape of a GPT-2, whose head shares the token embeddings."""
    inner = inner or 4 * width
    block = 4 * width * width + 9 * width + 2 * width * inner + inner
    projected = (width + 3 * width) + 2 * width + 2 * (width + inner)
    # kept: input, both norms, query, key and value, attention, sum; before and after the activation
    return Shape(
        (vocabulary + positions) * width + layers * block + 2 * width, vocabulary, width, layers, projected,
        8 * width + 2 * inner,
    )  # fmt: skip


def llama(vocabulary: int, width: int, layers: int, inner: int, queries: int, keys: int, tied: bool) -> Shape:
    """The shape of a Llama without biases; queries and keys are the widths of all heads together."""
    block = 2 * width * queries + 2 * width * keys + 3 * width * inner + 2 * width
    projected = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + inner)
    # kept: of both norms what goes in, what is scaled and what comes out; query, key, value, attention; gate, its activation,
    # up and their product
    kept = 6 * width + 2 * queries + 2 * keys + 4 * inner
    return Shape((1 if tied else 2) * vocabulary * width + layers * block + width, vocabulary, width, layers, projected, kept)


SHAPES = {
    "gpt2": gpt2(50257, 1024, 768, 12),
    "gpt2-medium": gpt2(50257, 1024, 1024, 24),
    "gpt2-large": gpt2(50257, 1024, 1280, 36),
    "gpt2-xl": gpt2(50257, 1024, 1600, 48),
    "codeparrot/codeparrot-small": gpt2(32768, 1024, 768, 12),
    "codeparrot/codeparrot": gpt2(32768, 1024, 1600, 48),
    "smollm2": llama(49152, 576, 30, 1536, 576, 192, tied=True),
    "HuggingFaceTB/SmolLM2-135M": llama(49152, 576, 30, 1536, 576, 192, tied=True),
}
"""Shapes by name, from each model's config.json."""


def shape(model: str) -> Shape | None:
    """The shape of a model, from its config if available locally; None if unknown."""
    config = _config(model)
    if config is None:
        return SHAPES.get(model)
    try:
        return _read(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # loading it says what is wrong with it
        return None


def parameters(model: str) -> int | None:
    """The number of parameters of a model, from its config if available locally; None if unknown."""
    found = shape(model)
    return None if found is None else found.parameters


def _read(config: dict[str, Any]) -> Shape | None:
    if config.get("model_type") == "gpt2":
        vocabulary, positions, width, layers = (config[k] for k in ("vocab_size", "n_positions", "n_embd", "n_layer"))
        return gpt2(vocabulary, positions, width, layers, config.get("n_inner"))
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        return None
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = (config.get("num_key_value_heads") or heads) * head
    return llama(
        config["vocab_size"], width, config["num_hidden_layers"], config["intermediate_size"], heads * head, keys,
        tied=bool(config.get("tie_word_embeddings")),
    )  # fmt: skip


def _config(model: str) -> dict[str, Any] | None:
    if model in WORLDS:
        return json.loads((WORLDS[model] / "policy" / "config.json").read_text())
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.isdir(model):
        found: Any = str(Path(model) / "config.json")
    else:
        try:
            found = try_to_load_from_cache(model, "config.json")
        except HFValidationError:  # neither a folder nor a hub id
            return None
    return json.loads(Path(found).read_text()) if isinstance(found, str) and Path(found).is_file() else None
