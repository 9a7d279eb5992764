"""How a policy reads prompts and then one token a step: by the model's own forward, or directly for GPT-2 and Llama.

The direct way computes the same step without the overhead of modules: projections that read the same input are one matrix
product, and keys and values are written into tensors of their final size. Prompts are read by the model's own forward in
both. `decoder` chooses; a model that differs in any module from its family's is read by its own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.core.types import Prompts

from . import caches
from .logprobs.families import family_of
from .policy import Policy, positions

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Attention of a layer: queries, keys and values of the new token [A, heads, D of a head], scale -> [A, heads * D]."""


class Decoder(Protocol):
    """Reads a batch of prompts, then one token of each response a step; [A] are the responses that go on."""

    movable: bool  # whether responses can be left out, known after `start`

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor: ...  # n responses of `steps` tokens: -> [B * n, V]
    def step(self, token: Tensor) -> Tensor: ...  # the last token of each response: [A] -> [A, V]
    def keep(self, rows: Tensor) -> None: ...  # the responses that go on, by their place among those before


def decoder(policy: Policy) -> Decoder:
    """The decoder of a policy: direct if every module of its model is one of a known family's, else by the model's forward."""
    family = family_of(policy.model)
    return OwnForward(policy) if family is None else Direct(policy, STEPS[family](policy.model))


class OwnForward:
    """Decoding by the model's own forward and cache, whatever its architecture."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.movable = policy, False
        self.cache: Any = None

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor:
        copies = torch.arange(len(prompts.tokens), device=prompts.tokens.device).repeat_interleave(n)
        logits, self.cache = read(self.policy, prompts)
        self.movable = caches.movable(self.cache)
        if n > 1 and self.movable:
            caches.take(self.cache, copies)
            logits = logits[copies]
        elif n > 1:  # a cache that can only grow: read every copy
            logits, self.cache = read(self.policy, Prompts(*(x[copies] for x in prompts)))
        self.mask, self.column, self.position = widened(prompts.mask[copies], steps)
        return logits

    def step(self, token: Tensor) -> Tensor:
        self.column += 1
        mask, position = self.mask[:, : self.column], self.position[:, None]
        logits, self.cache = forward(self.policy, self.cache, token[:, None], mask, position)
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        caches.take(self.cache, rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class Steps(Protocol):
    """The arithmetic of one architecture for one token of each response."""

    def embed(self, token: Tensor, position: Tensor) -> Tensor: ...  # [A], [A] -> [A, D]
    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor: ...  # [A, D] -> [A, D]
    def head(self, x: Tensor) -> Tensor: ...  # [A, D] -> logits [A, V]


class Direct:
    """Decoding by the arithmetic of a known architecture, with keys and values in tensors of their final size."""

    movable = True

    def __init__(self, policy: Policy, steps: Steps) -> None:
        self.policy, self.steps = policy, steps
        self.keys: list[Tensor] = []  # a layer each: [A, heads, columns, D of a head]
        self.values: list[Tensor] = []

    def start(self, prompts: Prompts, n: int, steps: int) -> Tensor:
        logits, cache = read(self.policy, prompts)
        self.mask, self.column, self.position = widened(prompts.mask.repeat_interleave(n, 0), steps)
        self.padded = not bool(prompts.mask.all())
        for layer in cache.layers:
            self.keys.append(_room(layer.keys, n, steps))
            self.values.append(_room(layer.values, n, steps))
        return logits.repeat_interleave(n, 0)

    def step(self, token: Tensor) -> Tensor:
        with self.policy.computing():
            x = self.steps.embed(token, self.position)
            for i in range(len(self.keys)):
                x = self.steps.layer(i, x, partial(self._attend, i))
            logits = self.steps.head(x)
        self.column += 1
        self.position = self.position + 1
        return logits[:, : self.policy.vocab_size].float()

    def keep(self, rows: Tensor) -> None:
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.keys, self.values = ([x[rows] for x in layers] for layers in (self.keys, self.values))

    def _attend(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one token of each response, whose key and value are stored: [A, heads, D] each -> [A, heads * D].

        Query heads that share a key are rows of one product, so that grouped keys are not repeated.
        """
        end = self.column + 1
        self.keys[i][:, :, self.column], self.values[i][:, :, self.column] = k, v
        mask = self.mask[:, None, None, :end] if self.padded else None
        grouped = q.view(len(q), k.shape[1], -1, q.shape[-1]).to(k.dtype)
        keys, values = self.keys[i][:, :, :end], self.values[i][:, :, :end]
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(len(q), -1)


