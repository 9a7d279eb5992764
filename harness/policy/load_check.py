"""What a model is checked on before it is used: that it samples what it reads.

Every number of a run rests on it: responses are drawn by the sampler (prompts of several lengths padded on the left,
several responses each, a cache that rows are dropped from), trained and measured by `Policy.logits` (padding on the
right), and both must be what the model says of one text alone, without padding and without a cache. Architectures and
configs that break it load without a word: a window of attention that only the cache knows of, positions that padding
shifts, a recurrence that takes padding for text, an encoder. The responses are fixed, so nothing is drawn from a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.core.errors import BadData, refusing
from harness.core.types import Prompts, Rollout

from . import caches
from .logprobs import token_logprobs
from .models import composite
from .policy import Policy
from .sampler import decode, until_eos

LENGTHS, STEPS, COPIES = (2, 5, 11), 8, 2
"""Tokens of the prompts, tokens of the longest response, responses a prompt."""
WINDOW = 6
"""A wider window of attention is narrowed to this for the check, so that a short text goes beyond it."""
LARGEST = 1e-3
"""The largest difference of a log-probability in float32, in nats."""
COARSE = 0.1
"""The root mean square of the differences in bfloat16 and float16, in nats, beside what rounding the largest logit makes."""


class Readings(NamedTuple):
    """Log-probabilities of the same responses: each [B, R], 0 behind their ends."""

    plain: Tensor
    sampled: Tensor
    read: Tensor


@torch.no_grad()
def check_model(policy: Policy, where: Path | str) -> None:
    """Raise BadData where a model does not sample what it reads: to 1e-3 nats a token in float32."""
    prompts, response = _texts(policy)
    rollout = Rollout(Prompts(*(x.repeat_interleave(COPIES, 0) for x in prompts)), response, until_eos(response, policy.ends))
    what = f"the model in {where} does not run as a causal language model"
    with refusing(what, "check its kind"), _narrowed(policy.model):
        alone = _alone(policy, rollout)
        if not all(logits.isfinite().all() for logits in alone):
            raise BadData(f"the model in {where} gives logits that are not finite; its weights or its dtype are at fault")
        if _looks_ahead(policy, rollout):
            raise BadData(f"the model in {where} looks ahead, as an encoder does; expected a causal language model")
        readings = _readings(policy, prompts, rollout, alone)
        states = _states_differ(policy, rollout)
    for name, found in (("sampled", readings.sampled), ("padded on the right", readings.read)):
        gap, bound = _gap(policy, (found - readings.plain)[rollout.response_mask], alone)
        if not gap <= bound:
            raise BadData(
                f"the model in {where} gives a response other log-probabilities when {name} than alone, by {gap:.2g} nats "
                f"a token (at most {bound:.2g} expected); {_suspect(policy.model)}"
            )
    if states:
        raise BadData(f"the model in {where} gives hidden states other than those that its head reads; expected the same")


def _texts(policy: Policy) -> tuple[Prompts, Tensor]:
    """Prompts with their padding [X, P] and two responses to each [2X, R], of which some end early."""
    longest = max(1, min(LENGTHS[-1], policy.context // 2))
    steps = max(1, min(STEPS, policy.context - longest))
    rng = torch.Generator().manual_seed(0)
    lengths = torch.tensor([max(1, n * longest // LENGTHS[-1]) for n in LENGTHS])
    words = torch.randint(policy.vocab_size, (len(LENGTHS), longest + COPIES * steps), generator=rng)
    words = torch.where(words == policy.eos, (words + 1) % policy.vocab_size, words)
    mask = torch.arange(longest) >= longest - lengths[:, None]
    response = words[:, longest:].reshape(-1, steps)
    response[1::COPIES, 0] = (response[::COPIES, 0] + 1) % policy.vocab_size  # two responses differ at once
    for row in range(1, len(response) - 1):  # the first and the last go on to the end
        response[row, min(2 * row, steps - 1) :] = policy.eos
    prompts = Prompts(words[:, :longest].where(mask, policy.bos), mask)
    return prompts.to(policy.device), response.to(policy.device)


def _alone(policy: Policy, rollout: Rollout) -> list[Tensor]:
    """Logits of each response, its text read alone by the model itself: each [T, V]."""
    logits = []
    for prompt, seen, response, counts in zip(*rollout.prompts, rollout.response, rollout.response_mask, strict=True):
        text = torch.cat([prompt[seen], response[counts]])[None]
        out = caches.call(policy.model, input_ids=text, use_cache=False).logits
        logits.append(out[0, int(seen.sum()) - 1 : -1, : policy.vocab_size].float())
    return logits


def _looks_ahead(policy: Policy, rollout: Rollout) -> bool:
    """Whether what is predicted at the end of a prompt differs between two responses that differ from there on."""
    two = rollout.rows(torch.tensor([0, 0], device=policy.device))
    other = two.response.clone()
    other[1] = (other[1] + 1) % policy.vocab_size
    logits = policy.logits(two._replace(response=other))
    before, *after = (logits[0] - logits[1]).abs().amax(-1).tolist()
    return bool(after) and before > 1e-4 * max(after)


def _readings(policy: Policy, prompts: Prompts, rollout: Rollout, alone: list[Tensor]) -> Readings:
    response, counts = rollout.response, rollout.response_mask
    plain, read = torch.zeros_like(response, dtype=torch.float32), token_logprobs(policy.logits(rollout), response)
    for row, logits in enumerate(alone):
        plain[row, : len(logits)] = token_logprobs(logits, response[row, : len(logits)])
    _, sampled = decode(policy, prompts, COPIES, response.shape[1], lambda at, rows, t: response[rows, t])
    return Readings(plain, sampled.masked_fill(~counts, 0), read.masked_fill(~counts, 0))


def _states_differ(policy: Policy, rollout: Rollout) -> bool:
    """Whether the hidden states alone are other than those that the logits are read from; methods use both."""
    if composite.file_of(policy.model) is not None:  # a model made of others has none
        return False
    states, alone = policy.logits_and_states(rollout)[1], policy.states(rollout)
    if states.shape != alone.shape or states.shape[-1] != policy.width:
        return True
    gap = (states - alone)[rollout.response_mask].abs().max()
    return bool(gap > LARGEST * states.abs().max())


def _gap(policy: Policy, differences: Tensor, alone: list[Tensor]) -> tuple[float, float]:
    """How far two readings are apart and how far they may be, in nats."""
    dtype = next(policy.parameters()).dtype
    if torch.finfo(dtype).bits >= 32:
        return float(differences.abs().max()), LARGEST
    rounding = torch.finfo(dtype).eps * max(float(logits.abs().max()) for logits in alone)
    return float(differences.square().mean().sqrt()), COARSE + rounding


def _suspect(model: Any) -> str:
    windows = sorted({window for config in _configs(model) if (window := _window(config))})
    if windows:
        return f"its config names sliding_window={windows[0]}: set it to null if the architecture has none"
    return "expected an architecture that can be sampled with a cache and padding"


@contextmanager
def _narrowed(model: Any) -> Iterator[None]:
    wide = [(config, window) for config in _configs(model) if (window := _window(config)) and window > WINDOW]
    try:
        for config, _ in wide:
            config.sliding_window = WINDOW
        yield
    finally:
        for config, window in wide:
            config.sliding_window = window


def _configs(model: Any) -> list[Any]:
    """The configs that the parts of a model go by, each once."""
    from transformers import PreTrainedConfig

    found = [config for part in model.modules() if isinstance(config := getattr(part, "config", None), PreTrainedConfig)]
    return list({id(config): config for config in found}.values())


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) else None
