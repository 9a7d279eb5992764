"""Several language models that answer as one: a model to `harness.policy.policy`, the sampler and every measurement.

The logits are base + alpha (expert - anti-expert), as in DExperts (Liu et al. 2021, arXiv:2105.03023, equation 2): a
product of experts in which a token that the anti-expert likes loses what the expert does not give it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from harness.core.files import read_json
from harness.policy import caches as caching

PARTS = ("base", "expert", "anti_expert")


class Ensemble(nn.Module):
    """Three causal language models of one vocabulary as one: logits base + alpha (expert - anti-expert).

    DExperts, Liu et al. 2021 (arXiv:2105.03023), equation 2.
    """

    passes = len(PARTS)

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

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face folder for each model, and alpha in `ensemble.json`."""
        for part in PARTS:
            getattr(self, part).save_pretrained(folder / part)
        write_alpha(self, folder)


class Caches:
    """The caches of the parts, which grow, repeat and lose rows together."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def folders(model: Any, folder: Path) -> dict[Path, Any]:
    """Where `save_pretrained` puts each of a model's own models: three for an ensemble, one for any other."""
    if isinstance(model, Ensemble):
        return {folder / part: getattr(model, part) for part in PARTS}
    return {folder: model}


def combined(base: Tensor, expert: Tensor, anti_expert: Tensor, alpha: float) -> Tensor:
    """Logits of the ensemble: three times [..., V] -> [..., V]."""
    return base + alpha * (expert - anti_expert)


def write_alpha(model: Any, folder: Path) -> None:
    """Write alpha in `ensemble.json` if a model is an ensemble."""
    if isinstance(model, Ensemble):
        (folder / "ensemble.json").write_text(json.dumps({"alpha": model.alpha}))


def mapped(model: Any, change: Callable[[Any], Any]) -> Any:
    """A model with each of its own models changed: three of an ensemble, one of any other."""
    if isinstance(model, Ensemble):
        base, expert, anti_expert = (change(getattr(model, part)) for part in PARTS)
        return Ensemble(base, expert, anti_expert, model.alpha)
    return change(model)


def read(folder: Path, one: Callable[[Path], Any]) -> Any:
    """The model that a policy's folder holds, plain or an ensemble, each model read by `one`."""
    if (folder / "ensemble.json").is_file():
        alpha = float(read_json(folder / "ensemble.json")["alpha"])
        base, expert, anti_expert = (one(folder / part) for part in PARTS)
        return Ensemble(base, expert, anti_expert, alpha)
    return one(folder)
