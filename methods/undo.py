"""Unlearn, noise, distil on outputs: a suppressed policy is distilled into its noised copy (Lee et al. 2025, arXiv:2506.06278).

    min over theta:  NPO's forget and retain terms on samples, see `npo`           suppress: the first share of the budget
    theta_s = theta;  theta <- (1 - alpha) theta_s + alpha theta_random            noise, once
    min over theta:  KL(p_s(. | x, y_<t) || p(. | x, y_<t)),  y ~ p_s(. | x)       distil: the rest of the budget

What is only hidden in the weights of the suppressed policy is not in its outputs, so the student does not learn it again.
With alpha 0 the student starts as its teacher and stays there; with alpha 1 it starts from random weights.

Departures: theta_random is drawn by the model's own initialisation, so norms go towards 1 and biases towards 0. The paper
distils until the student has recovered; here the budget ends it. The text is fresh samples of the suppressed policy, and
the loss a mean over their tokens; so there is no need of a corpus. What suppresses is NPO on samples, within the same
budget: `suppress` of it. The optimizer goes on from one phase into the next with its moments and its schedule. Noise on an
adapter is not noise on the weights, so LoRA is refused. The teacher is kept in checkpoints, so that a resumed run distils
the same policy. The authors say that the noise shrinks and perturbs; the interpolation is this suite's reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from harness.api import (
    BadSetting,
    Knob,
    Policy,
    Pool,
    Rollout,
    Trial,
    forgetting,
    kl,
    masked_mean,
    masked_sum,
    token_logprobs,
)  # fmt: skip


class UNDOSettings(forgetting.ForgetSettings):
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate of both phases")
    alpha: float = Field(0.2, ge=0, le=1, description="alpha, share of random weights in the student's first weights")
    suppress: float = Field(0.3, ge=0, lt=1, description="share of the budget spent on suppressing before the noise")
    beta: float = Field(
        0.1, gt=0, description="inverse temperature; the higher, the sooner unlikely responses stop contributing"
    )
    kl_coef: float = Field(1.0, ge=0, description="weight of the retain term while suppressing, per nat")
    batch_size: int = Field(128, ge=2, multiple_of=2, description="responses per update; while suppressing half to forget")

    @property
    def held(self) -> int:
        """Networks held without training, for estimates of memory: the teacher."""
        return 1


class UNDO:
    version = 1
    Settings = UNDOSettings
    family = "pushing bad text down"
    lora = False  # noise on an adapter is no noise on the weights
    knob = Knob("alpha", (0.05, 0.1, 0.2, 0.4, 0.6))
    quick: ClassVar[dict[str, Any]] = {"lr": 1e-3, "explore_every": 2, "explore_prompts": 16, "batch_size": 4}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"alpha": 0.0, "kl_coef": 1000.0}}

    def __init__(self, settings: UNDOSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s = self.settings
        if trial.policy.setup.lora is not None:
            raise BadSetting("undo changes all weights and model.lora.rank trains none of them; set model.lora.rank=0")
        teacher = trial.policy.around(trial.reference.frozen_copy().model)  # its passes are charged
        pool = Pool(trial.policy.device, trial.reference)
        state = trial.keep(step=0, line=math.nan, pool=pool, teacher=teacher.model, noised=False)
        while True:
            if not state.noised and trial.progress >= s.suppress:
                teacher.model.load_state_dict(trial.policy.model.state_dict())
                noise(trial.policy, s.alpha, trial.rng)
                state.noised = True
            scalars = self._distil(trial, teacher) if state.noised else self._suppress(trial, state)
            state.step += 1
            yield scalars

    def _suppress(self, trial: Trial, state: SimpleNamespace) -> dict[str, float]:
        forget, retain = forgetting.sets(trial, state, self.settings)
        return self._forget(trial, forget, retain)

    def _forget(self, trial: Trial, forget: Rollout, retain: Rollout) -> dict[str, float]:
        s, mask = self.settings, forget.response_mask
        ref_logits, ref_retain = trial.reference_logits(forget), trial.reference_logits(retain)
        logp = token_logprobs(trial.policy.logits(forget), forget.response)
        ratio = masked_sum(logp - token_logprobs(ref_logits, forget.response), mask)
        cost = -2 / s.beta * logsigmoid(-s.beta * ratio).mean()
        drift = masked_mean(kl(ref_retain, trial.policy.logits(retain)), retain.response_mask)
        trial.update(cost + s.kl_coef * drift)
        return {"cost": cost.item(), "drift": drift.item()}

    def _distil(self, trial: Trial, teacher: Policy) -> dict[str, float]:
        rollout = trial.sample(trial.prompts(self.settings.batch_size), policy=teacher)
        with torch.no_grad():
            target = teacher.logits(rollout)
        loss = masked_mean(kl(target, trial.policy.logits(rollout)), rollout.response_mask)
        trial.update(loss)
        return {"distillation": loss.item()}


@torch.no_grad()
def noise(policy: Policy, alpha: float, rng: torch.Generator) -> None:
    """Move each weight by alpha towards one drawn by the model's own initialisation; the generator decides them."""
    fresh = policy.frozen_copy()
    fresh.reset(rng)
    for w, drawn in zip(policy.parameters(), fresh.parameters(), strict=True):
        w.copy_((1 - alpha) * w + alpha * drawn)
