"""The precision of forward passes: float32, bfloat16, or what the hardware is made for (`model.dtype=auto`).

The choice enters the identity of a run, so the same command must choose the same on the same machine: the hardware decides,
by whether it has bfloat16 arithmetic of its own. A measurement, which varies, only reports what that choice is worth.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

ROWS, WIDTH = 1024, 768  # a layer's products in an update of GPT-2's size
REPEATS = 5


class Precision(NamedTuple):
    """The data type of forward passes, and how `auto` chose it."""

    dtype: str  # float32 or bfloat16
    reason: str | None = None  # None where the settings name it


def precision(asked: str, device: torch.device) -> Precision:
    """The precision on a device: the one that is asked for, or for auto bfloat16 where the hardware has it."""
    if asked != "auto":
        return Precision(asked)
    if not has_bfloat16(device):
        return Precision("float32", f"model.dtype=auto: float32, because this {device.type} has no bfloat16 arithmetic")
    ratio = step_seconds(device, "float32") / step_seconds(device, "bfloat16")
    hint = "" if ratio > 1 else "; model.dtype=float32 may be the faster here"
    return Precision("bfloat16", f"model.dtype=auto: bfloat16, measured {ratio:.1f} times as fast as float32{hint}")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers itself: a GPU from compute capability 8 on, AVX512-BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in known)


def step_seconds(device: torch.device, dtype: str) -> float:
    """Seconds of a linear layer's forward and backward pass under autocast, the median of a few."""
    import torch

    layer = torch.nn.Linear(WIDTH, 4 * WIDTH, device=device)
    x, seconds = torch.ones(ROWS, WIDTH, device=device, requires_grad=True), []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = layer(x).float().square().mean()
        loss.backward()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # the first prepares the kernels
