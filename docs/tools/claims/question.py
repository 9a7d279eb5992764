"""A question about the grammar: which of two replies belongs to a thread, by their likelihood.

The right reply is about the topic of the prompt, the wrong one is of the same kind and about another topic, so that the grammar
generates it in other threads only. A policy is right if it gives the right reply the higher likelihood. Task-specific
finetuning lowers -log sigmoid(log p(right) - log p(wrong)) on other pairs.
"""

from __future__ import annotations

import random
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from harness.api import Policy, Rollout, masked_sum, token_logprobs
from harness.tasks.data.prompt_files import tokenize
from harness.tasks.micro import grammar

from .records import Measured

PAIRS, SEED = 400, 11
UPDATES, BATCH, LR = 60, 16, 3e-4
REPLIES = ("tip_reply", "story", "ask")


class Pair(NamedTuple):
    """A prompt with a reply of its topic and one of another."""

    prompt: str
    right: str
    wrong: str


def pairs(n: int, seed: int) -> list[Pair]:
    """n pairs from the grammar of the micro world."""
    rng = random.Random(seed)
    return [_pair(rng) for _ in range(n)]


def _pair(rng: random.Random) -> Pair:
    prompt, thread = grammar.opening("calm", rng)
    act = rng.choice(REPLIES)
    own = re.compile(grammar.pattern(act, thread.topic))
    while True:
        topic = rng.choice([t for t in grammar.TOPICS if t != thread.topic])
        other = grammar.Thread(topic, rng.choice(grammar.TOPICS[topic]["item"]))
        right, wrong = grammar.expand(act, thread, rng), grammar.expand(act, other, rng)
        if not own.fullmatch(wrong):
            return Pair(prompt, right, wrong)


def answered(policy: Policy, tokenizer: Any) -> Measured:
    """The share of pairs whose right reply is the likelier one, with 0 or 1 for each pair."""
    with torch.no_grad():
        right = (margin(policy, tokenizer, pairs(PAIRS, SEED)) > 0).double()
    return Measured(float(right.mean()), tuple(right.tolist()))


def finetune(policy: Policy, tokenizer: Any, seed: int) -> None:
    """Finetune a policy on pairs that `answered` does not ask."""
    torch.manual_seed(seed)
    weights = [w.requires_grad_(True) for w in policy.parameters()]
    optimizer = torch.optim.Adam(weights, lr=LR)
    for step in range(UPDATES):
        batch = pairs(BATCH, 1000 * (seed + 1) + step + SEED)
        loss = softplus(-margin(policy, tokenizer, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def margin(policy: Policy, tokenizer: Any, asked: list[Pair]) -> Tensor:
    """log p(right) - log p(wrong) of each pair under the deployed policy, in nats: -> [n]."""
    right, wrong = (_logprob(policy, tokenizer, asked, name) for name in ("right", "wrong"))
    return right - wrong


def _logprob(policy: Policy, tokenizer: Any, asked: list[Pair], which: str) -> Tensor:
    ids = [tokenizer(getattr(pair, which), add_special_tokens=False).input_ids for pair in asked]
    width = max(map(len, ids))
    response = torch.tensor([row + [policy.eos] * (width - len(row)) for row in ids])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
    prompts = tokenize([pair.prompt for pair in asked], tokenizer, max_new_tokens=width, context=policy.context, bos=policy.bos)
    rollout = Rollout(prompts, response, mask).to(policy.device)
    return masked_sum(token_logprobs(policy.deployed_logits(rollout), rollout.response), rollout.response_mask)
