"""The command line in double precision: `python benchmarks/double.py run ...`, or started by torchrun in several processes.

For one question: whether two ways to compute the same, such as one process and two, differ by rounding alone. Rounding is a
billion times smaller here than in float32; a mistake is as large as before. Its records are compared with each other only:
their identity is that of float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def double_precision() -> Iterator[None]:
    """The context in which whatever asks for float32 gets float64."""
    single, default, narrow = torch.float32, torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[misc, method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.float32, torch.Tensor.float = single, narrow  # type: ignore[misc, method-assign]


def widened(read: Callable[..., Any]) -> Callable[..., Any]:
    """A reader of models whose float32 files are read as such, and give models of float64."""
    single = torch.float32

    def read_wide(folder: Any, dtype: Any = None) -> Any:
        torch.float32, wide = single, torch.float32  # type: ignore[misc]
        try:
            return read(folder, single).double()
        finally:
            torch.float32 = wide  # type: ignore[misc]

    return read_wide


def main() -> None:
    from harness.cli.main import main as command
    from harness.policy import loading, policy, weights

    for module in (loading, policy):
        setattr(module, "read_model", widened(weights.read_model))  # noqa: B010
    with double_precision():
        sys.exit(command())


if __name__ == "__main__":
    main()
