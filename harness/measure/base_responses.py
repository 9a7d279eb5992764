"""The base policy's responses on a task's held-out prompts, their scores and the frontier.

Sampling hundreds of responses per prompt is the most expensive step of a first run, so the responses are cached by identity:
in the package for the micro world, else in a folder beside the results.
"""

from __future__ import annotations

import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.core.errors import BadData, BadSetting, Degraded, Unwritable, one_line
from harness.core.files import writable, writing
from harness.core.hashing import identity_hash
from harness.core.settings import EvaluationSettings
from harness.core.types import Prompts, PromptSet, Rollout, Task
from harness.policy.models import processes
from harness.policy.policy import Policy
from harness.policy.sampler import sample, until_eos

from . import frontier
from .evaluator import Base, scored

SAMPLER_VERSION = 1
ROWS = 512  # responses that are drawn in one batch
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # temperature 1 without truncation
BASE_SEED = 7  # independent of the seed with which policies are evaluated


class Expected(NamedTuple):
    """The expected properties of a cached array."""

    shape: tuple[int, ...]
    kind: str  # kind of the dtype: i, u, f
    most: float  # values lie in [0, most]


class Cache:
    """A cache of arrays by identity, in files that are written atomically and read without unpickling.

    What is not in the folder is looked up in `shipped`, which is never written: a file there is named by the identity of all
    that it depends on, so a file of another model, task, scorer or version is not found.
    """

    def __init__(self, folder: Path, shipped: Path | None = None) -> None:
        self.folder, self.shipped = folder, shipped

    def get(self, kind: str, identity: dict[str, Any], expected: Mapping[str, Expected] | None = None) -> dict[str, Any] | None:
        """The cached arrays, or None if there are none; raises BadData if the file does not hold what is expected."""
        path = self._found(kind, identity)
        if path is None:
            return None
        try:
            for name, wanted in (expected or {}).items():
                _check_header(path, name, wanted)
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in (expected or arrays.files)}
        except Exception as e:  # zip, numpy and the system raise many types
            raise BadData(f"the cached {kind} in {path} cannot be read: {one_line(e)}") from None
        for name, wanted in (expected or {}).items():
            if not ((found[name] >= 0) & (found[name] <= wanted.most)).all():
                raise BadData(f"the cached {kind} in {path} cannot be used: expected {name} within 0 to {wanted.most:g}")
        return found

    def ready(self, kind: str, identity: dict[str, Any]) -> None:
        """Check, before arrays are computed, that they can be cached; raises Unwritable."""
        writable(self.folder)
        path = self._path(kind, identity)
        if path.is_dir():
            raise Unwritable(f"cannot cache the {kind} in {path}: it is a folder; move it, or use another --out")

    def put(self, kind: str, identity: dict[str, Any], **arrays: NDArray[Any]) -> None:
        """Write arrays to the cache; raises CannotWrite."""
        path = self._path(kind, identity)
        # a unique name, since another run may be writing the same arrays
        temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.tmp.npz")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
                temporary.replace(path)
            finally:
                with suppress(OSError):  # fails for the same reason as the write, which is reported already
                    temporary.unlink(missing_ok=True)

    def _found(self, kind: str, identity: dict[str, Any]) -> Path | None:
        """The file of an identity in the folder, else in `shipped`."""
        path = self._path(kind, identity)
        places = [path] if self.shipped is None else [path, self.shipped / path.name]
        return next((place for place in places if place.is_file()), None)

    def _path(self, kind: str, identity: dict[str, Any]) -> Path:
        return self.folder / f"{kind}-{identity_hash(identity)[:16]}.npz"


