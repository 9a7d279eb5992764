"""Kahneman-Tversky optimisation on labels from the reward, by TRL's KTOTrainer (Ethayarajh et al. 2024,
arXiv:2402.01306, section 4).

    y ~ policy(. | x);  label: desirable if r(y) is above the exploration's mean, undesirable if below           explore
    z = max(0, mean of log policy/reference (y' | x) over mismatched pairs),  h = log policy/reference (y | x)
    min over theta:  w+ * (1 - sigmoid(beta * (h - z)))  where desirable                                         learn
                     w- * (1 - sigmoid(beta * (z - h)))  where undesirable

Departures: the paper's labels are given once by humans; here the reward gives them, and new examples join the pool at
each exploration, the first ones sampled from the base policy. A reward equal to the mean gives no example and is counted.
Each batch has equal numbers of desirable and undesirable examples. The mismatched pairs are the batch with its responses
shifted by one, as in TRL 1.16, whose loss is used (`trl_bridge`); the reference is the base policy throughout.

A deterministic label has no optimal h: the loss decreases monotonically, so a large beta slows the policy but does not
return it to the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.api import Knob, Rollout, RunFailed, Settings, Trial, trl_bridge


class KTOSettings(Settings):
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate")
    kl_coef: float = Field(0.1, gt=0, description="beta, strength of the implied KL to the reference")
    desirable_weight: float = Field(1.0, ge=0, description="weight of desirable responses, w+")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of undesirable responses, w-")
    explore_every: int = Field(500, ge=1, description="updates between explorations")
    explore_prompts: int = Field(4096, ge=1, description="prompts per exploration")
    batch_size: int = Field(128, ge=2, multiple_of=2, description="responses per update, half of them undesirable")


class KTO:
    version = 1
    Settings = KTOSettings
    family = "preferences"
    knob = Knob("kl_coef", (3.0, 1.0, 0.3, 0.1, 0.03))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"reward_rises": {}}

    def __init__(self, settings: KTOSettings) -> None:
        trl_bridge.required()
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        state = trial.keep(step=0, desirable=[], undesirable=[], ties=0, pool_reward=0.0)
        weights = {"desirable_weight": s.desirable_weight, "undesirable_weight": s.undesirable_weight}
        trainer = trl_bridge.preference_trainer("KTO", trial, beta=s.kl_coef, **weights)
        while True:
            if state.step % s.explore_every == 0:  # explore
                self._explore(trial, state)

            half = s.batch_size // 2  # learn
            batch = draw(state.desirable, half, trial.rng) + draw(state.undesirable, half, trial.rng)
            value, measured = trl_bridge.loss(trainer, trainer.data_collator(mismatched(batch)))
            trial.update(value)
            state.step += 1
            yield {"loss": value.item(), "z": measured["kl"], "ties": state.ties, "pool_reward": state.pool_reward}

    def _explore(self, trial: Trial, state: SimpleNamespace) -> None:
        rollout = trial.sample(trial.prompts(self.settings.explore_prompts))
        reward = trial.reward(rollout)
        examples, ties = labelled(rollout, reward)
        for example in examples:
            (state.desirable if example["label"] else state.undesirable).append(example)
        state.ties += ties
        state.pool_reward = reward.nanmean().item()
        if not state.desirable:  # values above the mean imply values below it: both lists are empty or neither is
            raise RunFailed(f"all of {len(reward)} responses have the same reward; raise explore_prompts")


def labelled(rollout: Rollout, reward: Tensor) -> tuple[list[dict[str, Any]], int]:
    """Label responses above their mean reward desirable, those below undesirable; count those equal to it: [B, R], [B].

    Unscored responses are left out.
    """
    reward = reward.double()  # the mean of equal float32 rewards is then exactly their value
    mean = reward.nanmean()
    prompt, response = trl_bridge.rows(*rollout.prompts), trl_bridge.rows(rollout.response, rollout.response_mask)
    counts = ((reward > mean) | (reward < mean)).nonzero().flatten().tolist()
    examples = [{"prompt_ids": prompt[i], "completion_ids": response[i], "label": bool(reward[i] > mean)} for i in counts]
    return examples, int((reward == mean).sum())


def draw(examples: list[dict[str, Any]], n: int, rng: torch.Generator) -> list[dict[str, Any]]:
    """Draw n examples at random, with replacement."""
    return [examples[i] for i in torch.randint(len(examples), (n,), generator=rng).tolist()]


def mismatched(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pair each prompt with the response of the previous example, from which TRL estimates z."""
    return [
        row | {"KL_completion_ids": other["completion_ids"]} for row, other in zip(batch, batch[-1:] + batch[:-1], strict=True)
    ]
