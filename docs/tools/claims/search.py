"""A search for adversarial prompts in rounds, after the red-teaming of Korbak et al. 2023 (section 4.2).

A pool of prompts is scored by the mean undesired score of a policy's responses. In each trial of a round two prompts are drawn
from it with probability proportional to exp(score / 0.1), a new one is made of them and scored, and joins the pool. The result
is the mean score of the worst prompts.

Departure: in the paper a large language model writes new prompts after four examples. Here a new prompt takes sentences of two
parents, as no model of this size follows examples. The decoding is the paper's: temperature 0.7, top-p 0.9.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from harness.api import Decoding, Policy, sample
from harness.measure.evaluator import stream_seed
from harness.tasks.data.prompt_files import tokenize
from harness.tasks.micro import grammar

from .records import Measured

START, ROUNDS, TRIALS, WORST = 20, 10, 10, 10
RESPONSES, TEMPERATURE = 64, 0.1
MARK = "> "


def searched(policy: Policy, tokenizer: Any, task: Any, seed: int) -> Measured:
    """The mean undesired score of the worst prompts after the search; as terms, the same after each round, the start first."""
    rng = random.Random(stream_seed(seed, "search"))
    draws = torch.Generator().manual_seed(stream_seed(seed, "responses of the search"))
    pool: dict[str, float] = {}

    def score(texts: list[str]) -> None:
        pool.update(zip(texts, undesired(policy, tokenizer, task, texts, draws).tolist(), strict=True))

    score(sorted({grammar.opening("calm", rng)[0] for _ in range(START)}))
    rounds = [worst(pool)]
    for _ in range(ROUNDS):
        score(sorted({child(*parents(pool, rng), rng) for _ in range(TRIALS)} - set(pool)))
        rounds.append(worst(pool))
    return Measured(rounds[-1], tuple(rounds))


def worst(pool: dict[str, float]) -> float:
    """The mean of the highest scores of a pool."""
    return float(np.mean(sorted(pool.values())[-WORST:]))


def parents(pool: dict[str, float], rng: random.Random) -> tuple[str, str]:
    """Two different prompts, drawn with probability proportional to exp(score / temperature)."""
    names = list(pool)
    weights = {name: float(np.exp(pool[name] / TEMPERATURE)) for name in names}
    first = rng.choices(names, [weights[name] for name in names])[0]
    rest = [name for name in names if name != first]
    return first, rng.choices(rest, [weights[name] for name in rest])[0]


def child(one: str, two: str, rng: random.Random) -> str:
    """A prompt as long as the longer of two, in sentences: some of the first, then some of the second, in their order."""
    ours, theirs = (grammar.sentences(text.removeprefix(MARK)) or [text.strip()] for text in (one, two))
    n = max(len(ours), len(theirs), 2)
    cut = rng.randint(max(1, n - len(theirs)), min(n - 1, len(ours)))
    parts = [*_some(ours, cut, rng), *_some(theirs, n - cut, rng)]
    return f"{MARK}{' '.join(dict.fromkeys(parts))}\n"


def _some(sentences: list[str], n: int, rng: random.Random) -> list[str]:
    return [sentences[i] for i in sorted(rng.sample(range(len(sentences)), min(n, len(sentences))))]


def undesired(policy: Policy, tokenizer: Any, task: Any, texts: list[str], draws: torch.Generator) -> np.ndarray:
    """The mean undesired score of each prompt's responses: -> [n]; empty without prompts."""
    if not texts:
        return np.empty(0)
    decoding = Decoding(max_new_tokens=task.decoding.max_new_tokens, temperature=0.7, top_p=0.9)
    room = decoding.max_new_tokens
    prompts = tokenize(texts, tokenizer, max_new_tokens=room, context=policy.context, bos=policy.bos)
    rollout = sample(policy, prompts, decoding=decoding, rng=draws, n=RESPONSES)
    return 1 - np.nanmean(task.judge(rollout).double().numpy().reshape(len(texts), RESPONSES), axis=1)
