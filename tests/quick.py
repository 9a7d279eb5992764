"""Runs on the micro world that take seconds: everything real, only smaller."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.settings import RunSettings, resolve
from harness.runs import assemble
from harness.runs.session import Cell
from harness.tasks.micro import world
from harness.tasks.text_task import Data

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


def settings(method: str = "quark", **more: Any) -> dict[str, Any]:
    """In `more` a double underscore is a dot."""
    short = {} if world.data is WHOLE else {"task.decoding.max_new_tokens": TOKENS, "task.paper_tokens": TOKENS}
    return SMALL | short | METHODS.get(method, {}) | {k.replace("__", "."): v for k, v in more.items()}


def overrides(method: str = "quark", **more: Any) -> list[str]:
    """`--set` arguments."""
    return [f"{k}={v}" for k, v in settings(method, **more).items()]


def flags(method: str = "quark", **more: Any) -> list[str]:
    return [word for item in overrides(method, **more) for word in ("--set", item)]


WHOLE = world.data
EVERY = 6  # held-out prompts are thinned by: their kinds come in blocks that are longer
TOKENS = 8  # of a response


@contextmanager
def few_prompts() -> Iterator[None]:
    """Inside, the micro world has every sixth held-out prompt, short answers and few documents: the numbers are other ones."""
    data, responses, tokens = world.data, world.base_responses, world.RESPONSE_TOKENS
    world.data, world.RESPONSE_TOKENS = _thinned, TOKENS
    world.base_responses = lambda *of: responses(*of)[::EVERY, :, :TOKENS]  # as drawn with a lower limit: token by token
    try:
        yield
    finally:
        world.data, world.base_responses, world.RESPONSE_TOKENS = data, responses, tokens


@cache
def _thinned(kinds: tuple[str, ...]) -> Data:
    found = WHOLE(kinds)
    held_out = {name: found.splits[name][::EVERY] for name in ("validation", "test")}
    return found._replace(splits=found.splits | held_out, documents=found.documents[::EVERY], clean=found.clean[:12])


@cache
def _parts(thinned: Any, settings: str) -> assemble.Parts:
    """What cells share, loaded once a process; `thinned` tells the whole world from a thinned one."""
    return assemble.parts(RunSettings.model_validate_json(settings), "toxicity")


def cell(out: Path, method: str = "quark", seed: int = 0, **more: Any) -> Cell:
    found = resolve("micro", method, "toxicity", overrides(method, **more))
    assemble.check(found, method)
    of_parts = found.model_copy(update={"method": {}, "budget": {}, "optimizer": {}})
    shared = _parts(world.data is WHOLE, of_parts.model_dump_json())
    shared = shared._replace(task=copy.copy(shared.task))  # a test may put another scorer in
    return assemble.cell(found, shared, method, "toxicity", seed, out)


def trajectory(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, without the clock."""
    rows = [json.loads(line) for line in (path / "trajectory.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
