"""Several language models that answer as one: a model to `harness.policy.policy`, the sampler and every measurement.

The logits are base + alpha (expert - anti-expert), as in DExperts (Liu et al. 2021, arXiv:2105.03023, equation 2): a
product of experts in which a token that the anti-expert likes loses what the expert does not give it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.policy import caches as caching

PARTS = ("base", "expert", "anti_expert")


class Ensemble(nn.Module):
    """Three causal language models of one vocabulary as one: logits base + alpha (expert - anti-expert).

    DExperts, Liu et al. 2021 (arXiv:2105.03023), equation 2.
    """

    passes = len(PARTS)
    PARTS: ClassVar[tuple[str, ...]] = PARTS

    def __init__(self, base: nn.Module, expert: nn.Module, anti_expert: nn.Module, alpha: float) -> None:
        super().__init__()
        self.base: Any = base
        self.expert, self.anti_expert, self.alpha = expert, anti_expert, alpha

    @property
    def config(self) -> Any:
        """The Hugging Face config of the base model."""
        return self.base.config

    def forward(self, *, cache: Caches | None = None, use_cache: bool = False, **inputs: Any) -> SimpleNamespace:
        """The combined logits [B, T, V] and the caches of the three models, for the inputs of a Hugging Face model."""
        parts = [getattr(self, part) for part in PARTS]
        if use_cache:
            caches = cache.parts if cache is not None else [None] * len(PARTS)
            out, grown = zip(*(caching.forward(part, c, **inputs) for part, c in zip(parts, caches, strict=True)), strict=True)
        else:
            out, grown = tuple(caching.call(part, use_cache=False, **inputs) for part in parts), ()
        base, expert, anti_expert = (o.logits.float() for o in out)
        return SimpleNamespace(logits=combined(base, expert, anti_expert, self.alpha), cache=Caches(list(grown)))

    def parts(self) -> dict[str, Any]:
        """The three models by name."""
        return {part: getattr(self, part) for part in PARTS}

    def state(self) -> dict[str, Any]:
        """Alpha, for `ensemble.json`."""
        return {"alpha": self.alpha}

    @classmethod
    def of(cls, parts: dict[str, Any], state: dict[str, Any]) -> Ensemble:
        """The ensemble of such models with such a state."""
        return cls(**parts, alpha=float(state["alpha"]))


class Caches:
    """The caches of the parts, which grow, repeat and lose rows together."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def combined(base: Tensor, expert: Tensor, anti_expert: Tensor, alpha: float) -> Tensor:
    """Logits of the ensemble: three times [..., V] -> [..., V]."""
    return base + alpha * (expert - anti_expert)
