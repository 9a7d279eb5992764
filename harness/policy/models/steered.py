"""The layers of a language model, and one with a vector added to what a layer leaves in the residual stream.

Layers are counted from 0, the one next to the embeddings. What a layer leaves is its output, which the next one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.core.errors import BadSetting
from harness.policy import caches as caching
from harness.policy import configs

from .ensemble import Caches


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of a model from its embeddings up; raises BadSetting where none are found."""
    n = int(configs.text_config(model).num_hidden_layers)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n)
    found = next(lists, None)
    if found is None:
        raise BadSetting(f"{type(model).__name__} has no list of {n} layers; choose a method that reads none, or another model")
    return list(found)


def layer_at(model: Any, depth: float) -> int:
    """The layer at a share of the model's depth, 0 the first and 1 the last: -> its number."""
    return round(depth * (len(layers_of(model)) - 1))


class Steered(nn.Module):
    """A causal language model with a vector [D] added to what one of its layers leaves, at every position.

    Turner et al. 2023 (arXiv:2308.10248), Rimsky et al. 2024 (arXiv:2312.06681).
    """

    passes = 1
    PARTS: ClassVar[tuple[str, ...]] = ("base",)
    vector: Tensor

    def __init__(self, base: nn.Module, layer: int, vector: Tensor) -> None:
        super().__init__()
        self.base: Any = base
        self.layer = layer
        self.register_buffer("vector", vector.detach().float().clone())

    @property
    def config(self) -> Any:
        """The Hugging Face config of the model."""
        return self.base.config

    def forward(self, *, cache: Caches | None = None, use_cache: bool = False, **inputs: Any) -> SimpleNamespace:
        """The logits [B, T, V] and the cache, for the inputs of a Hugging Face model."""
        with hooked(layers_of(self.base)[self.layer], lambda states: states + self.vector.to(states)):
            if not use_cache:
                return SimpleNamespace(logits=caching.call(self.base, use_cache=False, **inputs).logits)
            out, grown = caching.forward(self.base, cache.parts[0] if cache is not None else None, **inputs)
        return SimpleNamespace(logits=out.logits, cache=Caches([grown]))

    def parts(self) -> dict[str, Any]:
        """The one model."""
        return {"base": self.base}

    def state(self) -> dict[str, Any]:
        """The layer and the vector, for `steered.json`."""
        return {"layer": self.layer, "vector": self.vector.tolist()}

    @classmethod
    def of(cls, parts: dict[str, Any], state: dict[str, Any]) -> Steered:
        """The model with such a state."""
        vector = torch.tensor(state["vector"], device=next(parts["base"].parameters()).device)
        return cls(parts["base"], int(state["layer"]), vector)


@contextmanager
def hooked(module: nn.Module | None, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """The context in which a module's output is changed, or only read where `change` returns None."""

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        changed = change(states)
        if changed is None:
            return None
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    handle = module.register_forward_hook(hook) if module is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
