"""What the online methods have in common: the optimum that they reach, and responses without a score.

`pytest -s` prints the figures.
"""

from __future__ import annotations

import numpy as np
import pytest
import world
from exact_steps import BETA, DIVERGENCES, MILD, trained
from toy_task import ToyTask
from trials import new_trial

from harness.core.errors import RunFailed
from harness.methods.gdc import GDC, GDCSettings
from harness.methods.ppo import PPO, PPOSettings
from harness.methods.reinforce import Reinforce, ReinforceSettings

PPO_STEADY = PPOSettings(kl_coef=BETA, kl_controller="fixed", explore_prompts=512, epochs=2, minibatches=2)

REGULARISED = {"reinforce": Reinforce(ReinforceSettings(kl_coef=BETA, batch_size=256)), "ppo": PPO(PPO_STEADY)} | {
    f"gdc, {d}": GDC(GDCSettings(divergence=d, kl_coef=BETA, samples=16, batch_size=256)) for d in DIVERGENCES
}

LONG = [n if n == "gdc, total_variation" else pytest.param(n, marks=pytest.mark.slow) for n in REGULARISED]  # steps: above


@pytest.mark.parametrize("name", LONG)
def test_with_enough_steps_the_posterior_is_reached(name):
    base, policy = trained(REGULARISED[name], updates=100 if name.startswith("gdc") else 150)
    posterior = world.tilted(base, MILD, 1 / BETA)
    there, back, start = (
        x.mean() for x in (world.kl(policy, posterior), world.kl(posterior, policy), world.kl(base, posterior))
    )
    print(f"\n{name}: KL(policy || posterior) {there:.4f}, KL(posterior || policy) {back:.4f} nats; of the base {start:.3f}")
    assert start > 0.3 and there <= 0.02


SMALL = {"explore_prompts": 8, "epochs": 2, "minibatches": 2}

ONLINE = {
    "reinforce": Reinforce(ReinforceSettings(batch_size=8)),
    "ppo": PPO(PPOSettings(**SMALL)),
    "gdc": GDC(GDCSettings(batch_size=8, samples=4)),
}


@pytest.mark.parametrize("name", ONLINE)
def test_unscored_responses_are_left_out(name):
    trial = new_trial(task=ToyTask(unscored=3))
    rows = [row for _, row in zip(range(3), ONLINE[name].train(trial), strict=False)]
    assert all(np.isfinite(list(row.values())).all() for row in rows) and trial.unscored > 0


@pytest.mark.parametrize("name", ONLINE)
def test_a_scorer_that_scores_nothing(name):
    with pytest.raises(RunFailed, match="look at the scorer"):
        next(ONLINE[name].train(new_trial(task=ToyTask(unscored=8))))
