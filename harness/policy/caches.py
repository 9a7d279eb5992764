"""How a language model takes and returns its cache, and which rows of it: whatever its architecture and its transformers.

A cache holds keys and values of attention, states of a recurrence, or both; it is known here by what it can do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import Parameter
from typing import Any

from torch import Tensor

NAMES = ("cache", "past_key_values", "cache_params")  # newest first: transformers 5.24 renamed the others, 5.40 drops them
OPTIONAL = ("logits_to_keep", "position_ids")  # without them a model computes more, or counts positions by itself


def parameters(model: Any) -> Mapping[str, Parameter]:
    """The parameters of a model's forward by name; those of a class are read once, for they are asked for at every token."""
    forward = getattr(model.forward, "__func__", None)
    return inspect.signature(model.forward).parameters if forward is None else _of(forward)


@lru_cache(maxsize=64)
def _of(forward: Callable[..., Any]) -> Mapping[str, Parameter]:
    return inspect.signature(forward).parameters


def cache_name(model: Any) -> str | None:
    """The argument of the model's forward that takes its cache, which is also the name in its output; None without one."""
    accepted = parameters(model)
    return next((name for name in NAMES if name in accepted), None)


def call(model: Any, **inputs: Any) -> Any:
    """The model's output, without the optional inputs that its forward does not know."""
    accepted = parameters(model)
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        inputs = {name: x for name, x in inputs.items() if name in accepted or name not in OPTIONAL}
    return model(**inputs)


def forward(model: Any, cache: Any, **inputs: Any) -> tuple[Any, Any]:
    """A pass that reads and extends a cache (None starts one): -> the model's output, its cache."""
    name = cache_name(model)
    given = {name: cache} if name is not None and cache is not None else {}
    if given and recurrent(cache):
        del inputs["attention_mask"]  # of tokens that are read already, and all that is left of them is a state
    out = call(model, **inputs, **given, use_cache=True)
    return out, getattr(out, name) if name is not None else None


def recurrent(cache: Any) -> bool:
    """Whether all of a cache is states that do not grow, as Mamba's are."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(hasattr(layer, "recurrent_states") and not hasattr(layer, "keys") for layer in layers)


def movable(cache: Any) -> bool:
    """Whether rows of a cache can be repeated and left out: whether it can do what a beam search needs."""
    return all(map(movable, cache.parts)) if hasattr(cache, "parts") else hasattr(cache, "reorder_cache")


def take(cache: Any, rows: Tensor) -> None:
    """Make a cache that of these rows, a row as often as it is named: [B] ids."""
    for part in getattr(cache, "parts", [cache]):
        part.reorder_cache(rows)