class GPT2Steps:
    """GPT-2: learned positions, layer norm before each part (Radford et al. 2019, section 2.3)."""

    def __init__(self, model: Any) -> None:
        self.body, self.logits = model.transformer, model.lm_head.weight
        self.heads = model.config.n_head

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        # by the modules, so that hooks on embeddings count every token that a model reads
        found: Tensor = self.body.wte(token[:, None])[:, 0] + self.body.wpe(position[:, None])[:, 0]
        return found

    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor:
        block = self.body.h[i]
        attention, mlp = block.attn, block.mlp
        qkv = _conv1d(attention.c_attn, _layer_norm(block.ln_1, x)).view(len(x), 3, self.heads, -1)
        q, k, v = qkv.unbind(1)
        x = x + _conv1d(attention.c_proj, attend(q, k, v, attention.scaling))
        return x + _conv1d(mlp.c_proj, mlp.act(_conv1d(mlp.c_fc, _layer_norm(block.ln_2, x))))

    def head(self, x: Tensor) -> Tensor:
        return F.linear(_layer_norm(self.body.ln_f, x), self.logits)


class LlamaSteps:
    """Llama: rotary positions, RMS norm, a gated MLP, grouped keys (Touvron et al. 2023, arXiv:2307.09288, section 2.2)."""

    def __init__(self, model: Any) -> None:
        self.body, self.logits = model.model, model.lm_head.weight
        self.fused = [_fused(layer) for layer in self.body.layers]
        self.turn: tuple[Tensor, Tensor]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        x: Tensor = self.body.embed_tokens(token[:, None])[:, 0]
        cos, sin = self.body.rotary_emb(x[:, None], position_ids=position[:, None])
        self.turn = cos, sin  # [A, 1, D of a head], which all heads share
        return x

    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor:
        layer, fused = self.body.layers[i], self.fused[i]
        attention, mlp = layer.self_attn, layer.mlp
        qkv = F.linear(_rms_norm(layer.input_layernorm, x), *fused.attention).view(len(x), -1, attention.head_dim)
        groups = attention.k_proj.out_features // attention.head_dim
        q, k, v = qkv.split([qkv.shape[1] - 2 * groups, groups, groups], 1)
        x = x + attention.o_proj(attend(_rotated(q, *self.turn), _rotated(k, *self.turn), v, attention.scaling))
        gate, up = F.linear(_rms_norm(layer.post_attention_layernorm, x), *fused.mlp).chunk(2, -1)
        found: Tensor = x + mlp.down_proj(mlp.act_fn(gate) * up)
        return found

    def head(self, x: Tensor) -> Tensor:
        return F.linear(_rms_norm(self.body.norm, x), self.logits)


class Fused(NamedTuple):
    """Weight and bias of projections that read the same input, one above the other."""

    attention: tuple[Tensor, Tensor | None]  # query, key, value
    mlp: tuple[Tensor, Tensor | None]  # gate, up


STEPS: dict[str, Callable[[Any], Steps]] = {"GPT2LMHeadModel": GPT2Steps, "LlamaForCausalLM": LlamaSteps}


def read(policy: Policy, prompts: Prompts) -> tuple[Tensor, Any]:
    """Read prompts by the model's own forward: -> logits after the last column [B, V], cache."""
    return forward(policy, None, prompts.tokens, prompts.mask, positions(prompts.mask))


def forward(policy: Policy, cache: Any, tokens: Tensor, mask: Tensor, position: Tensor) -> tuple[Tensor, Any]:
    """Logits after the last column, and the cache that holds all columns: -> [B, V]."""
    inputs = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": position, "logits_to_keep": 1}
    with policy.computing():
        out, cache = caches.forward(policy.model, cache, **inputs)
    return out.logits[:, -1, : policy.vocab_size].float(), cache


def widened(mask: Tensor, steps: int) -> tuple[Tensor, int, Tensor]:
    """The mask with room for R tokens, the columns in use, and the position of the next token: [B, P] -> [B, P + R], P, [B]."""
    room = torch.ones(len(mask), steps, dtype=torch.bool, device=mask.device)
    return torch.cat([mask, room], 1), mask.shape[1], mask.sum(1)


def _room(x: Tensor, n: int, steps: int) -> Tensor:
    """Keys or values of prompts, n times, with room for a response: [B, heads, P, D] -> [B * n, heads, P + R, D]."""
    batch, heads, columns, size = x.shape
    wide = x.new_empty(batch, n, heads, columns + steps, size)
    wide[:, :, :, :columns] = x[:, None]
    return wide.flatten(0, 1)


def _conv1d(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, module.weight.t(), module.bias)


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
    found: Tensor = module.weight * wide.to(x.dtype)
    return found


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys turned by their position (Su et al. 2021, arXiv:2104.09864, section 3.4): [A, heads, D] -> the same."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _fused(layer: Any) -> Fused:
    attention, mlp = layer.self_attn, layer.mlp
    return Fused(_stacked(attention.q_proj, attention.k_proj, attention.v_proj), _stacked(mlp.gate_proj, mlp.up_proj))


def _stacked(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return torch.cat([part.weight for part in parts]), bias
