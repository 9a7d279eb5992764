"""Best-of-n: sample n responses of the base policy, return the one of highest reward (Stiennon et al. 2020, arXiv:2009.01325).

There is no training; the cost is incurred at each response. Ties are broken at random. KL(best-of-n || base) is exact for
the distribution of the reward under the base policy, ties included; log n - (n - 1)/n is only an upper bound (Beirami
et al. 2024, arXiv:2401.01879).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from harness.api import Decoding, Knob, Policy, Prompts, Rollout, Settings, Trial, best_of_n_kl, sample


class BestOfNSettings(Settings):
    n: int = Field(4, ge=1, description="n, candidates per response")


class BestOfN:
    version = 1
    Settings = BestOfNSettings
    family = "at decoding"
    knob = Knob("n", (2, 4, 8, 16, 32))
    trains = False
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {"n": 4}}

    def __init__(self, settings: BestOfNSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        trial.deploy(BestOfNPolicy(trial.reference, trial.reward, self.settings.n))
        yield from ()


class BestOfNPolicy:
    """The base policy with best-of-n selection for each response."""

    def __init__(self, reference: Policy, reward: Any, n: int) -> None:
        self.reference, self.reward, self.n = reference, reward, n

    def sample(self, prompts: Prompts, *, decoding: Decoding, rng: torch.Generator, n: int) -> Rollout:
        """Sample n responses to each prompt, each the best of self.n candidates: [X, P] -> [X * n, R]."""
        candidates = sample(self.reference, prompts, decoding=decoding, rng=rng, n=n * self.n)
        reward = self.reward(candidates).nan_to_num(-1.0).view(-1, self.n)  # an unscored candidate is selected last
        best = pick(reward, rng) + torch.arange(len(reward)) * self.n
        return Rollout(
            Prompts(*(x[best] for x in candidates.prompts)), candidates.response[best], candidates.response_mask[best]
        )

    def kl_to_base(self, base_reward: NDArray) -> NDArray:
        """KL(best-of-n || base) of each prompt in nats, from the rewards of base responses: [X, M] -> [X]."""
        return best_of_n_kl(base_reward, self.n)


def pick(reward: Tensor, rng: torch.Generator) -> Tensor:
    """Index of the highest reward in each row, ties broken at random: [B, n] -> [B]."""
    best = reward == reward.amax(1, keepdim=True)
    return torch.where(best, torch.rand(reward.shape, generator=rng), -1.0).argmax(1)
