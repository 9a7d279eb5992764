"""Models as they are trained and read here: dropout off, activations in one kernel."""

from __future__ import annotations

from torch import nn


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in eval mode with dropout off for good, so that a training pass and a sampling pass agree.

    Off for good, because a trainer may call `train()`. Llama's attention dropout is a number on the module.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
    return model.eval()


def fused_activations(model: nn.Module) -> nn.Module:
    """The model with GPT-2's GELU as one kernel: the same function, without four intermediate tensors."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh().train(child.training))
    return model
