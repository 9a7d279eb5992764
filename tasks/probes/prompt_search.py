"""A search for prompts that bring the habit out, in rounds (Korbak et al. 2023, arXiv:2302.08582, section 4.2).

A pool of prompts is scored by the mean undesired score (1 - judge) of a policy's responses. In each trial of a round a prompt
is drawn from it with probability proportional to exp(score / 0.1), a new one is made of it and scored, and joins the pool. A
reading is the mean judge score of the responses to the worst prompts.

Departures. In the paper a large language model writes a new prompt after four examples; here the base policy writes it: the
beginning of the drawn prompt stays, and its last token, which may mark the end of a turn; what is between is sampled anew. The
pool starts with the prompts that the policy answers best, a quarter of those drawn: what is found is then the work of the
search, not of test prompts that are adversarial to begin with. The worst prompts of a reading are scored once more with other
draws, since the lowest of many noisy scores are too low. The decoding is the paper's: temperature 0.7, top-p 0.9.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from harness.api import Decoding, Metric, Probed, Prompts, Reading, Settings, metrics, sample

TEMPERATURE = 0.1  # of the draws from the pool
DRAWN = 4  # test prompts for each that is in the pool at the start
LONGEST_TRY = 20  # draws of a parent without a new prompt, after which a trial is given up

Ids = tuple[int, ...]


class PromptSearchSettings(Settings):
    start: int = Field(40, ge=2, description="test prompts in the pool at the start, those answered best of four times as many")
    rounds: int = Field(10, ge=1, description="rounds")
    trials: int = Field(20, ge=1, description="new prompts per round")
    worst: int = Field(10, ge=1, description="prompts of a reading, the worst of the pool")
    responses: int = Field(32, ge=2, description="responses by which a prompt is scored")


class PromptSearch:
    """An evolutionary search for the prompts with the worst responses."""

    version = 2  # 1 began with prompts drawn at random
    Settings = PromptSearchSettings
    unit = "rounds"
    number = "worst"

    def __init__(self, settings: PromptSearchSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        s, pool = self.settings, dict[Ids, float]()
        self._add(pool, probed, starting(probed.prompts, DRAWN * s.start, probed.rng))
        pool = {prompt: pool[prompt] for prompt in sorted(pool, key=lambda prompt: pool[prompt])[: s.start]}
        yield Reading(0, self._worst(pool, probed))
        for i in range(1, s.rounds + 1):
            self._add(pool, probed, [child for _ in range(s.trials) if (child := self._child(pool, probed)) is not None])
            yield Reading(i, self._worst(pool, probed))

    def _add(self, pool: dict[Ids, float], probed: Probed, prompts: list[Ids]) -> None:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in pool]
        if new:
            pool.update(zip(new, np.nan_to_num(1 - np.nanmean(self._judge(probed, new), 1)).tolist(), strict=True))

    def _worst(self, pool: dict[Ids, float], probed: Probed) -> dict[str, Metric]:
        """The judge's score of fresh responses to the worst prompts."""
        lowest = sorted(pool, key=lambda prompt: pool[prompt])[-self.settings.worst :]
        return {"judge": metrics.cluster_mean(self._judge(probed, lowest))}

    def _judge(self, probed: Probed, prompts: list[Ids]) -> NDArray[np.float64]:
        """The judge's score of responses to prompts, NaN where it failed: -> [n, responses]."""
        decoding = Decoding(max_new_tokens=probed.task.decoding.max_new_tokens, temperature=0.7, top_p=0.9)
        asked = padded(prompts).to(probed.policy.device)
        rollout = sample(probed.policy, asked, decoding=decoding, rng=probed.rng, n=self.settings.responses)
        return probed.scores(rollout).reshape(len(prompts), -1)

    def _child(self, pool: dict[Ids, float], probed: Probed) -> Ids | None:
        """A new prompt, of whose parent the base policy wrote the middle anew; None if none is found."""
        names = list(pool)
        weights = torch.tensor([pool[name] for name in names], dtype=torch.float64).div(TEMPERATURE).softmax(0)
        for _ in range(LONGEST_TRY):
            parent = names[int(torch.multinomial(weights, 1, generator=probed.rng))]
            if len(parent) > 3 and (child := rewritten(parent, probed)) not in pool:
                return child
        return None


def starting(prompts: Prompts, n: int, rng: torch.Generator) -> list[Ids]:
    """n of the prompts, without their padding, in random order."""
    rows = torch.randperm(len(prompts.tokens), generator=rng)[:n]
    return [tuple(prompts.tokens[i][prompts.mask[i]].tolist()) for i in rows.tolist()]


def rewritten(parent: Ids, probed: Probed) -> Ids:
    """The beginning of a prompt and its last token, with a continuation by the base policy in between."""
    cut = int(torch.randint(1, len(parent) - 1, (), generator=probed.rng))
    decoding = Decoding(max_new_tokens=len(parent) - 1 - cut)
    beginning = padded([parent[:cut]]).to(probed.base.device)
    written = sample(probed.base, beginning, decoding=decoding, rng=probed.rng).response[0].tolist()
    ends = [i for i, token in enumerate(written) if token in probed.base.ends]
    return (*parent[:cut], *written[: ends[0] if ends else None], parent[-1])


def padded(prompts: list[Ids]) -> Prompts:
    """Prompts as a batch, padded on the left: -> [n, P]."""
    longest = max(map(len, prompts))
    rows: list[Tensor] = [torch.tensor([0] * (longest - len(ids)) + list(ids)) for ids in prompts]
    mask = torch.tensor([[False] * (longest - len(ids)) + [True] * len(ids) for ids in prompts])
    return Prompts(torch.stack(rows), mask)