def _check_header(path: Path, name: str, wanted: Expected) -> None:
    """Check shape and dtype in the header of a file before the array is read; raises ValueError, KeyError."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    fits = len(shape) == len(wanted.shape) and all(w in (-1, n) for w, n in zip(wanted.shape, shape, strict=True))
    if not fits or dtype.kind != wanted.kind:
        raise ValueError(f"{name} is {dtype} {list(shape)}, expected {wanted.kind} {list(wanted.shape)}")


def known(
    task: Task,
    reference: Policy,
    identity: dict[str, Any],
    settings: EvaluationSettings,
    cache: Cache,
    say: Callable[[str], None],
    shipped: NDArray[np.integer[Any]] | None = None,
) -> Base:
    """The base policy's responses, scores and frontier, from the cache if possible, else computed and cached.

    `identity` is that of the model and the task; `shipped` are responses from the package: [X, M, R]. Raises BadSetting if
    the task's decoding is not temperature 1 without truncation, Degraded if a prompt has no scored response.
    """
    _check_decoding(task)
    prompts = task.prompts(settings.split)
    drawn = {"base": identity, "split": settings.split, "n": settings.base_samples, "sampler": SAMPLER_VERSION}
    if shipped is not None and shipped.shape[1] >= settings.base_samples:
        responses = torch.from_numpy(shipped[:, : settings.base_samples].astype(np.int64))
    else:
        responses = _responses(task, reference, drawn, prompts, settings, cache, say)
    mask = until_eos(responses.flatten(0, 1), reference.ends).view(responses.shape)
    reward, judge = _scores(task, drawn, prompts, responses, mask, cache, say)
    _check_scored(prompts, {"reward": reward, "judge": judge, "reward and the judge together": reward + judge})
    responses, mask = responses.to(reference.device), mask.to(reference.device)
    prompts = prompts._replace(prompts=prompts.prompts.to(reference.device))
    return Base(prompts, responses, mask, reward, judge, frontier.estimate(reward))


def _check_decoding(task: Task) -> None:
    """Raise BadSetting for another decoding than PLAIN, since KL and the frontier assume samples from the policy itself."""
    other = {name: value for name, plain in PLAIN.items() if (value := getattr(task.decoding, name)) != plain}
    if other:
        raise BadSetting(
            f"task {task.name!r} has the decoding {other}, expected {PLAIN}; "
            "put any other decoding into the task's paper_decodings"
        )


def _check_scored(prompts: PromptSet, scores: dict[str, NDArray[np.float64]]) -> None:
    for name, found in scores.items():
        unscored = np.flatnonzero(np.isnan(found).all(1))
        if len(unscored):
            first = prompts.places[unscored[0]] if prompts.places else f"prompt_id {unscored[0]}"
            raise Degraded(
                f"the {name} could score no base response to {len(unscored)} of {len(found)} prompts ({first} is the first); "
                f"expected at least one per prompt: leave those prompts out, or choose another {name}"
            )


def _kept(
    cache: Cache, kind: str, key: dict[str, Any], expected: Mapping[str, Expected], say: Callable[[str], None]
) -> dict[str, NDArray[Any]] | None:
    """The cached arrays, or None after a check that the cache can be written; an unusable file is reported by `say`."""
    try:
        found = cache.get(kind, key, expected)
    except BadData as e:
        say(f"{e}; they are computed again")
        found = None
    if found is None:
        cache.ready(kind, key)
    return found


def _responses(
    task: Task,
    reference: Policy,
    drawn: dict[str, Any],
    prompts: PromptSet,
    settings: EvaluationSettings,
    cache: Cache,
    say: Callable[[str], None],
) -> Tensor:
    shape = (len(prompts.texts), settings.base_samples, task.decoding.max_new_tokens)
    expected = {"responses": Expected(shape, "i", reference.vocab_size - 1)}
    found = processes.first(lambda: _kept(cache, "responses", drawn, expected, say))
    if found is None:
        found = {"responses": _draw(task, reference, prompts, settings.base_samples, say)}
        processes.first(partial(cache.put, "responses", drawn, **found))
    return torch.from_numpy(found["responses"].astype(np.int64))


def _draw(task: Task, reference: Policy, prompts: PromptSet, n: int, say: Callable[[str], None]) -> NDArray[np.int32]:
    """Sample n responses per prompt: -> [X, n, R] int32; reports the number of responses and the remaining time.

    Several prompts are read in one batch, up to ROWS responses.
    """
    parts, rng, total, together = [], torch.Generator().manual_seed(BASE_SEED), len(prompts.texts), max(1, ROWS // n)
    started, reported = time.monotonic(), 0.0
    say(f"sampling base responses for the frontier, once per model: {n} for each of {total} prompts, {n * total:,} in total")
    for x in range(0, total, together):
        some = Prompts(*(p[x : x + together].to(reference.device) for p in prompts.prompts))
        rollout = sample(reference, some, decoding=task.decoding, rng=rng, n=n, batch_size=max(n, ROWS))
        parts.append(rollout.response.view(-1, n, rollout.response.shape[1]).cpu().numpy().astype(np.int32))
        now, done = time.monotonic(), min(total, x + together)
        if x == 0 or now - reported > 5:
            reported = now
            say(f"sampling base responses: prompt {done} of {total}, {_left((now - started) / done * (total - done))}")
    return np.concatenate(parts)


def _left(seconds: float) -> str:
    """The remaining time in words, rounded."""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} hours left"


def _scores(
    task: Task,
    drawn: dict[str, Any],
    prompts: PromptSet,
    responses: Tensor,
    mask: Tensor,
    cache: Cache,
    say: Callable[[str], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reward and judge score of each base response: [X, M], [X, M]; equal responses to a prompt are scored once."""
    key = {"drawn": drawn, "scorers": task.identity()["scorers"]}
    shape = tuple(responses.shape[:2])
    expected = {name: Expected(shape, "f", 1.0) for name in ("reward", "judge")}
    found = processes.first(lambda: _kept(cache, "scores", key, expected, say))
    if found is None:
        say("scoring the base responses for the frontier, once per pair of scorers")

        def own(part: slice) -> tuple[Tensor, ...]:
            rows = [_score_prompt(task, prompts, x, responses[x], mask[x]) for x in range(part.start, part.stop)]
            return tuple(torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))

        reward, judge = (x.numpy() for x in processes.divided(len(responses), own))
        found = {"reward": reward, "judge": judge}
        if not np.isnan(np.stack([reward, judge])).any():  # unscored responses are scored again next time
            processes.first(partial(cache.put, "scores", key, **found))
    return found["reward"], found["judge"]


def _score_prompt(
    task: Task, prompts: PromptSet, x: int, responses: Tensor, mask: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    unique, where = torch.unique(responses, dim=0, return_inverse=True)
    first = torch.zeros(len(unique), dtype=torch.long).scatter(0, where, torch.arange(len(where)))
    repeated = Prompts(*(p[x : x + 1].expand(len(unique), -1) for p in prompts.prompts))
    rollout = Rollout(repeated, responses[first], mask[first])
    reward, judge = scored("reward", task.reward(rollout), len(first)), scored("judge", task.judge(rollout), len(first))
    return reward[where.numpy()], judge[where.numpy()]
