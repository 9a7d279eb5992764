"""What is known of the base policy on a task's held-out prompts: its responses, their scores, the frontier.

Drawing hundreds of responses to each prompt is the dearest measurement of a first run, so it is kept by identity: in
the package for the micro world, else in a folder beside the results.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import frontier
from .disk import writing
from .errors import BadData, Degraded
from .evaluation import Base, scored
from .policy import Policy
from .sampler import sample, until_eos
from .settings import EvaluationSettings
from .store import identity_hash
from .types import Prompts, PromptSet, Rollout

SAMPLER_VERSION = 1
BASE_SEED = 7  # its own stream, apart from the one that policies are measured with


class Cache:
    """Arrays by identity, in files that are whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, kind: str, identity: dict[str, Any]) -> dict[str, NDArray] | None:
        path = self._path(kind, identity)
        if not path.exists():
            return None
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except Exception as e:
            raise BadData(f"cached {kind} {path} cannot be read ({e}); delete it and run again") from None

    def put(self, kind: str, identity: dict[str, Any], **arrays: NDArray) -> None:
        path = self._path(kind, identity)
        # a name of its own: another run may be making the same thing
        temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.tmp.npz")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, kind: str, identity: dict[str, Any]) -> Path:
        return self.folder / f"{kind}-{identity_hash(identity)[:16]}.npz"


def known(
    task: Any,
    reference: Policy,
    identity: dict[str, Any],
    settings: EvaluationSettings,
    cache: Cache,
    say: Callable[[str], None],
    shipped: NDArray | None = None,
) -> Base:
    """The base policy's responses, rewards and frontier; what the cache lacks is made and kept.

    `identity` is of the model and the task; `shipped` are responses that came with the package: [X, M, R].
    """
    prompts = task.prompts(settings.split)
    drawn = {"base": identity, "split": settings.split, "n": settings.base_samples, "sampler": SAMPLER_VERSION}
    if shipped is not None and shipped.shape[1] >= settings.base_samples:
        responses = torch.from_numpy(shipped[:, : settings.base_samples].astype(np.int64))
    else:
        responses = _responses(task, reference, drawn, prompts, settings, cache, say)
    mask = until_eos(responses.flatten(0, 1), reference.ends).view(responses.shape)
    reward, judge = _scores(task, drawn, prompts, responses, mask, cache, say)
    _check_judged(reward, judge)
    responses, mask = responses.to(reference.device), mask.to(reference.device)
    prompts = prompts._replace(prompts=prompts.prompts.to(reference.device))
    return Base(prompts, responses, mask, reward, judge, frontier.estimate(reward))


def _responses(
    task: Any, reference: Policy, drawn: dict, prompts: PromptSet, settings: EvaluationSettings, cache: Cache, say: Callable
) -> Tensor:
    found = cache.get("responses", drawn)
    if found is None:
        parts, rng, total, said = [], torch.Generator().manual_seed(BASE_SEED), len(prompts.texts), 0.0
        for x in range(total):
            one = Prompts(*(p[x : x + 1].to(reference.device) for p in prompts.prompts))
            rollout = sample(reference, one, decoding=task.decoding, rng=rng, n=settings.base_samples)
            parts.append(rollout.response.cpu().numpy().astype(np.int32))
            if x == 0 or time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"drawing base responses for the frontier, once for this model: prompt {x + 1} of {total}")
        found = {"responses": np.stack(parts)}
        cache.put("responses", drawn, **found)
    return torch.from_numpy(found["responses"].astype(np.int64))


def _scores(
    task: Any, drawn: dict, prompts: PromptSet, responses: Tensor, mask: Tensor, cache: Cache, say: Callable
) -> tuple[NDArray, NDArray]:
    """Reward and judge of each base response: [X, M], [X, M]; equal responses to a prompt are scored once."""
    key = {"drawn": drawn, "scorers": task.identity()["scorers"]}
    found = cache.get("scores", key)
    if found is not None:
        _check_kept(found, responses.shape[:2], cache._path("scores", key))
    else:
        say("scoring the base responses for the frontier, once for these scorers")
        rows = [_score_prompt(task, prompts, x, responses[x], mask[x]) for x in range(len(responses))]
        reward, judge = (np.stack(x) for x in zip(*rows))
        found = {"reward": reward, "judge": judge}
        if not np.isnan(np.stack([reward, judge])).any():  # a scorer's failure is tried again next time
            cache.put("scores", key, **found)
    return found["reward"], found["judge"]


def _check_kept(found: dict[str, NDArray], shape: tuple[int, ...], path: Path) -> None:
    """Whether arrays of the cache are scores of these responses; raises BadData."""
    for name in ("reward", "judge"):
        kept = found.get(name)
        if kept is None or kept.shape != shape or kept.dtype.kind != "f" or not ((kept >= 0) & (kept <= 1)).all():
            raise BadData(
                f"cached scores {path} hold no {name} in [0, 1] of each of {shape} responses; delete it and run again"
            )


def _check_judged(reward: NDArray, judge: NDArray) -> None:
    """Whether the frontier can be judged at every prompt: a base response that both scorers could score; raises Degraded."""
    none = ~np.isnan(reward).all(1) & np.isnan(reward + judge).all(1)  # without a reward the frontier says so
    if none.any():
        raise Degraded(
            f"the judge could score no base response to {int(none.sum())} of {len(none)} prompts, the first of them "
            f"prompt {int(none.argmax())} of the split; each needs one that the reward scores too: look at the judge"
        )


def _score_prompt(task: Any, prompts: PromptSet, x: int, responses: Tensor, mask: Tensor) -> tuple[NDArray, NDArray]:
    unique, where = torch.unique(responses, dim=0, return_inverse=True)
    first = torch.zeros(len(unique), dtype=torch.long).scatter(0, where, torch.arange(len(where)))
    repeated = Prompts(*(p[x : x + 1].expand(len(unique), -1) for p in prompts.prompts))
    rollout = Rollout(repeated, responses[first], mask[first])
    reward, judge = scored("reward", task.reward(rollout), len(first)), scored("judge", task.judge(rollout), len(first))
    return reward[where.numpy()], judge[where.numpy()]
