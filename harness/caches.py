"""How a language model takes and returns its cache of keys and values, whatever its version of transformers calls it."""

from __future__ import annotations

import inspect
from typing import Any

NAMES = ("cache", "past_key_values", "cache_params")  # newest first: transformers 5.24 renamed the others, 5.40 drops them


def cache_name(model: Any) -> str | None:
    """The argument of the model's forward that takes its cache, which is also the name in its output; None without one."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in accepted), None)


def forward(model: Any, cache: Any, **inputs: Any) -> tuple[Any, Any]:
    """A pass that reads and extends a cache (None starts one): -> the model's output, its cache."""
    name = cache_name(model)
    given = {name: cache} if name is not None and cache is not None else {}
    out = model(**inputs, **given, use_cache=True)
    return out, getattr(out, name) if name is not None else None
