"""How many operations and bytes a workload cannot do without, and so the least time that it can take.

An operation is a multiplication or an addition of float32. Counted are the matrix products: with the weights (2 per weight and
token), with the output head where a token is predicted, and of attention (2 for the score and 2 for the value, per number of a
head, for each pair of a token and one that it sees). Norms, activations, softmax and sampling are not counted, nor padding.

A byte is counted where data of a size that leaves the caches must pass: the weights, keys and values, the logits. Hidden states
are not counted. So both are too low rather than too high, and no program reaches the floor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.types import Rollout

FLOAT = 4  # bytes


class Work(NamedTuple):
    """What a workload cannot do without."""

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:  # type: ignore[override]
        return Work(self.operations * times, self.bytes * times)


class Shape(NamedTuple):
    """The sizes of a model that its work depends on."""

    body: int  # weights of the matrix products before the output head
    head: int  # weights of the output head, D x V
    vocab: int
    parameters: int
    layers: int
    queries: int  # numbers in the queries of all heads of a layer
    keys: int  # numbers in its keys


def shape_of(model) -> Shape:
    config, head = model.config, model.get_output_embeddings().weight
    tables = {id(head), id(model.get_input_embeddings().weight)}
    tables |= {id(p) for name, p in model.named_parameters() if "wpe" in name}  # looked up, not multiplied
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    parameters = sum(p.numel() for p in model.parameters())
    return Shape(body, head.numel(), head.shape[0], parameters, config.num_hidden_layers, heads * size, shared * size)


def forward(s: Shape, read: float, seen: float, predicted: float) -> float:
    """Operations of forward passes: tokens read, pairs of a token and one that it sees, tokens predicted."""
    return 2 * s.body * read + 4 * s.layers * s.queries * seen + 2 * s.head * predicted


def sampling(s: Shape, prompts: Tensor, responses: Tensor) -> Work:
    """n responses to each prompt, which is read once: lengths of prompts [X], of responses [X * n].

    The last token of a response is drawn but not read. A step reads the weights once, the keys and values of each prompt once
    and those of each response; logits are written and read once.
    """
    before = prompts.repeat_interleave(len(responses) // len(prompts)).double()
    read = (responses - 1).double()
    total, seen = float(read.sum()), float((read * before + read * (read + 1) / 2).sum())
    prompt, own = float(prompts.sum()), float((prompts.double() * (prompts + 1) / 2).sum())
    operations = forward(s, prompt + total, own + seen, len(prompts) + total)
    steps = int(responses.max()) - 1
    weights = (steps + 1) * (s.body + s.head)
    cache = 2 * s.layers * s.keys * (prompt * (1 + steps) + float((read * (read + 1) / 2).sum()))
    return Work(operations, FLOAT * (weights + cache + 2 * s.vocab * (len(prompts) + total)))


def lengths(rollout: Rollout) -> tuple[Tensor, Tensor]:
    return rollout.prompts.mask.sum(1), rollout.response_mask.sum(1)


def reading(s: Shape, rollout: Rollout, head: bool = True) -> Work:
    """One forward pass over prompts and responses; logits, written and read once, where a response token is predicted."""
    prompts, responses = (x.double() for x in lengths(rollout))
    read = prompts + responses - 1
    predicted = float(responses.sum()) if head else 0.0
    operations = forward(s, float(read.sum()), float((read * (read + 1) / 2).sum()), predicted)
    return Work(operations, FLOAT * (s.body + (s.head if head else 0) + 2 * s.vocab * predicted))


def head_alone(s: Shape, rollout: Rollout) -> Work:
    """The output head on hidden states that are there already."""
    predicted = float(rollout.response_mask.sum())
    return Work(2 * s.head * predicted, FLOAT * (s.head + 2 * s.vocab * predicted))


def update(s: Shape, rollout: Rollout, head: bool = True) -> Work:
    """A forward and a backward pass (twice the operations) and a step of Adam.

    Weights are read forward and backward; the gradient is written, read for its norm and for the step, which also reads and
    writes the weights and two moments: 11 passes over the parameters. The logits' gradient is written and read once.
    """
    once = reading(s, rollout, head)
    logits = 2 * s.vocab * float(rollout.response_mask.sum()) if head else 0.0
    return Work(3 * once.operations, FLOAT * (11 * s.parameters + 2 * logits))


def floor(work: Work, matmul: float, bandwidth: float) -> float:
    """Seconds: the larger of operations / matmul rate and bytes / bandwidth."""
    return max(work.operations / matmul, work.bytes / bandwidth)


def full_length(prompts: Tensor, n: int, steps: int) -> Tensor:
    """Lengths of n responses to each prompt that never end early."""
    return torch.full((len(prompts) * n,), steps)
