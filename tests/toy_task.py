"""A task of twelve tokens whose reward anybody can count: the share of a response that is not the bad token."""

from __future__ import annotations

import torch
from tiny import left_padded, ragged_rows, tiny_gpt2
from torch import Tensor

from harness.core.types import Decoding, Documents, Prompts, PromptSet, Rollout
from harness.policy.policy import Policy

BAD = 5
NEVER = 99  # an EOS that cannot be sampled: every response has all its tokens, so costs can be counted by hand


def toy_policy(seed: int = 0) -> Policy:
    return tiny_gpt2(seed=seed, eos=NEVER)


class ToyTask:
    name = "toy"
    version = 1
    decoding = Decoding(max_new_tokens=5)

    def __init__(self, unscored: int = 0) -> None:
        self.unscored = unscored  # how many responses of each batch the scorer fails on

    def identity(self) -> dict:
        return {"name": self.name, "version": self.version}

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        """Of 1, 2 or 3 tokens."""
        table = left_padded(ragged_rows((1, 2, 3)))
        rows = torch.randint(3, (n,), generator=rng)
        return Prompts(table.tokens[rows], table.mask[rows])

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """An empty prompt's worth (one token) and two to four tokens of text; a segment is two tokens."""
        response = torch.randint(2, 12, (n, 4), generator=rng)
        length = torch.randint(2, 5, (n, 1), generator=rng)
        rollout = Rollout(left_padded([[0]] * n), response, torch.arange(4) < length)
        reward = [self.reward(self._part(rollout, half)) for half in (slice(0, 2), slice(2, 4))]
        segment = torch.tensor([0, 0, 1, 1]).where(rollout.response_mask, -1)
        return Documents(rollout, segment, torch.stack(reward, 1).repeat_interleave(2, 1).where(segment >= 0, torch.nan))

    @staticmethod
    def _part(rollout: Rollout, columns: slice) -> Rollout:
        return Rollout(rollout.prompts, rollout.response[:, columns], rollout.response_mask[:, columns])

    def prompts(self, split: str) -> PromptSet:
        rows = ragged_rows((1, 2, 3))
        return PromptSet(left_padded(rows), [str(r) for r in rows], ["calm"] * 3)

    def reward(self, rollout: Rollout) -> Tensor:
        good = (rollout.response != BAD) & rollout.response_mask
        reward = good.sum(1) / rollout.response_mask.sum(1)
        reward[: self.unscored] = float("nan")
        return reward

    def judge(self, rollout: Rollout) -> Tensor:
        return self.reward(rollout)
