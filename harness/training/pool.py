"""A pool of responses with their rewards, split into quantiles: what methods that learn from own samples keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.core.errors import RunFailed
from harness.core.types import Prompts, Rollout


class Pool:
    """All responses so far with their rewards and quantiles, as in Quark (Lu et al. 2022, section 2); nothing is removed."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device  # where responses are drawn to; the pool itself stays in the machine's memory
        self.parts: list[dict[str, Tensor]] = []  # one an exploration
        self.quantile: Tensor = torch.empty(0, dtype=torch.long)

    def add(self, rollout: Rollout, reward: Tensor) -> None:
        """Add the responses that have a reward, as token ids: [B, R], [B] -> None; one call is one exploration."""
        scored = ~reward.isnan()
        fields = {"tokens": rollout.prompts.tokens, "mask": rollout.prompts.mask, "response": rollout.response}
        part = {k: v.cpu()[scored] for k, v in (fields | {"response_mask": rollout.response_mask}).items()}
        self.parts.append(part | {"reward": reward[scored]})

    def quantize(self, k: int, rng: torch.Generator) -> None:
        """Assign each response one of k quantiles of reward, 0 the lowest, k - 1 the highest; ties are ordered at random.

        Raises RunFailed if the pool holds fewer than k responses.
        """
        reward = self.rewards()
        if len(reward) < k:
            raise RunFailed(
                f"the pool holds {len(reward)} scored responses, fewer than its {k} quantiles; raise explore_prompts"
            )
        shuffled = torch.randperm(len(reward), generator=rng)
        rank = torch.empty_like(shuffled)
        rank[shuffled[reward[shuffled].argsort(stable=True)]] = torch.arange(len(reward))
        self.quantile = rank * k // len(reward)

    def draw(self, n: int, rng: torch.Generator, quantile: int | range | None = None) -> tuple[Rollout, Tensor]:
        """n random responses, with replacement, of one quantile, several or all: -> rollout [n, R], quantile [n] int64."""
        among = torch.arange(len(self.quantile))
        if quantile is not None:
            allowed = torch.tensor([quantile] if isinstance(quantile, int) else list(quantile))
            among = torch.isin(self.quantile, allowed).nonzero().flatten()
        rows = among[torch.randint(len(among), (n,), generator=rng)]
        return self._rollout(rows), self.quantile[rows]

    def draw_scored(self, n: int, rng: torch.Generator) -> tuple[Rollout, Tensor]:
        """n random responses, with replacement, and their rewards, on the pool's device: -> rollout [n, R], reward [n].

        Raises RunFailed if the pool is empty.
        """
        reward = self.rewards()
        if not len(reward):
            raise RunFailed("the pool holds no scored response; look at the scorer, or raise explore_prompts")
        rows = torch.randint(len(reward), (n,), generator=rng)
        return self._rollout(rows), reward[rows].to(self.device)

    def rewards(self) -> Tensor:
        """The rewards of all responses: -> [number of responses] float32."""
        return torch.cat([p["reward"] for p in self.parts])

    def mean_reward(self) -> float:
        """The mean reward of the last exploration, in [0, 1]."""
        return self.parts[-1]["reward"].mean().item()

    def _rollout(self, rows: Tensor) -> Rollout:
        tokens, mask, response, response_mask = (self._rows(f, rows) for f in ("tokens", "mask", "response", "response_mask"))
        return Rollout(Prompts(tokens, mask), response, response_mask).to(self.device)

    def _rows(self, field: str, rows: Tensor) -> Tensor:
        return torch.cat([p[field] for p in self.parts])[rows]

    def state_dict(self) -> dict[str, Any]:
        """All responses, rewards and quantiles, for a checkpoint."""
        return {"parts": self.parts, "quantile": self.quantile}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.parts, self.quantile = state["parts"], state["quantile"]
