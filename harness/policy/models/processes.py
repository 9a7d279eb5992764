"""Several processes that make one run: rows are divided among them, what they find is gathered, gradients are summed.

Every process runs the same program with the same random numbers. Only work that goes row by row (passes of a model, sampling,
scoring) is divided, and every process gets the results of all. So what is made of them, a pool, an advantage, a loss, is the
same in every process, and a method knows nothing of processes.

Each process takes 1/N of its loss, and a gather passes N times the gradient to the rows of its own process. The sum over the
processes is then the gradient of the whole batch for every weight, whether a divided pass reads it, or all of them, or both.

The state is torch.distributed's default group. Without one, or within `alone`, everything here does what one process does.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from harness.core import errors, process
from harness.core.errors import BadScorer, BadSetting, BenchError, PeerLost, RunFailed, one_line
from harness.core.types import Rollout

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that a process waits for another: one may have slow scores to wait for
BUCKET = 2**25  # numbers of gradients that are summed at once
WRITING = 10.0  # seconds that the first process may take to write why it ended
SPREAD = 1e-3  # of a loss, between processes that compute the same

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)  # no state, but a scope: see `alone`


def join() -> None:
    """Form the group of the processes that torchrun started, one GPU each where there are GPUs; raises BadSetting."""
    if not process.started_by_torchrun() or dist.is_initialized():
        return
    gpus = torch.cuda.device_count()
    if gpus:
        if process.local_rank() >= gpus:
            raise BadSetting(f"each process needs a GPU of its own; found {gpus}: --nproc_per_node {gpus}")
        torch.cuda.set_device(process.local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    atexit.register(_leave)
    threading.Thread(target=_watch, args=(os.getppid(),), name="torchrun", daemon=True).start()


def _watch(parent: int) -> None:
    """End as if interrupted once torchrun is gone, so that no process outlives it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """The number of processes that divide the work now: 1 without a group, and within `alone`."""
    return grouped() if not _ALONE.get() else 1


def rank() -> int:
    """The place of this process in its group, 0 without one."""
    return dist.get_rank() if grouped() > 1 else 0


def grouped() -> int:
    """The number of processes of the group, also within `alone`: 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def alone() -> Iterator[None]:
    """The context of work that this process does by itself, in which nothing is divided."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class Share(NamedTuple):
    """The rows of one process among all n: consecutive, and as many as the others have, or one more."""

    begin: int
    size: int

    @property
    def own(self) -> slice:
        """Its rows, which may be none."""
        return slice(self.begin, self.begin + self.size)

    @property
    def read(self) -> slice:
        """The rows to work on: its own, or the first one for a process without, so that all do the same work on weights."""
        return self.own if self.size or not self.begin else slice(0, 1)


def shares(n: int) -> list[Share]:
    """The rows of each process."""
    each, more = divmod(n, size())
    return [Share(r * each + min(r, more), each + (r < more)) for r in range(size())]


def level_rows(n: int) -> Tensor:
    """The rows of this process among n, and the first of all again where another process has one more: [as many in each]."""
    most, share = shares(n)[0].size, shares(n)[rank()]
    rows = torch.arange(share.begin, share.begin + share.size)
    return torch.cat([rows, rows.new_zeros(most - share.size)])


def gathered(x: Tensor, n: int) -> Tensor:
    """The rows of all processes, without a gradient: those of this one, or more, [rows, ...] -> [n, ...]."""
    parts = shares(n)
    most, own = parts[0].size, parts[rank()].size
    sent = x.new_zeros(most, *x.shape[1:], dtype=torch.uint8 if x.dtype == torch.bool else x.dtype)
    sent[:own] = x[:own]
    found = sent.new_empty(len(parts) * most, *x.shape[1:])
    with _together():
        dist.all_gather_into_tensor(found, sent)
    if n < len(found):
        found = torch.cat([rows[: part.size] for rows, part in zip(found.split(most), parts, strict=True)])
    return found.to(x.dtype)


