"""Which models follow the arithmetic of GPT-2 or Llama in every module, so that it may be computed without the modules."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as everywhere

PLAIN = ("Embedding", "Linear", "Dropout", "ModuleList")
FAMILIES = {  # all types of module that a model may consist of, besides activations
    "GPT2LMHeadModel": frozenset(
        {*PLAIN, "GPT2LMHeadModel", "GPT2Model", "GPT2Block", "GPT2Attention", "GPT2MLP", "Conv1D", "LayerNorm"}
    ),
    "LlamaForCausalLM": frozenset(
        {*PLAIN, "LlamaForCausalLM", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm"}
        | {"LlamaRotaryEmbedding"}
    ),
}


def family_of(model: Any) -> str | None:
    """The family that a model follows in every module; None if it has other modules, a hook, or a sliding window."""
    family = type(model).__name__
    if family not in FAMILIES or not _known({type(m) for m in model.modules()}, FAMILIES[family]):
        return None
    return None if _watched(model) or _windowed(model.config) else family


def _known(kinds: set[type], modules: frozenset[str]) -> bool:
    """Whether all types of module are those of a family in the library, or activations."""
    libraries = ("transformers.", "torch.nn.")
    return all(
        kind.__module__.startswith(libraries) and (kind.__name__ in modules or "activation" in kind.__module__)
        for kind in kinds
    )


def _watched(model: nn.Module) -> bool:
    """Whether a hook, of a module or of all modules, reads or changes what is computed, which the direct way would pass by.

    The library's own hooks only record hidden states, and are installed for good when these are first asked for.
    """
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)


def _windowed(config: Any) -> bool:
    """Whether a cache made for this config forgets: then the model's own forward decides what that means."""
    kinds = getattr(config, "layer_types", None) or []
    return bool(getattr(config, "sliding_window", None)) or any(kind != "full_attention" for kind in kinds)
