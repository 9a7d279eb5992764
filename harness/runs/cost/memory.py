"""Memory that a run takes on its device, estimated from the shapes of its models: what fits, and what to set if it does not.

Held against the peak of updates (`benchmarks/memory.py`). Counted in float32: weights, gradients and Adam's two moments;
activations that a backward pass needs; logits of policy and reference at once; judge of fluency and classifiers.
Sampling and measuring come at other times than an update; on a GPU their batches are fitted to a quarter of its memory.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from harness.core import registry
from harness.core.process import started_together
from harness.core.settings import RunSettings
from harness.core.types import LoraSettings

from .shapes import Shape, shape

GB = 1e9
CARDS = (24, 80)  # GB of the GPUs that an estimate names
RESERVED = 2.0  # GB of a card for the driver, kernels and fragments: assumed, not measured
PROMPT = 32  # tokens of a prompt: assumed, since nobody knows before the prompts are read
WORDS = 0.75  # words a token of English has: assumed
LOGITS = 2.12  # times the size of the logits at the peak of an update, policy and reference together
# micro-batches and checkpointing compute the same update in more time; an adapter is another way to train
CHANGES: tuple[dict[str, Any], ...] = (
    {"micro_batch": 8}, {"micro_batch": 1}, {"checkpointing": True}, {"lora": LoraSettings(rank=8)},
)  # fmt: skip


class Memory(NamedTuple):
    """Peak memory in GB by what holds it."""

    weights: float
    training: float  # gradients and Adam's moments
    activations: float
    logits: float
    scorers: float  # judge of fluency and classifiers
    gathered: float = 0.0  # a sharded policy as a whole, while it samples

    @property
    def peak(self) -> float:
        return self.weights + self.training + self.scorers + max(self.activations + self.logits, self.gathered)


def memory(settings: RunSettings, method: str, scorers: float = 0.0) -> dict[str, Any] | None:
    """The estimated peak by part, in GB, which cards it fits, and settings that make it fit; None for an unknown model.

    `scorers` is the size of the classifiers in GB.
    """
    policy = shape(settings.model.id)
    if policy is None:
        return None
    load = load_of(settings, method)
    found = estimate(settings, policy, load, scorers)
    parts = {name: round(value, 3) for name, value in found._asdict().items() if value or name != "gathered"}
    cards = {f"{card} GB": fits(found, card) for card in CARDS}
    advice = {
        f"{card} GB": changed
        for card in CARDS
        if not fits(found, card) and (changed := smaller(settings, policy, load, scorers, card))
    }
    return {
        "sequences_per_update": load.sequences,
        "gb": parts,
        "peak_gb": round(found.peak, 2),
        "fits": cards,
        "set_for": advice,
    }


class Load(NamedTuple):
    """What an update of a method has on the device."""

    sequences: int  # read at once; 0 for a method that does not train
    networks: int  # of the policy's size that are trained
    length: int  # tokens of a sequence
    scored: int  # of these, tokens whose logits are computed
    held: int = 0  # networks of the policy's size beside it and the reference that are not trained


def load_of(settings: RunSettings, method: str) -> Load:
    """The load of an update, from the properties of the method's settings that say so.

    `sequences` is what an update reads at once, without it `batch_size`; `networks` of the policy's size are trained, without
    it one, and `held` are kept beside it and the reference, without it none; `on_documents` is true where documents are read in
    place of prompts and responses.
    """
    kind = registry.load("method", method)
    if getattr(kind, "trains", True) is False:
        return Load(0, 0, 0, 0)
    told, t = kind.Settings(**settings.method), settings.task
    scored = round(t.data.document_words / WORDS) if getattr(told, "on_documents", False) else t.decoding.max_new_tokens
    length = scored if getattr(told, "on_documents", False) else PROMPT + scored
    rows = getattr(told, "sequences", getattr(told, "batch_size", 0))
    return Load(int(rows), int(getattr(told, "networks", 1)), length, scored, int(getattr(told, "held", 0)))


def estimate(settings: RunSettings, policy: Shape, load: Load, scorers: float = 0.0) -> Memory:
    """The peak of an update."""
    rows, copies, length, scored, beside = load
    model = settings.model
    n, narrow = policy.parameters, model.dtype == "bfloat16"
    rank = model.lora.rank
    trained = rank * policy.projected * policy.layers if rank else n
    weights = 4 * (n * (1 + beside) + copies * trained)  # the reference, what is held beside it, and what is trained
    weights += 2 * n if narrow else 0  # autocast keeps a copy in 16 bits
    held = min(rows, model.micro_batch or rows) * length
    kept = held * (1 if model.checkpointing else policy.layers) * policy.activations * 4
    kept += held * policy.layers * policy.width * 4 if model.checkpointing else 0
    logits = LOGITS * 4 * rows * scored * policy.vocabulary
    fluency = shape(settings.task.fluency or "none")
    judge = 4 * fluency.parameters / GB if fluency is not None else 0.0
    training = 12 * copies * trained
    if model.shard == "none":
        return Memory(weights / GB, training / GB, kept / GB, logits / GB, scorers + judge)
    # a copy with an adapter has a part of the frozen weights too; of a layer weights and gradients are whole in its pass
    n_processes, frozen = started_together(), 4 * copies * n if rank else 0
    per_layer = 8 * n / policy.layers
    policy_whole = 4 * (n + trained) if rank else 4 * n
    part = (weights + frozen) / n_processes
    parts, moments, held_now = part / GB, training / n_processes / GB, (kept + per_layer) / GB
    return Memory(parts, moments, held_now, logits / GB, scorers + judge, policy_whole / GB)


def fits(found: Memory, card: float) -> bool:
    """Whether an estimate fits a card of so many GB."""
    return found.peak + RESERVED <= card


def smaller(settings: RunSettings, policy: Shape, load: Load, scorers: float, card: float) -> list[str]:
    """The settings that make a run fit a card, those that change its results least first; empty if none do."""
    chosen: dict[str, Any] = {}
    for change in CHANGES:
        chosen |= change
        model = settings.model.model_copy(update=chosen)
        if fits(estimate(settings.model_copy(update={"model": model}), policy, load, scorers), card):
            return [f"model.{key}={json.dumps(value)}" for key, value in _flat(chosen)]
    return []


def _flat(changes: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("lora.rank", value.rank) if isinstance(value, LoraSettings) else (key, value) for key, value in changes.items()]
