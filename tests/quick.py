"""Runs on the micro world that take seconds: everything real, only smaller."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harness import assemble
from harness.runner import Cell
from harness.settings import RunSettings, resolve
from tasks.micro import world
from tasks.text_task import Data

SMALL = {
    "budget.updates": 6,
    "evaluation.split": "validation",
    "evaluation.points": 3,
    "evaluation.point_samples": 1,
    "evaluation.samples": 2,
    "evaluation.paper_samples": 2,
    "evaluation.base_samples": 64,
}
LEARN = {"explore_every": 2, "explore_prompts": 16, "batch_size": 4}
GROUPS = {"explore_every": 2, "group_size": 2, "batch_size": 4}
READ = {"batch_size": 4}
METHODS = {
    "awr": READ,
    "base": {},
    "best_of_n": {},
    "best_quantile": LEARN,
    "conditional_pretraining": READ,
    "dexperts": READ,
    "dpo": LEARN,
    "filtering": READ,
    "gdc": {"batch_size": 8, "samples": 4},
    "gradient_ascent": LEARN,
    "grpo": GROUPS,
    "kto": LEARN,
    "mle": READ,
    "npo": LEARN,
    "ppo": {"explore_prompts": 8, "epochs": 2, "minibatches": 2},
    "quark": LEARN,
    "random_reward": {"batch_size": 4},
    "reinforce": {"batch_size": 4},
    "rloo": GROUPS,
    "rwr": READ,
    "unlikelihood": LEARN,
}


def overrides(method: str = "quark", **more: Any) -> list[str]:
    """`--set` arguments; in `more` a double underscore is a dot."""
    settings = SMALL | METHODS.get(method, {}) | {k.replace("__", "."): v for k, v in more.items()}
    return [f"{k}={v}" for k, v in settings.items()]


def flags(method: str = "quark", **more: Any) -> list[str]:
    return [word for item in overrides(method, **more) for word in ("--set", item)]


EVERY = 6  # held-out prompts are thinned by: their kinds come in blocks that are longer


@contextmanager
def few_prompts() -> Iterator[None]:
    """Inside, the micro world has every sixth held-out prompt and a little clean text: the numbers are other ones."""
    whole, responses = world.data, world.base_responses

    def data(kinds: tuple[str, ...]) -> Data:
        found = whole(kinds)
        held_out = {name: found.splits[name][::EVERY] for name in ("validation", "test")}
        return found._replace(splits=found.splits | held_out, clean=found.clean[:40])

    world.data, world.base_responses = data, lambda *of: responses(*of)[::EVERY]
    try:
        yield
    finally:
        world.data, world.base_responses = whole, responses


@cache
def _parts(thinned: Any, settings: str) -> assemble.Parts:
    """What cells share, loaded once a process; `thinned` tells the whole world from a thinned one."""
    return assemble.parts(RunSettings.model_validate_json(settings), "toxicity")


def cell(out: Path, method: str = "quark", seed: int = 0, **more: Any) -> Cell:
    settings = resolve("micro", method, "toxicity", overrides(method, **more))
    assemble.check(settings, method)
    of_parts = settings.model_copy(update={"method": {}, "budget": {}, "optimizer": {}})
    shared = _parts(world.data is WHOLE, of_parts.model_dump_json())
    shared = shared._replace(task=copy.copy(shared.task))  # a test may put another scorer in
    return assemble.cell(settings, shared, method, "toxicity", seed, out)


WHOLE = world.data


def trajectory(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, without the clock."""
    rows = [json.loads(line) for line in (path / "trajectory.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
