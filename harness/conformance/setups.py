"""The rule that a method trains under every setup of a model: micro-batches, gradient checkpointing, autocast, LoRA."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch

from harness.policy.models.adapters import Lora
from harness.policy.models.setup import Setup
from harness.policy.weights import digest
from harness.training.trial import Budget

from .play import Subject, difference, play

CLOSE = 1e-5  # of the norm of a gradient in float32
SPLIT = Setup(micro_batch=1, checkpointing=True)
LORA = Lora(rank=2, alpha=4.0)


def every_setup(subject: Subject) -> tuple[bool | None, str]:
    """Check that an update in parts has the gradient of the whole batch, and a run under all setups together resumes."""
    if not subject.trains:
        return None, "does not apply: it trains nothing"
    first = partial(play, subject, budget=Budget(updates=1), recorded=False)
    whole, parts = first().trial.gradient(), first(setup=SPLIT).trial.gradient()
    gap = float((parts - whole).norm() / whole.norm().clamp(min=1e-30))
    if not gap < CLOSE:
        return False, f"the gradient of a batch in parts differs by {gap:.1e} of its norm"
    why = without_lora(subject)
    lora = None if why else LORA
    setup = SPLIT._replace(lora=lora, base={"name": "toy", "sha256": ""})
    together = partial(play, subject, budget=Budget(updates=2), setup=setup, precision=torch.bfloat16)
    run, before = together(), digest(subject.base(ends=True))
    if digest(run.trial.reference) != before == digest(subject.whole.trial.reference):  # else it changes it anyway
        return False, "the reference, which shares the frozen weights, is changed under LoRA"
    differs = difference(run, together(killed_after=(1,)))
    if differs:
        return False, f"under LoRA, bfloat16 and micro-batches a resumed run differs at {differs}"
    return True, f"gradient in parts within {gap:.0e} of its norm" + (f"; LoRA not tried: {why}" if why else "")


def without_lora(subject: Subject) -> str:
    """Why a method is not tried with an adapter; empty if it is."""
    if find_spec("peft") is None:
        return "peft is not installed"
    if getattr(subject.settings(), "start", "base") == "scratch":
        return "weights drawn anew have no adapter"
    return "" if getattr(subject.kind, "lora", True) else "the method refuses it (lora = False)"
