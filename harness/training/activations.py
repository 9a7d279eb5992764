"""What a layer of a policy leaves in the residual stream where response tokens are predicted."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from harness.core.types import Rollout
from harness.policy.logprobs import gather
from harness.policy.logprobs.rows import after, aligned
from harness.policy.models.sharding import sharded
from harness.policy.models.steered import hooked, layers_of
from harness.policy.policy import Policy, tokens_of


def activations(policy: Policy, rollout: Rollout, layer: int, trained: int | None = None) -> Tensor:
    """What a layer leaves where a response token is predicted, float32: [B, R] -> [B, R, D]; charged as a forward pass.

    Layers are counted from 0. Only `trained` of them get a gradient, this one the last (with the first of all its table of
    positions, if there is one); None stands for all below. Where the response mask is False the values are finite and
    arbitrary. Raises BadSetting for a model whose layers are not found.
    """
    policy.count(tokens_of(rollout))
    read = partial(_read, policy, layer=layer, trained=trained)
    return gather.read_states(lambda rows: policy.by_rows(read, rows)[0], rollout, sharded(policy.model))


def _read(policy: Policy, rollout: Rollout, layer: int, trained: int | None) -> tuple[Tensor]:
    (tokens, start), seen, layers = aligned(rollout), list[Tensor](), layers_of(policy.model)
    below = None
    if trained is not None:
        below = layers[layer - trained] if trained <= layer else policy.model.get_input_embeddings()
    with hooked(layers[layer], seen.append), hooked(below, Tensor.detach):
        policy.last_states(tokens)
    return (after(seen[0], start, rollout),)
