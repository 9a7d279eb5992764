"""Repetition by teacher forcing: what a policy finds likeliest after each token of a given text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.core.types import Rollout
from harness.policy.models import sharding
from harness.policy.policy import Policy


@torch.no_grad()
def teacher_forced_repetition(
    policy: Policy, rollout: Rollout, window: int, batch_size: int = 256
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """rep/l and wrep of Welleck et al. 2019 (arXiv:1908.04319, section 6.1), counts per response: -> [B], [B], tokens [B].

    rep counts the steps whose most likely token is among the previous `window` tokens of the response; wrep counts only
    those where it is wrong.
    """

    def read(rows: Rollout) -> tuple[Tensor]:
        return (torch.cat([_repeated(policy.deployed_logits(p).argmax(-1), p, window) for p in batches(rows, batch_size)]),)

    counts = sharding.by_rows(read, rollout, policy)[0].T.double().cpu().numpy()
    return counts[0], counts[1], counts[2]


def _repeated(likeliest: Tensor, rollout: Rollout, window: int) -> Tensor:
    """Repeats, wrong repeats and tokens of each response: [B, R] -> [B, 3]."""
    true, mask = rollout.response, rollout.response_mask
    steps = torch.arange(true.shape[1], device=true.device)
    behind = steps[:, None] - steps[None, :]
    seen = (behind > 0) & (behind <= window)  # [R, R]: which earlier tokens a step looks back at
    repeats = ((likeliest[:, :, None] == true[:, None, :]) & seen).any(-1) & mask
    return torch.stack([repeats.sum(1), (repeats & (likeliest != true)).sum(1), mask.sum(1)], 1)


def batches(rollout: Rollout, size: int) -> Iterator[Rollout]:
    """The rollout in parts of at most `size` rows."""
    for i in range(0, len(rollout.response), size):
        part = slice(i, i + size)
        prompts = type(rollout.prompts)(*(x[part] for x in rollout.prompts))
        logprobs = None if rollout.logprobs is None else rollout.logprobs[part]
        yield Rollout(prompts, rollout.response[part], rollout.response_mask[part], logprobs)
