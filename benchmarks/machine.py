"""The machine, without its name, and its two ceilings as measured on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from shapes import sized

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "sve")


@cache
def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, versions, threads, and the two ceilings with so many threads."""
    torch.set_num_threads(threads)
    return {
        "processor": platform.machine(),
        "features": _features(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.is_available(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "matmul": matmul_rate(),
        "bandwidth": bandwidth(),
    }


def matmul_rate(size: int = sized(2048, 128)) -> float:
    """Operations a second in the product of two square float32 matrices: the best of several."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out))


def bandwidth(size: int = sized(2**27, 2**16)) -> float:
    """Bytes a second in a copy of 512 MiB, read and written ones both counted: the best of several."""
    a, b = torch.zeros(size), torch.ones(size)
    return 2 * 4 * size / _best(lambda: b.copy_(a))


def _best(job: Callable[[], object], times: int = 7) -> float:
    job()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        job()
        found.append(time.perf_counter() - start)
    return min(found)


def _features() -> list[str]:
    """Those of the processor that decide the speed of matrix products."""
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().split())
    except OSError:
        return [torch.backends.cpu.get_cpu_capability().lower()]
    return [name for name in FEATURES if name in words]
