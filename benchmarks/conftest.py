"""The fixture of every benchmark: it times a workload, prints a line and keeps the row of the page."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import page
import pytest
import torch
from counts import Work
from machine import machine
from paired import Paired
from shapes import SMALL, sized

OUT = Path(os.environ.get("BENCH_OUT", "build/bench-small" if SMALL else Path(__file__).parent))


@pytest.fixture
def out() -> Path:
    """The folder of results.json and growth.png."""
    return OUT


@pytest.fixture
def workload(benchmark, capsys):
    """Time the sides in turn, or take over seconds that another process measured; nothing is asserted about them."""

    def measure(
        name: str,
        section: str,
        sides: dict[str, Callable[[], object]] | None = None,
        *,
        rounds: int = 7,
        warm: bool = True,
        threads: int = 1,
        work: Work | None = None,
        seconds: dict[str, list[float]] | None = None,
        memory: dict[str, float] | None = None,
        note: str = "",
    ) -> None:
        row = {"section": section, "measured": f"{datetime.date.today()}", "machine": machine(threads), "note": note}
        row |= {"operations": work.operations, "bytes": work.bytes} if work else {}
        row |= {"memory": memory} if memory else {}
        torch.set_num_threads(threads)
        if sides is not None:
            pair = Paired(*sides.values())
            if warm:
                pair()
                pair.seconds.clear()
            benchmark.pedantic(pair, rounds=sized(rounds, 2))
            seconds = dict(zip(sides, zip(*pair.seconds, strict=True), strict=True))
        else:
            benchmark.pedantic(lambda: None)
        row["seconds"] = {side: [round(s, 6) for s in found] for side, found in (seconds or {}).items()}
        page.keep(OUT, name, row)
        with capsys.disabled():
            print("\n" + page.line(name, row))

    return measure
