"""The last hidden states of GPT-2 and Llama from packed tokens, by the arithmetic of their modules.

As the model's own forward, but that all linear layers read the tokens of the batch at once, that the last layer goes on only
where a response token is predicted, and that what is cheap to compute is computed again in the backward pass, not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .packed import Packed
from .terms import slices

GELU = 2 * (2 / torch.pi) ** 0.5  # GELU's tanh form is x s(GELU (x + CUBE x^3)), s the logistic function
CUBE = 0.044715
ROWS = 256  # tokens of an MLP at once: what lies between its products then stays in a processor's cache


def gpt2(model: Any, packed: Packed) -> Tensor:
    """The last hidden states of GPT-2 where response tokens are predicted: [N] -> [n, D]."""
    body = model.transformer
    x = body.wte(packed.tokens) + body.wpe(packed.position)
    for i, block in enumerate(body.h):
        attention, mlp = block.attn, block.mlp
        qkv = _conv1d(attention.c_attn, _layer_norm(block.ln_1, x)).view(len(x), 3, model.config.n_head, -1)
        heads = torch.cat([_attend(attention.scaling, *part.unbind(2)) for part in _by_group(qkv, packed)])
        if i == len(body.h) - 1:
            x, heads = x.index_select(0, packed.predicts), heads.index_select(0, packed.predicts)
        x = x + _conv1d(attention.c_proj, heads)
        x = x + _mlp(mlp, _layer_norm(block.ln_2, x))
    return _layer_norm(body.ln_f, x)


def llama(model: Any, packed: Packed) -> Tensor:
    """The last hidden states of Llama where response tokens are predicted: [N] -> [n, D]."""
    body = model.model
    x = body.embed_tokens(packed.tokens)
    turn = [part[0, :, None] for part in body.rotary_emb(x[None], position_ids=packed.position[None])]  # [N, 1, D of a head]
    for i, layer in enumerate(body.layers):
        attention, mlp = layer.self_attn, layer.mlp
        projected = _normed_linear(layer.input_layernorm, x, attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (part.view(len(x), -1, attention.head_dim) for part in projected)
        split = [_by_group(part, packed) for part in (rotated(q, *turn), rotated(k, *turn), v)]
        heads = torch.cat([_attend(attention.scaling, *parts) for parts in zip(*split, strict=True)])
        if i == len(body.layers) - 1:
            x, heads = x.index_select(0, packed.predicts), heads.index_select(0, packed.predicts)
        x = x + attention.o_proj(heads)
        x = x + _gated(mlp, *_normed_linear(layer.post_attention_layernorm, x, mlp.gate_proj, mlp.up_proj))
    found: Tensor = _RMSNormLinear.apply(x, body.norm.weight, body.norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return found


STATES: dict[str, Callable[[Any, Packed], Tensor]] = {"GPT2LMHeadModel": gpt2, "LlamaForCausalLM": llama}


def _by_group(x: Tensor, packed: Packed) -> list[Tensor]:
    """[N, ...] -> [rows, width, ...] of each group."""
    parts = x.split([rows * width for rows, width in packed.groups])
    return [part.view(rows, width, *x.shape[1:]) for part, (rows, width) in zip(parts, packed.groups, strict=True)]


def _attend(scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention: [rows, width, heads, D of a head], fewer heads of k and v -> [rows * width, heads * D of a head]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).reshape(out.shape[0] * out.shape[2], -1)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """GPT-2's MLP."""
    if type(mlp.act).__name__ != "GELUTanh":
        return _conv1d(mlp.c_proj, mlp.act(_conv1d(mlp.c_fc, x)))
    weights = mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias
    found: Tensor = _GELUMLP.apply(x, *weights)  # type: ignore[no-untyped-call]
    return found


def _gated(mlp: Any, gate: Tensor, up: Tensor) -> Tensor:
    """The second half of Llama's MLP."""
    if type(mlp.act_fn).__name__ not in ("SiLUActivation", "SiLU") or mlp.down_proj.bias is not None:
        found: Tensor = mlp.down_proj(mlp.act_fn(gate) * up)
        return found
    found = _SwiGLULinear.apply(gate, up, mlp.down_proj.weight)  # type: ignore[no-untyped-call]
    return found


def _normed_linear(norm: Any, x: Tensor, *projections: nn.Linear) -> tuple[Tensor, ...]:
    """RMS norm and the projections that read it."""
    weights = [part for p in projections for part in (p.weight, p.bias)]
    found: tuple[Tensor, ...] = _RMSNormLinear.apply(x, norm.weight, norm.variance_epsilon, *weights)  # type: ignore[no-untyped-call]
    return found


