"""The training of a control that is trained as the base policy was: its budget and its optimizer in place of the preset's."""

from __future__ import annotations

from functools import cache
from typing import Any

from harness.core.errors import BadSetting, MissingPrerequisite
from harness.core.settings import RunSettings
from harness.core.types import BaseTraining


def of_control(kind: Any, name: str, of_method: Any, settings: RunSettings, task: Any) -> tuple[RunSettings, dict[str, Any]]:
    """The settings of a run, and what its identity has besides if its method is a control that `sees_judge`.

    Such a control has the base policy's budget and optimizer. `task` is None where the base policy is not known to be that
    of its corpus; raises MissingPrerequisite then.
    """
    if not getattr(kind, "sees_judge", False):
        return settings, {}
    training = known(task, name, settings.model.id)
    return as_the_base(settings, training, of_method), {"base_training": training.identity}


def known(task: Any, method: str = "a control", model: str = "") -> BaseTraining:
    """The training of the base policy on documents without the habit; raises MissingPrerequisite if it is unknown."""
    found: BaseTraining | None = getattr(task, "base_training", lambda: None)()
    if found is None:
        raise MissingPrerequisite(
            f"{method} repeats the training of the base policy{f' {model}' * bool(model)} without the habit, and how and on "
            "what it was trained is unknown; expected model.id=micro and task.prompts=micro"
        )
    return found


def as_the_base(settings: RunSettings, training: BaseTraining, of_method: Any) -> RunSettings:
    """The settings with a share (`share` of the method) of the base policy's updates as the budget, and with its optimizer."""
    updates = max(1, round(getattr(of_method, "share", 1.0) * training.updates))
    warm = round(training.optimizer.get("warmup_updates", 0) * updates / training.updates)
    optimizer = training.optimizer | {"warmup_updates": warm}
    return settings.model_copy(update={"budget": {"updates": updates}, "optimizer": optimizer})


@cache
def one_cycle(lr: float | None, updates: int | None, warmup_updates: int) -> list[tuple[float, float]]:
    """Learning rate and Adam's first decay rate at each update, by PyTorch's OneCycleLR; raises BadSetting.

    (Smith and Topin 2017, arXiv:1708.07120): the learning rate rises from 1/25 of the largest and falls to nearly nothing.
    """
    import torch

    if updates is None or lr is None:
        raise BadSetting("optimizer.decay=one_cycle goes over a number of updates; give budget.updates")
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=lr)
    warm = min(warmup_updates, updates - 1)
    rising = warm / updates if warm > 1 else 0.0  # the formula divides by warm - 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=lr, total_steps=updates, pct_start=rising)
    found = [(float(adam.param_groups[0]["lr"]), float(adam.param_groups[0]["betas"][0]))]
    for _ in range(updates - 1):
        adam.step()
        cycle.step()
        found.append((float(adam.param_groups[0]["lr"]), float(adam.param_groups[0]["betas"][0])))
    return found
