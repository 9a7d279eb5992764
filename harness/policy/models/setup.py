"""How a policy is trained where its size makes that a question: micro-batches, gradient checkpointing, adapters.

A method computes its loss on the whole batch, so a batch is split below it: the rows go through the model in parts whose
activations are dropped and computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174). The loss and its
gradient are those of the whole batch, whatever the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.core.errors import BadSetting
from harness.core.process import started_together
from harness.core.settings import ModelSettings

from . import adapters, processes
from .adapters import Lora

RECOMPUTED: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout to repeat


ALONE = (
    "model.shard=full divides the weights among the processes of torchrun, and there is one process; start with torchrun "
    "--nproc_per_node N -m harness run, or set model.shard=none"
)


class Setup(NamedTuple):
    """How a policy is trained, and what it is trained from."""

    micro_batch: int = 0  # sequences whose activations are held at once; 0 for the whole batch
    checkpointing: bool = False  # whether a layer's activations are computed again in the backward pass
    lora: Lora | None = None  # None trains all weights
    base: Mapping[str, str] = {}  # name and sha256 of the base model, beside which an adapter is saved
    shard: bool = False  # whether weights are divided among processes, which changes no number

    def identity(self) -> dict[str, Any]:
        """What differs from training all weights on whole batches, for the identity of a run; empty where nothing does."""
        found = {
            "micro_batch": self.micro_batch,
            "checkpointing": self.checkpointing,
            "lora": self.lora and self.lora._asdict(),
        }
        changed = {name: value for name, value in found.items() if value}
        return {"setup": changed} if changed else {}


def check_shard(settings: ModelSettings) -> None:
    """Raise BadSetting where weights are to be divided among processes and there is one."""
    if settings.shard == "full" and max(processes.size(), started_together()) == 1:
        raise BadSetting(ALONE)


def setup_of(settings: ModelSettings, model: Any, sha256: str) -> Setup:
    """The setup that the settings of a model ask for; raises BadSetting or MissingPrerequisite where the model has no such."""
    lora, asked = None, settings.lora
    check_shard(settings)
    if asked.rank:
        lora = Lora(asked.rank, asked.alpha or 2.0 * asked.rank, asked.merge)
        adapters.required()
        adapters.targets(model)
    if settings.checkpointing:
        checkpointed_layers(model)
    return Setup(
        settings.micro_batch, settings.checkpointing, lora, {"name": settings.id, "sha256": sha256}, settings.shard == "full"
    )


def in_parts(read: Callable[[Any, Any], Any], rows: int, size: int) -> list[Any]:
    """What `read(first, last)` returns of consecutive rows, at most `size` at once; the backward pass computes each again."""
    return [checkpoint(read, i, min(i + size, rows), **RECOMPUTED) for i in range(0, rows, size)]


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """The context of a training pass in which each layer's activations are dropped and computed again.

    Layers are switched within it only: in a pass that reads from a cache they would lose it.
    """
    layers = checkpointed_layers(model)
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, **RECOMPUTED)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = False
            del layer._gradient_checkpointing_func


def checkpointed_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that transformers can checkpoint; raises BadSetting if it has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise BadSetting(
            f"{type(model).__name__} has no layers that transformers can checkpoint; set model.checkpointing=false, "
            f"or lower model.micro_batch"
        )
    return found


def joined(parts: list[Any]) -> Any:
    """The outputs of a model for parts of a batch as one: tensors with a row for each sequence; others are left out."""
    kind, first = type(parts[0]), parts[0]
    rows = {name: [part[name] for part in parts] for name, x in first.items() if isinstance(x, torch.Tensor) and x.dim()}
    return kind(**{name: torch.cat(x) for name, x in rows.items()})