class _GELUMLP(Function):
    """gelu(x @ w1 + b1) @ w2 + b2, with the tanh form of GELU, some rows at a time: [N, D] -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        inner, found = x.new_empty(len(x), w1.shape[1]), x.new_empty(len(x), w2.shape[1])
        for rows in slices(len(x), ROWS):
            u = torch.addmm(b1, x[rows], w1, out=inner[rows])
            torch.addmm(b2, _logistic(u).mul_(u), w2, out=found[rows])
        ctx.save_for_backward(x, inner, w1, w2)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """d (u s(v)) / d u = s + u s (1 - s) v', with v' = GELU (1 + 3 CUBE u^2)."""
        x, inner, w1, w2 = ctx.saved_tensors
        into, into_w1, into_b1, into_w2 = (
            torch.empty_like(x),
            torch.zeros_like(w1),
            x.new_zeros(w1.shape[1]),
            torch.zeros_like(w2),
        )
        for rows in slices(len(x), ROWS):
            u, g = inner[rows], grads[0][rows]
            s = _logistic(u)
            value = u * s
            into_w2.addmm_(value.t(), g)
            slope = (u * u).mul_(3 * GELU * CUBE).add_(GELU).mul_(value.addcmul_(value, s, value=-1)).add_(s)
            du = slope.mul_(g @ w2.t())
            into_w1.addmm_(x[rows].t(), du)
            into_b1 += du.sum(0)
            torch.mm(du, w1.t(), out=into[rows])
        return into, into_w1, into_b1, into_w2, grads[0].sum(0)


def _logistic(u: Tensor) -> Tensor:
    """The logistic function by which GELU's tanh form multiplies its input: [n, D] -> [n, D]."""
    return (u * u).mul_(GELU * CUBE).add_(GELU).mul_(u).sigmoid_()


class _SwiGLULinear(Function):
    """(silu(gate) * up) @ weight.T, some rows at a time: -> [N, D]. Only gate and up are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        found = gate.new_empty(len(gate), len(weight))
        for rows in slices(len(gate), ROWS):
            torch.mm(F.silu(gate[rows]).mul_(up[rows]), weight.t(), out=found[rows])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d (g s(g)) / d g = s + g s (1 - s), with s the logistic function."""
        gate, up, weight = ctx.saved_tensors
        into_gate, into_up, into_weight = torch.empty_like(gate), torch.empty_like(up), torch.zeros_like(weight)
        for rows in slices(len(gate), ROWS):
            s, inner = gate[rows].sigmoid(), grads[0][rows] @ weight
            value = gate[rows] * s
            into_weight.addmm_(grads[0][rows].t(), value * up[rows])
            torch.mul(inner, value, out=into_up[rows])
            slope = value.addcmul_(value, s, value=-1).add_(s)
            torch.mul(slope, inner.mul_(up[rows]), out=into_gate[rows])
        return into_gate, into_up, into_weight


class _RMSNormLinear(Function):
    """x / rms(x) * scale, and projections of it if there are any; the input alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, *weights: Tensor | None) -> Any:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale, inverse, *weights)
        normed = (x * inverse).mul_(scale)
        if not weights:
            return normed
        return tuple(F.linear(normed, *weights[i : i + 2]) for i in range(0, len(weights), 2))  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """d y / d x = (g - x mean(g x) / rms^2) / rms, with g the gradient for x / rms."""
        x, scale, inverse, *weights = ctx.saved_tensors
        unit = x * inverse
        into: list[Tensor | None] = []
        inner = grads[0] if not weights else None
        normed = unit * scale
        for grad, weight, bias in zip(grads, weights[::2], weights[1::2], strict=False):
            inner = grad @ weight if inner is None else inner.addmm_(grad, weight)
            into += [grad.t() @ normed, None if bias is None else grad.sum(0)]
        assert inner is not None
        into_scale = (inner * unit).sum(0)
        g = inner * scale
        into_x = (g - unit * (g * unit).mean(-1, keepdim=True)).mul_(inverse)
        return into_x, into_scale, None, *into


def _conv1d(module: Any, x: Tensor) -> Tensor:
    return torch.addmm(module.bias, x, module.weight)


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys turned by their position (Su et al. 2021, arXiv:2104.09864, section 3.4): [N, heads, D] -> the same."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin
