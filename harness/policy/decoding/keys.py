"""Keys and values of a batch in tensors of their final size, and the attention of one token of each response to them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.types import Prompts

ALIGNED = 8  # columns; the mask of a GPU's attention kernel begins each row at a multiple of them


class PerResponse:
    """Each response has its own keys, those of its prompt among them: [A, groups, P + R, D of a head].

    What a processor reads with the least arithmetic.
    """

    def __init__(self, cache: Any, kind: torch.dtype, prompts: Prompts, n: int, steps: int) -> None:
        self.keys = [_room(layer.keys.to(kind), n, steps) for layer in cache.layers]  # a layer each
        self.values = [_room(layer.values.to(kind), n, steps) for layer in cache.layers]
        hidden = torch.where(prompts.mask, 0.0, -torch.inf).to(kind).repeat_interleave(n, 0)
        self.bias = torch.cat([hidden, hidden.new_zeros(len(hidden), steps)], 1)  # [A, P + R]
        self.column = prompts.mask.shape[1]

    def attend(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of layer i, [A, heads, D of a head] and [A, groups, D of a head] twice -> [A, heads * D].

        Query heads that share a key are rows of one product, so that grouped keys are not repeated. The
        library's kernel is made for many queries, and slower for one.
        """
        end = self.column + 1
        self.keys[i][:, :, self.column], self.values[i][:, :, self.column] = k, v
        keys, values = (x[i].flatten(0, 1)[:, :end] for x in (self.keys, self.values))
        grouped = q.reshape(len(keys), -1, q.shape[-1])
        bias = self.bias[:, None, None, :end].expand(-1, k.shape[1], grouped.shape[1], -1).flatten(0, 1)
        shown = torch.baddbmm(bias, grouped, keys.transpose(1, 2), alpha=scale).softmax(-1)
        return torch.bmm(shown, values).reshape(len(q), -1)

    def advance(self) -> None:
        """Go on to the next token."""
        self.column += 1

    def keep(self, rows: Tensor) -> None:
        """Leave out the other responses."""
        self.bias = self.bias[rows]
        self.keys, self.values = ([x[rows] for x in layers] for layers in (self.keys, self.values))


class PerPrompt:
    """The n responses of a prompt share its keys and lie one token of all after the other: [B, groups, P + R * n, D of a head].

    Their queries are rows of one product behind a mask that shows each its own columns: n times the arithmetic of a GPU that
    waits for memory, of which it reads less in larger pieces.
    """

    def __init__(self, cache: Any, kind: torch.dtype, prompts: Prompts, n: int, steps: int) -> None:
        self.n, self.shape = n, (len(prompts.tokens), -(-(prompts.tokens.shape[1] + steps * n) // ALIGNED) * ALIGNED)
        self.keys, self.values = ([self._empty(layer.keys, kind) for layer in cache.layers] for _ in range(2))
        device = prompts.tokens.device
        self.own = torch.zeros(n, n, dtype=kind, device=device).masked_fill_(
            ~torch.eye(n, dtype=torch.bool, device=device), -torch.inf
        )
        self.bias = torch.zeros(self.shape[0], n, self.shape[1], dtype=kind, device=device)
        self.fill(cache, prompts)

    def _empty(self, of: Tensor, kind: torch.dtype) -> Tensor:
        # zeros, not whatever was there: a probability of 0 times a NaN is a NaN
        return torch.zeros(self.shape[0], of.shape[1], self.shape[1], of.shape[3], dtype=kind, device=of.device)

    def fill(self, cache: Any, prompts: Prompts) -> None:
        """The state after prompts, which may be fewer than there is room for, and narrower."""
        batch, width = prompts.tokens.shape
        for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
            keys[:batch, :, :width], values[:batch, :, :width] = layer.keys, layer.values
        self.bias[:batch, :, :width] = torch.where(prompts.mask, 0.0, -torch.inf)[:, None].to(self.bias.dtype)
        steps = (self.shape[1] - width) // self.n
        self.bias[:, :, width:] = -torch.inf
        self.bias[:, :, width : width + steps * self.n] = self.own.repeat(1, steps)
        self.places: Tensor | None = None  # of the responses that go on among all; None if all do
        self.column = width

    def attend(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """As `PerResponse.attend`."""
        end = self.column + self.n
        self.keys[i][:, :, self.column : end], self.values[i][:, :, self.column : end] = self._grid(k), self._grid(v)
        return self._attend(q, self.keys[i][:, :, :end], self.values[i][:, :, :end], self.bias[:, :, :end], scale)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
        batch, groups, size = self.shape[0], keys.shape[1], q.shape[-1]
        per = q.shape[1] // groups  # query heads that share a key: their rows lie one after the other
        grid = self._grid(q).unflatten(1, (groups, per)).flatten(2, 3)
        bias = bias.repeat(1, per, 1) if per > 1 else bias
        out = F.scaled_dot_product_attention(
            grid, keys, values, attn_mask=bias[:, None].expand(-1, groups, -1, -1), scale=scale
        )
        found: Tensor = out.reshape(batch, groups * per, self.n, size).transpose(1, 2).reshape(batch * self.n, -1)
        return found if self.places is None else found.index_select(0, self.places)

    def _grid(self, x: Tensor) -> Tensor:
        """Of the responses that go on, in the places of all: [A, heads, D of a head] -> [B, heads, n, D of a head]."""
        if self.places is not None:
            x = x.new_zeros(self.shape[0] * self.n, *x.shape[1:]).index_copy_(0, self.places, x)
        return x.view(self.shape[0], self.n, *x.shape[1:]).transpose(1, 2)

    def advance(self) -> None:
        """Go on to the next token."""
        self.column += self.n

    def keep(self, rows: Tensor) -> None:
        """Leave out the other responses."""
        self.places = rows if self.places is None else self.places[rows]


class Fixed(PerPrompt):
    """As `PerPrompt`, with the column in a tensor and all columns read at every step: the same kernels for each token."""

    def __init__(self, cache: Any, kind: torch.dtype, prompts: Prompts, n: int, steps: int) -> None:
        self.at = torch.zeros(n, dtype=torch.long, device=prompts.tokens.device)  # the columns of the next tokens
        super().__init__(cache, kind, prompts, n, steps)

    def fill(self, cache: Any, prompts: Prompts) -> None:
        super().fill(cache, prompts)
        self.bias[:, :, self.column :] = -torch.inf  # not yet written
        self.at.copy_(torch.arange(self.n, device=self.at.device) + self.column)

    def attend(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if i == 0:
            self.bias.index_copy_(2, self.at, self.own.expand(len(self.bias), -1, -1))
        self.keys[i].index_copy_(2, self.at, self._grid(k))
        self.values[i].index_copy_(2, self.at, self._grid(v))
        return self._attend(q, self.keys[i], self.values[i], self.bias, scale)

    def advance(self) -> None:
        self.at += self.n


def _room(x: Tensor, n: int, steps: int) -> Tensor:
    """Keys or values of prompts, n times, with room for a response: [B, heads, P, D] -> [B * n, heads, P + R, D]."""
    batch, heads, columns, size = x.shape
    wide = x.new_empty(batch, n, heads, columns + steps, size)
    wide[:, :, :, :columns] = x[:, None]
    return wide.flatten(0, 1)
