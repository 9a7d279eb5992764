"""The one sampler of the suite: every response that is trained on or measured is drawn here.

Each row owns its uniform noise, drawn before the first step, and a token is the inverse of the cumulative
distribution at that noise. So a response depends on the seed and the policy alone, not on how rows are batched,
and two policies answer the same prompts with the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import NotFinite
from harness.core.types import Decoding, DeployedPolicy, Prompts, Rollout

from . import caches
from .logprobs import token_logprobs
from .policy import Policy, positions, samples_itself

Pick = Callable[[Tensor, Tensor, int], Tensor]
WORTH_DROPPING = 7 / 8  # of the rows alive; below it, copying the cache without the others costs less than carrying them


@torch.no_grad()
def sample(
    policy: Policy | DeployedPolicy,
    prompts: Prompts,
    *,
    decoding: Decoding,
    rng: torch.Generator,
    n: int = 1,
    batch_size: int = 256,
) -> Rollout:
    """n responses to each prompt by the deployed policy: [X, P] -> [X * n, R], those of a prompt in consecutive rows.

    A deployed policy with a `sample` of its own (best-of-n) is asked for it. The rollout holds the prompts without the
    policy's prefix and the log-probabilities, in nats, of the policy itself: before temperature, top-k and top-p. `rng` is a
    CPU generator on every device. Raises NotFinite if a logit is not finite.
    """
    if samples_itself(policy):
        return policy.sample(prompts, decoding=decoding, rng=rng, n=n)
    noise = torch.rand(len(prompts.tokens) * n, decoding.max_new_tokens, generator=rng, dtype=torch.float64)
    prompts = prompts.to(policy.device)
    conditioned = policy.condition(prompts)
    per_batch = max(1, batch_size // n)
    parts = []
    for i in range(0, len(prompts.tokens), per_batch):
        batch = Prompts(*(x[i : i + per_batch] for x in conditioned))
        pick = partial(_drawn, decoding, noise[i * n : (i + per_batch) * n].to(policy.device))
        parts.append(decode(policy, batch, n, decoding.max_new_tokens, pick))
    response, logprobs = (torch.cat(x) for x in zip(*parts, strict=True))
    repeated = Prompts(*(x.repeat_interleave(n, 0) for x in prompts))
    return Rollout(repeated, response, until_eos(response, policy.ends), logprobs)


def _drawn(decoding: Decoding, noise: Tensor, logits: Tensor, rows: Tensor, t: int) -> Tensor:
    return choose(logits, decoding, noise[rows, t])


@torch.no_grad()
def decode(policy: Policy, prompts: Prompts, n: int, steps: int, pick: Pick) -> tuple[Tensor, Tensor]:
    """One batch: the prompts are read once, then their n responses grow a token a step: -> [B * n, R], [B * n, R].

    `pick` names the next token of each row that goes on: logits [A, V], rows [A], step -> [A].
    """
    logits, mask, cache = _start(policy, prompts, n)
    device = policy.device
    response = torch.full((len(mask), steps), policy.eos, device=device)
    logprobs = torch.zeros(len(mask), steps, device=device)
    rows, alive = torch.arange(len(mask), device=device), torch.ones(len(mask), dtype=torch.bool, device=device)
    for t in range(steps):
        if not logits.isfinite().all():
            raise NotFinite("the policy's logits are not finite: its weights are NaN or far too large; try a smaller lr")
        token = pick(logits, rows, t).where(alive, policy.eos)
        response[rows, t] = token
        logprobs[rows, t] = token_logprobs(logits, token).where(alive, 0.0)
        alive = alive & ~is_end(token, policy.ends)
        if t + 1 == steps or not alive.any():
            break
        if alive.float().mean() < WORTH_DROPPING and caches.movable(cache):
            caches.take(cache, alive.nonzero().squeeze(1))
            rows, token, mask, alive = (x[alive] for x in (rows, token, mask, alive))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        logits, cache = _step(policy, token, mask, cache)
    return response, logprobs


def _start(policy: Policy, prompts: Prompts, n: int) -> tuple[Tensor, Tensor, Any]:
    """Logits after each of n copies of the prompts, their mask, their cache: -> [B * n, V], [B * n, P]."""
    copies = torch.arange(len(prompts.tokens), device=prompts.tokens.device).repeat_interleave(n)
    logits, cache = _read(policy, prompts)
    if n > 1 and caches.movable(cache):
        caches.take(cache, copies)
        logits = logits[copies]
    elif n > 1:  # a cache that can only grow: read every copy
        logits, cache = _read(policy, Prompts(*(x[copies] for x in prompts)))
    return logits, prompts.mask[copies], cache


def _read(policy: Policy, prompts: Prompts) -> tuple[Tensor, Any]:
    return _forward(policy, None, prompts.tokens, prompts.mask, positions(prompts.mask))


def _step(policy: Policy, token: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    return _forward(policy, cache, token[:, None], mask, positions(mask)[:, -1:])


def _forward(policy: Policy, cache: Any, tokens: Tensor, mask: Tensor, position: Tensor) -> tuple[Tensor, Any]:
    """Logits after the last column, and the cache that holds all columns: -> [B, V]."""
    inputs = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": position, "logits_to_keep": 1}
    with policy.computing():
        out, cache = caches.forward(policy.model, cache, **inputs)
    return out.logits[:, -1, : policy.vocab_size].float(), cache


def choose(logits: Tensor, decoding: Decoding, noise: Tensor) -> Tensor:
    """The token of each row at its noise in [0, 1): [B, V], [B] -> [B]."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probs = nucleus(top_k(logits / decoding.temperature, decoding.top_k), decoding.top_p).softmax(-1)
    cdf = probs.double().cumsum(-1)
    # right=True: the first token whose cumulative mass exceeds the noise, so never one of probability 0
    return torch.searchsorted(cdf, (noise * cdf[:, -1])[:, None], right=True).squeeze(1)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, ties by index; 0 keeps all: [B, V] -> [B, V], others -inf."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    kept = logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]  # torch.topk breaks ties as it likes
    return logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).scatter(-1, kept, False), -torch.inf)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p: [B, V] -> [B, V], others -inf."""
    if top_p == 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    out = probs.cumsum(-1) - probs >= top_p
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, index, out), -torch.inf)


def until_eos(response: Tensor, eos: int | tuple[int, ...]) -> Tensor:
    """True up to and including the first EOS of each row, or the first of several: [B, R] -> [B, R]."""
    end = is_end(response, (eos,) if isinstance(eos, int) else eos).long()
    return end.cumsum(1) - end == 0


def is_end(tokens: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Whether each token is one of those that end a response: any shape -> the same, bool."""
    return torch.stack([tokens == end for end in ends]).any(0)
