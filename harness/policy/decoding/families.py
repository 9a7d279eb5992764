"""The arithmetic of one token by GPT-2 and by Llama."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.policy.logprobs.blocks import rotated

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Attention of a layer: queries, keys and values of the new token [A, heads, D of a head], scale -> [A, heads * D]."""
Weights = tuple[Tensor, Tensor | None]
"""Weight [out, in] and bias [out] of a matrix product, in the data type of the pass."""


class Steps(Protocol):
    """The arithmetic of one architecture for one token of each response."""

    @property
    def kind(self) -> torch.dtype: ...  # of matrix products, keys and values
    @property
    def layers(self) -> Sequence[Any]: ...  # the weights of each

    def embed(self, token: Tensor, position: Tensor) -> Tensor: ...  # [A], [A] -> [A, D]
    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor: ...  # [A, D] -> [A, D]
    def head(self, x: Tensor) -> Tensor: ...  # [A, D] -> logits [A, V]


class GPT2Layer(NamedTuple):
    """The weights of a block; query, key and value are one product."""

    first_norm: nn.LayerNorm
    qkv: Weights
    out: Weights
    second_norm: nn.LayerNorm
    up: Weights
    down: Weights


class GPT2Steps:
    """GPT-2: learned positions, layer norm before each part (Radford et al. 2019, section 2.3)."""

    def __init__(self, model: Any, precision: torch.dtype) -> None:
        self.body, self.heads = model.transformer, model.config.n_head
        self.kind = narrower(model, precision)
        self.layers = [self._weights(block) for block in self.body.h]
        self.logits = even(model.lm_head.weight.to(self.kind))

    def _weights(self, block: Any) -> GPT2Layer:
        attention, mlp = block.attn, block.mlp
        qkv, out, up, down = (self._conv1d(x) for x in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj))
        return GPT2Layer(block.ln_1, qkv, out, block.ln_2, up, down)

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        # by the modules, so that hooks on embeddings count every token that a model reads
        found: Tensor = self.body.wte(token[:, None])[:, 0] + self.body.wpe(position[:, None])[:, 0]
        return found

    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor:
        w, block = self.layers[i], self.body.h[i]
        qkv = F.linear(self._norm(w.first_norm, x), *w.qkv).view(len(x), 3, self.heads, -1)
        q, k, v = qkv.unbind(1)
        x = x + F.linear(attend(q, k, v, block.attn.scaling), *w.out)
        return x + F.linear(block.mlp.act(F.linear(self._norm(w.second_norm, x), *w.up)), *w.down)

    def head(self, x: Tensor) -> Tensor:
        return F.linear(self._norm(self.body.ln_f, x), self.logits)

    def _conv1d(self, module: Any) -> Weights:
        return module.weight.t().to(self.kind), module.bias.to(self.kind)

    def _norm(self, module: nn.LayerNorm, x: Tensor) -> Tensor:
        assert module.weight is not None
        weight, bias = module.weight.float(), module.bias.float()
        return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps).to(self.kind)


class LlamaLayer(NamedTuple):
    """The weights of a layer; query, key and value are one product, gate and up another."""

    first_norm: Any
    qkv: Weights
    out: Weights
    second_norm: Any
    gate_up: Weights
    down: Weights


class LlamaSteps:
    """Llama: rotary positions, RMS norm, a gated MLP, grouped keys (Touvron et al. 2023, arXiv:2307.09288, section 2.2)."""

    def __init__(self, model: Any, precision: torch.dtype) -> None:
        self.body = model.model
        self.kind = narrower(model, precision)
        self.layers = [self._weights(layer) for layer in self.body.layers]
        self.logits = even(model.lm_head.weight.to(self.kind))
        self.turn: tuple[Tensor, Tensor]

    def _weights(self, layer: Any) -> LlamaLayer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = self._stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        out, gate_up, down = (
            self._stacked(attention.o_proj),
            self._stacked(mlp.gate_proj, mlp.up_proj),
            self._stacked(mlp.down_proj),
        )
        return LlamaLayer(layer.input_layernorm, qkv, out, layer.post_attention_layernorm, gate_up, down)

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        x: Tensor = self.body.embed_tokens(token[:, None])[:, 0]
        cos, sin = self.body.rotary_emb(x[:, None], position_ids=position[:, None])
        self.turn = cos, sin  # [A, 1, D of a head], which all heads share
        return x

    def layer(self, i: int, x: Tensor, attend: Attend) -> Tensor:
        w, layer = self.layers[i], self.body.layers[i]
        attention = layer.self_attn
        qkv = F.linear(self._norm(w.first_norm, x), *w.qkv).view(len(x), -1, attention.head_dim)
        groups = attention.k_proj.out_features // attention.head_dim
        q, k, v = qkv.split([qkv.shape[1] - 2 * groups, groups, groups], 1)
        turned = rotated(q, *self.turn).to(self.kind), rotated(k, *self.turn).to(self.kind)
        x = x + F.linear(attend(*turned, v, attention.scaling), *w.out)
        gate, up = F.linear(self._norm(w.second_norm, x), *w.gate_up).chunk(2, -1)
        found: Tensor = x + F.linear(layer.mlp.act_fn(gate) * up, *w.down)
        return found

    def head(self, x: Tensor) -> Tensor:
        return F.linear(self._norm(self.body.norm, x), self.logits)

    def _stacked(self, *parts: nn.Linear) -> Weights:
        """Projections that read the same input, one above the other."""
        whole = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts]).to(self.kind)
        return whole.to(self.kind), bias

    def _norm(self, module: Any, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
        found: Tensor = (module.weight * wide).to(self.kind)
        return found


STEPS: dict[str, Callable[[Any, torch.dtype], Steps]] = {"GPT2LMHeadModel": GPT2Steps, "LlamaForCausalLM": LlamaSteps}


def narrower(model: Any, precision: torch.dtype) -> torch.dtype:
    """The data type of matrix products: that of the pass, or of weights that are narrower already."""
    stored: torch.dtype = model.get_output_embeddings().weight.dtype
    return stored if precision == torch.float32 else precision


def even(weight: Tensor) -> Tensor:
    """The output head with rows of zeros up to a multiple of 64: a GPU has no fast product for an odd vocabulary."""
    return F.pad(weight, (0, 0, 0, -len(weight) % 64)) if weight.is_cuda else weight
