"""The toy task of the conformance rules: twelve tokens, so that many runs take a second of CPU and costs can be counted.

The reward is the share of response tokens other than the bad token. Nothing is downloaded or read from disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor

from harness.core.types import BaseTraining, Decoding, Documents, Prompts, PromptSet, Rollout
from harness.policy.policy import Policy

VOCAB, BOS, EOS, BAD, STEPS = 12, 0, 1, 5, 5
PROMPTS = ([BOS, 3], [BOS, 7], [BOS, 9])
RAGGED_PROMPTS = ([BOS, 3], [BOS, 7, 2], [BOS, 9, 4, 8])


def toy_policy(seed: int = 0, ends: bool = True) -> Policy:
    """A one-layer GPT-2 with random weights; `ends=False` makes the probability of EOS negligible."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=BOS, eos_token_id=EOS,
        initializer_range=0.4,  # ten times the default, so that next-token distributions are far from uniform
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = GPT2LMHeadModel(config)
    if not ends:
        with torch.no_grad():  # a constant direction of all hidden states that only EOS uses, with a logit of about -60
            model.transformer.wte.weight[:, 0] = 0
            model.transformer.wte.weight[EOS, 0] = -10
            model.transformer.ln_f.bias[0] = 6
    return Policy(model, bos=BOS, eos=EOS)


class ToyTask:
    """A task with prompts of two to four tokens; `ragged=False` avoids all padding, so that tokens can be counted."""

    name = "toy"
    version = 1
    decoding = Decoding(max_new_tokens=STEPS)

    def __init__(self, ragged: bool = True) -> None:
        self.ragged = ragged
        self._prompts = _left_padded(RAGGED_PROMPTS if ragged else PROMPTS)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}

    def train_prompts(self, n: int, rng: torch.Generator) -> Prompts:
        rows = torch.randint(len(self._prompts.tokens), (n,), generator=rng)
        return Prompts(*(x[rows] for x in self._prompts))

    def documents(self, n: int, rng: torch.Generator) -> Documents:
        """Documents of a BOS and at most five random tokens, in segments of two or three: -> [n, 5]."""
        response = torch.randint(2, VOCAB, (n, STEPS), generator=rng)
        shortest = 2 if self.ragged else STEPS
        length = torch.randint(shortest, STEPS + 1, (n, 1), generator=rng)
        rollout = Rollout(_left_padded([[BOS]] * n), response, torch.arange(STEPS) < length)
        segment = torch.tensor([0, 0, 1, 1, 1]).where(rollout.response_mask, -1)
        good = (response != BAD).float()
        of = [(good * (segment == i)).sum(1) / (segment == i).sum(1) for i in (0, 1)]  # 0 / 0 gives NaN for an empty segment
        reward = torch.stack([*of, torch.full((n,), torch.nan)], 1).gather(1, segment % 3)
        return Documents(rollout, segment, reward)

    def base_training(self) -> BaseTraining:
        """Rows of a BOS and five random tokens, none of them the bad one."""

        def rows(rng: Random) -> Iterator[torch.Tensor]:
            good = [token for token in range(2, VOCAB) if token != BAD]
            while True:
                yield torch.tensor([[BOS, *rng.choices(good, k=STEPS)] for _ in range(4)])

        return BaseTraining({"name": self.name}, 20, 3e-3, {"decay": "one_cycle"}, rows)

    def prompts(self, split: str) -> PromptSet:
        rows = [" ".join(map(str, row)) for row in (RAGGED_PROMPTS if self.ragged else PROMPTS)]
        return PromptSet(self._prompts, rows, ["calm"] * len(rows))

    def reward(self, rollout: Rollout) -> Tensor:
        """The share of response tokens other than the bad token: -> [B] float32."""
        good = (rollout.response != BAD) & rollout.response_mask
        return good.sum(1) / rollout.response_mask.sum(1)

    def judge(self, rollout: Rollout) -> Tensor:
        return self.reward(rollout)


def _left_padded(rows: Any) -> Prompts:
    width = max(map(len, rows))
    tokens = torch.tensor([[BOS] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Prompts(tokens, mask)
