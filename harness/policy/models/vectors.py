"""Arithmetic on weights: a policy moved against what a copy of its base has learned (Ilharco et al. 2022, arXiv:2212.04089)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from harness.policy.policy import Policy


@torch.no_grad()
def subtract_task(policy: Policy, tuned: Policy, base: Policy, alpha: float) -> None:
    """Set the policy's weights to base - alpha * (tuned - base); all three are of one architecture.

    Under LoRA what was learned is the product B A of each layer, so the policy's adapter becomes A and -alpha B.
    """
    if policy.setup.lora is None:
        for w, learned, start in zip(policy.parameters(), tuned.parameters(), base.parameters(), strict=True):
            w.copy_(start - alpha * (learned - start))
        return
    learned_by_name = dict(tuned.named_parameters())
    for name, w in policy.named_parameters():
        if ".lora_" in name:
            w.copy_(learned_by_name[name] * (-alpha if ".lora_B." in name else 1.0))
