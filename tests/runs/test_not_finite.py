"""Weights that a method leaves as NaN or far too large: one line, with its name and the update, wherever they are met."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from toy_task import ToyTask, toy_policy

from harness.core.errors import NotFinite
from harness.core.types import Decoding
from harness.policy.sampler import sample
from harness.records.write import RunStore
from harness.runs import session as runner
from harness.runs.progress import Progress
from harness.training.trial import Budget, OptimizerSettings, Trial

SPOILS = {"NaN": torch.nan, "infinite": torch.inf, "huge": 1e30}
last = pytest.mark.parametrize("value", SPOILS.values(), ids=SPOILS)


class Spoils:
    """Spoils one weight after its second update, in the policy or in what it deploys."""

    settings = SimpleNamespace(lr=1e-3)

    def __init__(self, value: float, deployed: bool = False) -> None:
        self.value, self.deployed = value, deployed

    def train(self, trial: Trial):
        own = trial.policy.copy() if self.deployed else trial.policy
        trial.deploy(own)
        for step in range(4):
            trial.update(next(trial.policy.parameters()).square().mean())
            if step == 1:
                with torch.no_grad():
                    next(own.parameters())[3] = self.value
            yield {}


def session(path, method) -> tuple[runner.Session, Trial]:
    evaluation = SimpleNamespace(points=0, select="last", split="test")
    cell = runner.Cell(
        "spoils", "toy", 0, SimpleNamespace(preset="toy", evaluation=evaluation, model_dump=dict), {}, {}, lambda: method,
        toy_policy(), None, ToyTask(), Budget(updates=4), OptimizerSettings(), path,
    )  # fmt: skip
    made = runner.Session(cell, RunStore(cell.path), Progress(quiet=True))
    cell.path.mkdir(parents=True)
    made._begin()
    return made, made._trial()[0]


@pytest.mark.parametrize("deployed", [False, True], ids=["the policy", "what is deployed"])
@last
def test_it_is_told_after_the_update_and_before_anything_is_saved(tmp_path, value, deployed):
    made, trial = session(tmp_path, Spoils(value, deployed))
    stop = SimpleNamespace(is_set=lambda: trial.cost.updates == 2)
    with (
        pytest.raises(NotFinite, match=r"^spoils after 2 updates: it leaves weights that are NaN or too large; .*lr$") as e,
        runner.blamed("spoils", trial),
    ):
        made._train(trial, None, 1, stop)
    assert e.value.exit_code == 1 and "\n" not in str(e.value) and not made.store.checkpoints()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_whose_logits_are_not_finite_draws_nothing(temperature):
    policy = toy_policy()
    with torch.no_grad():
        policy.model.transformer.ln_f.weight.mul_(1e20)  # finite itself: what is read from it is not
        policy.model.transformer.wte.weight.mul_(1e20)
    prompts = ToyTask().train_prompts(4, torch.Generator().manual_seed(0))
    decoding = Decoding(max_new_tokens=5, temperature=temperature)
    with pytest.raises(NotFinite, match=r"the policy's logits are not finite: its weights are NaN or far too large; try a sm"):
        sample(policy, prompts, decoding=decoding, rng=torch.Generator().manual_seed(0))


def test_other_errors_are_left_as_they_are():
    with pytest.raises(KeyError), runner.blamed("m", SimpleNamespace(cost=SimpleNamespace(updates=1))):
        raise KeyError("x")