class Gathered(Function):
    """The rows of all processes, of which each passes back the gradient of its own: [rows, ...], n -> [n, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.shape, ctx.share = x.shape, shares(n)[rank()]
        return gathered(x, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        into = grads[0].new_zeros(ctx.shape)
        into[: ctx.share.size] = grads[0][ctx.share.own] * size()
        return into, None


def with_gradient(x: Tensor, n: int) -> Tensor:
    """As `gathered`, with the gradient of its own rows for each process."""
    found: Tensor = Gathered.apply(x, n)  # type: ignore[no-untyped-call]
    return found


def output_of_all(output: Any, n: int) -> Any:
    """A model's output of all rows, of those of this process: tensors with a row for each sequence; others are left out."""
    rows = {name: x for name, x in output.items() if isinstance(x, Tensor) and x.dim()}
    return type(output)(**{name: with_gradient(x, n) for name, x in rows.items()})


def divided(n: int, work: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `work` returns of n rows, without a gradient, each process working on its own: rows -> [rows, ...] each.

    Raises in every process what it raises in one.
    """
    if size() == 1:
        return work(slice(0, n))
    found = agreed(partial(work, shares(n)[rank()].read))
    return tuple(gathered(x, n) for x in found)


def by_rows(read: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout, level: bool = False) -> tuple[Tensor, ...]:
    """As `divided`, of the rows of a rollout: [B, R] -> [B, ...] each; if `level`, each process reads as many rows."""
    if size() == 1:
        return read(rollout)
    if level:
        own = rollout.rows(level_rows(len(rollout.response)).to(rollout.response.device))
        return divided(len(rollout.response), lambda rows: read(own))
    return divided(len(rollout.response), lambda rows: read(rows_of(rollout, rows)))


def scores(score: Callable[[Rollout], Tensor], rollout: Rollout) -> Tensor:
    """The score of each response, each process scoring its own: [B, R] -> [B]; raises BadScorer for another shape."""
    if size() == 1:
        return score(rollout)

    def own(part: Rollout) -> tuple[Tensor]:
        found = score(part)
        if found.shape != (len(part.response),):
            raise BadScorer(f"the scorer returned shape {tuple(found.shape)} for {len(part.response)} responses")
        return (found,)

    return by_rows(own, rollout)[0]


def rows_of(rollout: Rollout, rows: slice) -> Rollout:
    """Consecutive rows of a rollout."""
    return rollout.rows(torch.arange(rows.start, rows.stop, device=rollout.response.device))


def agreed(make: Callable[[], T]) -> T:
    """What each process makes by itself; raises in every process the error of the first that fails."""
    if size() == 1:
        return make()
    found, error = _tried(make)
    if any_of(error is not None)[0]:
        told: list[Any] = [None] * size()
        with _together():
            dist.all_gather_object(told, _told(error))
        who = next(i for i, what in enumerate(told) if what is not None)
        if error is not None and who == rank():
            raise error
        name, message = told[who]
        raise _heard(who, name, message)
    return found  # type: ignore[return-value]


def first(make: Callable[[], T]) -> T:
    """What the first process makes, in every process, or its error."""
    if size() == 1:
        return make()
    found, error = _tried(make) if rank() == 0 else (None, None)
    sent: list[Any] = [found, _told(error)]
    with _together():
        dist.broadcast_object_list(sent, src=0)
    if sent[1] is not None:
        raise error if error is not None else _heard(0, *sent[1])
    return found if rank() == 0 else sent[0]  # type: ignore[return-value]


class ByFirst:
    """An object of the first process: its methods run there alone, and every process gets what they return."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.it, name)
        return (lambda *args, **named: first(partial(found, *args, **named))) if callable(found) else found


def by_first(it: T) -> T:
    """The object, or where there are several processes one that only the first of them uses."""
    return it if size() == 1 else ByFirst(it)  # type: ignore[return-value]


def itself(it: T) -> T:
    """The object behind `by_first`, for what no other process waits for."""
    return it.it if isinstance(it, ByFirst) else it  # type: ignore[no-any-return]


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is True in any process."""
    if size() == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int64)
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found.tolist())


def backward(loss: Tensor) -> None:
    """The backward pass of a loss that every process has computed: [] -> None; `summed` completes its gradients."""
    if size() == 1:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        loss.backward(torch.full_like(loss, 1 / size()))  # type: ignore[no-untyped-call]


def summed(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, the same in number and shape everywhere, by their sums over the processes."""
    if size() == 1:
        return
    for bucket in _buckets(tensors):
        whole = torch.cat([x.flatten() for x in bucket])
        with _together():
            dist.all_reduce(whole)
        for x, total in zip(bucket, whole.split([x.numel() for x in bucket]), strict=True):
            x.copy_(total.view_as(x))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, up to BUCKET numbers."""
    found: list[Tensor] = []
    for x in tensors:
        if found and (x.dtype != found[0].dtype or sum(y.numel() for y in found) + x.numel() > BUCKET):
            yield found
            found = []
        found.append(x)
    if found:
        yield found


def check_same(rng: torch.Generator, loss: Tensor) -> None:
    """Raise RunFailed where the processes have another state of their generators, or another loss by more than rounding."""
    if size() == 1:
        return
    state = zlib.crc32(rng.get_state().numpy().tobytes())
    mine = torch.tensor([float(state), float(loss.detach())], dtype=torch.float64)
    found = [torch.empty_like(mine) for _ in range(size())]
    with _together():
        dist.all_gather(found, mine)
    states, losses = torch.stack(found).unbind(1)
    if (states != states[0]).any() or losses.max() - losses.min() > SPREAD * losses.abs().max():
        raise RunFailed(
            f"the {size()} processes of this run no longer compute the same; expected a method and a task that draw all "
            f"random numbers from the generators they are given: look for others, or run it in one process"
        )


def _tried(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        with alone():
            return make(), None
    except Exception as e:
        return None, e


def _told(error: Exception | None) -> tuple[str, str] | None:
    """An error as text, for other processes."""
    if error is None or isinstance(error, BenchError):
        return None if error is None else (type(error).__name__, str(error))
    return "", f"{type(error).__name__}: {one_line(error)}"


def _heard(who: int, name: str, message: str) -> BenchError:
    """The error of another process, of its own type where that is one of ours."""
    kind = getattr(errors, name, None) if name else None
    if kind is None:
        return RunFailed(f"process {who} of this run raised {message}")
    found: BenchError = kind.__new__(kind)
    Exception.__init__(found, message)
    return found


@contextmanager
def _together() -> Iterator[None]:
    """Raise PeerLost where the others do not come."""
    try:
        yield
    except RuntimeError as e:
        raise PeerLost(
            "another process of this run has ended, or was not heard of for too long; the same command goes on from the last "
            "checkpoint"
        ) from e


@contextmanager
def last_words() -> Iterator[bool]:
    """The context in which a process of torchrun that has failed tells why: whether it is the one to tell.

    It is the first that asks. The process that writes the record ends first, because torchrun ends all when one has failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    meeting, speaks = _meeting(), True
    if meeting is not None:
        with suppress(Exception):
            speaks = meeting.add("failed", 1) == 1
    try:
        yield speaks
    finally:
        if meeting is not None:
            _part(meeting)


def _part(meeting: Any) -> None:
    """End after the first process, or say that it ends."""
    with suppress(Exception):
        if process.follows():
            _leave()  # the first process may wait for this one
            meeting.wait(["ended"], timedelta(seconds=WRITING))
        else:
            meeting.set("ended", "")


def _meeting() -> Any:
    """Where the processes of torchrun meet, which outlives each of them; None if it is gone."""
    with suppress(Exception):
        at, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(at, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=WRITING))
        return dist.PrefixStore(f"harness/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return None
