"""Policies of more than one device's memory: weights, gradients and Adam's moments divided among the processes of a run.

By PyTorch's `fully_shard` (FSDP2; Zhao et al. 2023, arXiv:2304.11277): every layer is a unit, the embeddings and the rest
another. Where all processes read their rows in step, in updates and in measuring, a unit's weights are gathered for its pass
and dropped after it. Sampling is not in step, as responses end at different tokens: there a policy is `gathered` as a whole.

A sharded model remembers its plain form without numbers. A change of its form (an adapter, rows of control tokens), a copy and
a checkpoint are made of the `whole` model, in the host's memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.core.errors import BadSetting
from harness.core.types import Rollout

from . import composite, processes

M = TypeVar("M", bound=nn.Module)
FORM = "form_without_numbers"  # of a sharded model, on the meta device; in its __dict__, so that it is no part of the model


def shard(model: Any, device: torch.device | str) -> Any:
    """A model of the same weights, of which each process holds its part on a device; the one given is left as it is.

    Raises BadSetting for a model without layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    if FORM in model.__dict__:
        return model
    form = _filled(model, lambda weight: weight.detach().to("meta"))
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    layers = [module for module in twin.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BadSetting(f"{type(model).__name__} has no layers that are known as such; set model.shard=none")
    for unit in (*layers, twin):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        unit.set_gradient_divide_factor(1.0)  # a sum, as of all gradients here
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other
    twin.to(device)  # buffers
    twin.__dict__[FORM] = form
    return twin


def sharded(model: nn.Module) -> bool:
    """Whether a model, or a model that it is made of, is divided among processes."""
    return processes.grouped() > 1 and any(FORM in module.__dict__ for module in model.modules())


def whole(model: Any, everywhere: bool = True) -> Any:
    """A plain model with the weights of all processes, in the host's memory; itself if it is not sharded.

    All processes must call it. Unless `everywhere`, only the first gets the numbers.
    """
    return composite.mapped(model, lambda part: _whole(part, everywhere or processes.rank() == 0)) if sharded(model) else model


def changed(model: Any, change: Callable[[Any], None]) -> Any:
    """The model after a change of its form or weights: itself, or if it is sharded another one."""
    if not sharded(model):
        change(model)
        return model
    device, plain = next(model.parameters()).device, whole(model)
    change(plain)
    return composite.mapped(plain, lambda part: shard(part, device))


def shell(model: Any) -> Any:
    """A shallow copy: of a sharded model one of its plain type, whose passes gather weights as those of the model do."""
    if FORM not in model.__dict__:
        return copy.copy(model)
    found = object.__new__(type(model.__dict__[FORM]))
    found.__dict__.update(model.__dict__)
    return found


def _whole(model: Any, wanted: bool) -> Any:
    form = model.__dict__[FORM]
    full = {name: full_tensor(weight, wanted) for name, weight in model.named_parameters()}
    kept = {name: weight.requires_grad for name, weight in model.named_parameters()}
    if not wanted:
        return form
    found = {id(weight): nn.Parameter(full[name], kept[name]) for name, weight in form.named_parameters()}
    return copy.deepcopy(form, found)


def _filled(model: M, number: Callable[[nn.Parameter], Tensor]) -> M:
    """A model of the same form with other weights; weights that are tied stay so."""
    memo = {id(weight): nn.Parameter(number(weight), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, memo)


def full_tensor(x: Tensor, wanted: bool = True) -> Any:
    """The parts of a tensor of all processes as one in the host's memory, a plain tensor as it is; None unless `wanted`."""
    found: Any = x.detach()
    found = found.full_tensor().cpu() if divided(found) else found
    return found if wanted else None


def divided(x: Any) -> bool:
    """Whether a tensor is divided among processes."""
    return hasattr(x, "to_local")


def own(x: Tensor) -> Tensor:
    """The part of a tensor that this process holds, which shares its memory: dimension 0 is divided."""
    found: Tensor = x.to_local() if divided(x) else x  # type: ignore[attr-defined]
    return found


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of one that is divided."""
    if not divided(like):
        return whole
    parts = whole.chunk(dist.get_world_size())
    return parts[dist.get_rank()].clone() if dist.get_rank() < len(parts) else whole[:0]


def _as(part: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """The context of work without gradients in which each process holds all weights of models, and need not be in step.

    All processes must enter it. Without a sharded model nothing happens.
    """
    units = [unit for model in models if isinstance(model, nn.Module) and sharded(model) for unit in _units(model)]
    units = [unit for unit in dict.fromkeys(units) if any(divided(weight) for weight in unit.parameters())]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def _units(model: nn.Module) -> Iterable[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (module for module in model.modules() if isinstance(module, FSDPModule))


def by_rows(read: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout, *models: Any) -> tuple[Tensor, ...]:
    """What `read` returns of a rollout without a gradient, each process reading rows of its own: [B, R] -> [B, ...] each.

    Of sharded models all read as many rows, so that they make the same passes.
    """
    return processes.by_rows(read, rollout, any(isinstance(model, nn.Module) and sharded(model) for model in models))


def stepped(weight: nn.Parameter) -> nn.Parameter:
    """What an optimizer changes of a weight: itself, or the part that this process holds."""
    return nn.Parameter(own(weight.detach())) if divided(weight) else weight


def clipped(weights: list[nn.Parameter], parts: list[nn.Parameter], most: float) -> Tensor:
    """Move the gradients of weights to the parts that are stepped, and clip them by the norm of all, which is returned: [].

    The gradients of weights that are not divided are sums over the processes already.
    """
    mine, same = torch.zeros((), device=parts[0].device), torch.zeros((), device=parts[0].device)
    for weight, part in zip(weights, parts, strict=True):
        if weight.grad is None:
            continue
        if divided(weight):
            part.grad, weight.grad = own(weight.grad), None
        square = part.grad.square().sum() if part.grad is not None else 0.0
        mine, same = (mine + square, same) if divided(weight) else (mine, same + square)
    dist.all_reduce(mine)
    norm = (mine + same).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parts, most, norm)
    return norm


def state_of(it: Any) -> Any:
    """What the `state_dict` of an object returns, with whole weights where it is a network with divided ones."""
    state = it.state_dict()
    if not isinstance(it, nn.Module):
        return state
    return type(state)((name, full_tensor(x) if divided(x) else x) for name, x in state.items())


def fill(it: Any, state: Any) -> None:
    """Load what `state_of` returned."""
    if isinstance(it, nn.Module):
        like = it.state_dict()
        state = {k: _as(own_part(x, like[k]), like[k]) if divided(like.get(k)) else x for k, x in state.items()}
    it.load_state_dict(state)


def whole_moments(state: dict[str, Any], weights: list[nn.Parameter]) -> dict[str, Any]:
    """The state of an optimizer of parts as that of one of whole weights, in their order."""
    return _moments(state, weights, lambda x, like: full_tensor(_as(x, like)))


def own_moments(state: dict[str, Any], weights: list[nn.Parameter]) -> dict[str, Any]:
    """The state of an optimizer of whole weights as that of one of the parts of this process."""
    return _moments(state, weights, own_part)


def _moments(state: dict[str, Any], weights: list[nn.Parameter], made: Callable[[Tensor, Any], Tensor]) -> dict[str, Any]:
    if not any(map(divided, weights)):
        return state
    found = {
        i: {name: made(x, weights[i]) if divided(weights[i]) and x.dim() else x for name, x in moments.items()}
        for i, moments in state["state"].items()
    }
    return {**state, "state": found}
