"""A language model that is read twice, with and without a text before the prompt that calls for the habit.

A token that this text makes likelier is made less likely, as in self-debiasing (Schick et al. 2021, arXiv:2103.00453, section
4): p(w) exp(decay * min(0, p(w) - p_told(w))), renormalised.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.core.errors import BadSetting
from harness.policy import caches as caching
from harness.policy import configs

from .ensemble import Caches


class SelfDebiased(nn.Module):
    """A causal language model, read a second time with `told` tokens before the text, after its BOS if it has one.

    What the second reading makes likelier loses exp(decay * difference of the probabilities) (Schick et al. 2021, section 4).
    """

    passes = 2
    PARTS: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(self, base: nn.Module, told: tuple[int, ...], decay: float, bos: int) -> None:
        super().__init__()
        self.base: Any = base
        self.told, self.decay, self.bos = tuple(told), decay, bos

    @property
    def config(self) -> Any:
        """The Hugging Face config of the model."""
        return self.base.config

    @property
    def reserved(self) -> int:
        """Tokens of the context that no prompt or response can have."""
        return len(self.told)

    def forward(
        self, *, input_ids: Tensor, cache: Caches | None = None, use_cache: bool = False, **inputs: Any
    ) -> SimpleNamespace:
        """The combined logits [B, T, V] and the caches of both readings, for the inputs of a Hugging Face model."""
        both = [inputs | {"input_ids": input_ids}, self._told(input_ids, cache is None, inputs)]
        if use_cache:
            caches = cache.parts if cache is not None else [None, None]
            out, grown = zip(*(caching.forward(self.base, c, **i) for c, i in zip(caches, both, strict=True)), strict=True)
        else:
            out, grown = tuple(caching.call(self.base, use_cache=False, **i) for i in both), ()
        plain, told = (o.logits.float() for o in out)
        logits = debiased(plain, told[:, -plain.shape[1] :], self.decay)
        return SimpleNamespace(logits=logits, cache=Caches(list(grown)))

    def _told(self, tokens: Tensor, opening: bool, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of the second reading, whose rows begin with the told tokens: each column stands further right."""
        found, mask, extra = dict(inputs), inputs.get("attention_mask"), len(self.told)
        self._check_room(tokens, inputs.get("position_ids"))
        first = tokens.new_zeros(len(tokens)) if mask is None else (mask == 0).sum(1)
        if mask is not None:
            found["attention_mask"] = (torch.arange(mask.shape[1] + extra, device=mask.device) >= first[:, None]).to(mask)
        if inputs.get("position_ids") is not None:
            found["position_ids"] = inputs["position_ids"] + extra
        if not opening:
            return found | {"input_ids": tokens}
        if inputs.get("position_ids") is not None:
            columns = torch.arange(tokens.shape[1] + extra, device=tokens.device)
            found["position_ids"] = (columns - first[:, None]).clamp(min=0)
        return found | {"input_ids": inserted(tokens, first, tokens.new_tensor(self.told), self.bos)}

    def _check_room(self, tokens: Tensor, position: Tensor | None) -> None:
        """Raise BadSetting where the text and the told tokens before it are more than the model reads at once."""
        length, context = tokens.shape[1] if position is None else int(position.max()) + 1, configs.context_length(self.base)
        if length + len(self.told) > context:
            raise BadSetting(
                f"the text before the prompt has {len(self.told)} tokens, prompt and response {length}, and the model reads "
                f"{context} at once; shorten method.description, or lower method.examples"
            )

    def parts(self) -> dict[str, Any]:
        """The one model."""
        return {"base": self.base}

    def state(self) -> dict[str, Any]:
        """The told tokens, the decay and the BOS, for `debiased.json`."""
        return {"told": list(self.told), "decay": self.decay, "bos": self.bos}

    @classmethod
    def of(cls, parts: dict[str, Any], state: dict[str, Any]) -> SelfDebiased:
        """The model with such a state."""
        return cls(parts["base"], tuple(map(int, state["told"])), float(state["decay"]), int(state["bos"]))


def inserted(tokens: Tensor, first: Tensor, told: Tensor, bos: int) -> Tensor:
    """Rows with tokens put at their first real column, or after a BOS there: [B, T], [B], [K], -> [B, K + T]."""
    extra, column = len(told), torch.arange(tokens.shape[1] + len(told), device=tokens.device)
    opens = tokens.gather(1, first[:, None].clamp(max=tokens.shape[1] - 1)) == bos
    at = first[:, None] + opens
    # columns of the told tokens and of the text beside each other
    source = torch.where(column < at, column + extra, torch.where(column < at + extra, column - at, column))
    return torch.cat([told.expand(len(tokens), -1), tokens], 1).gather(1, source)


def debiased(plain: Tensor, told: Tensor, decay: float) -> Tensor:
    """The logits of the first reading, less where the second has a token likelier: [..., V], [..., V] -> [..., V]."""
    excess = plain.softmax(-1) - told.softmax(-1)
    return plain + decay * excess.clamp(max=0)
