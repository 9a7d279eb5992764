"""What a model's config says of it, by whatever name and at whatever depth its architecture keeps it."""

from __future__ import annotations

from typing import Any

UNLIMITED = 2**31 - 1
"""The context of a model that has no table of positions."""
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx")


def text_config(model: Any) -> Any:
    """The config of the language model, which a model of several modalities keeps within its own."""
    return model.config.get_text_config()


def vocabulary(model: Any) -> int:
    """The rows of the table of embeddings, control tokens among them."""
    return int(text_config(model).vocab_size)


def context_length(model: Any) -> int:
    """The most tokens that the model can read at once.

    A model whose rotation of positions changes beyond a length ("longrope") reads a text otherwise with a cache than
    without one from there on, so its context ends there.
    """
    config, reserved = text_config(model), getattr(model, "reserved", 0)
    longest = next((value for name in LONGEST if isinstance(value := getattr(config, name, None), int)), UNLIMITED)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return longest - reserved
    limit = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return min(longest, limit or longest) - reserved


def cached_numbers(model: Any) -> int:
    """An upper bound of the numbers that the model's cache holds of each token: keys and values of every layer."""
    config = text_config(model)
    return 2 * int(config.num_hidden_layers) * int(config.hidden_size)
