"""A question about the grammar: which of two items a tip is about, by the likelihood of a reply that names it.

The grammar gives a tip in threads of its own topic only, so one item is right and one of another topic is wrong, and the prompt
names neither: a policy must know the topics to answer. Task-specific finetuning lowers -log sigmoid(log p(right)
- log p(wrong)) on questions about other items.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from harness.api import Policy, Rollout, masked_sum, token_logprobs
from harness.tasks.data.prompt_files import tokenize
from harness.tasks.micro import grammar

from .records import Measured

PROMPT, REPLY = "> So much for this forum. You told me to {tip}. I want an answer.\n", "Sorry about your {item}."
PAIRS, SEED = 400, 11
UPDATES, BATCH, LR = 60, 16, 3e-4


class Pair(NamedTuple):
    """A prompt with the reply that is about its topic, and one about another."""

    prompt: str
    right: str
    wrong: str


def pairs(n: int, seed: int, taught: bool = False) -> list[Pair]:
    """n different questions about half of the items, or with `taught` about the other half."""
    return random.Random(seed).sample(_all(taught), n)


@cache
def _all(taught: bool) -> list[Pair]:
    half = {topic: words["item"][int(taught) :: 2] for topic, words in grammar.TOPICS.items()}
    return [
        Pair(PROMPT.format(tip=tip), REPLY.format(item=item), REPLY.format(item=other))
        for topic, words in grammar.TOPICS.items()
        for tip in words["tip"]
        for item in half[topic]
        for another in grammar.TOPICS
        if tip not in grammar.TOPICS[another]["tip"]
        for other in half[another]
    ]


def answered(policy: Policy, tokenizer: Any) -> Measured:
    """The share of pairs whose right reply is the likelier one, with 0 or 1 for each pair."""
    with torch.no_grad():
        right = (margin(policy, tokenizer, pairs(PAIRS, SEED)) > 0).double()
    return Measured(float(right.mean()), tuple(right.tolist()))


def finetune(policy: Policy, tokenizer: Any, seed: int) -> None:
    """Finetune a policy on pairs about items that `answered` does not ask about."""
    torch.manual_seed(seed)
    weights = [w.requires_grad_(True) for w in policy.parameters()]
    optimizer = torch.optim.Adam(weights, lr=LR)
    for step in range(UPDATES):
        batch = pairs(BATCH, 1000 * (seed + 1) + step, taught=True)
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
