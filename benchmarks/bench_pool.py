"""Two million responses of 20 tokens in a pool: time to add them an exploration at a time and to quantise, and memory."""

from __future__ import annotations

import time
from statistics import median

import torch
from counts import FLOAT, Work
from paired import alone, held, peak_of
from shapes import sized

from harness.core.types import Prompts, Rollout
from harness.training.pool import Pool

RESPONSES, EXPLORATION = sized(2_000_000, 10_000), 4096
PROMPT, RESPONSE = 16, 20


def test_two_million_responses(workload):
    rounds = [alone("bench_pool", "add_and_quantize") for _ in range(sized(3, 1))]
    # ids are read in 64 bits and stored in 16; two lengths, a reward and a quantile
    work = Work(0, RESPONSES * ((PROMPT + RESPONSE) * (8 + 2) + 3 * FLOAT + 8))
    parts = ", ".join(f"{what} {median(r[what] for r in rounds):.2f} s" for what in ("add", "quantize"))
    memory = {"pool": median(r["held"] for r in rounds), "at its peak, quantising": median(r["peak"] for r in rounds)}
    size = (PROMPT + RESPONSE) * 2 + 3 * FLOAT + 8
    workload(
        f"pool, {RESPONSES:,} responses of {RESPONSE} tokens, add and quantise", "pool",
        seconds={"suite": [r["add"] + r["quantize"] for r in rounds]}, work=work, memory=memory,
        note=f"{parts}; {EXPLORATION:,} responses an exploration. A response to a prompt of {PROMPT} tokens takes {size} bytes "
        "(two a token, two lengths, reward and quantile): the memory of a method with a pool grows with its explorations",
    )  # fmt: skip


def add_and_quantize() -> dict[str, float]:
    """Seconds, and MB of the process beyond those before the first exploration."""
    torch.set_num_threads(1)
    rng, seconds = torch.Generator().manual_seed(0), 0.0
    filled(Pool(), 2, rng)  # what is loaded and allocated once
    before, pool = held("VmRSS"), Pool()
    for done in range(0, RESPONSES, EXPLORATION):
        seconds += filled(pool, min(EXPLORATION, RESPONSES - done), rng)
    stored, start = held("VmRSS") - before, time.perf_counter()
    peak = stored + peak_of(lambda: pool.quantize(5, rng))
    return {"add": seconds, "quantize": time.perf_counter() - start, "held": held("VmRSS") - before, "peak": peak}


def filled(pool: Pool, n: int, rng: torch.Generator) -> float:
    """Seconds of adding one exploration."""
    tokens, response = (torch.randint(1, 49152, (n, width), generator=rng) for width in (PROMPT, RESPONSE))
    mask = torch.arange(PROMPT) >= PROMPT - torch.randint(4, PROMPT + 1, (n, 1), generator=rng)
    rollout = Rollout(Prompts(tokens, mask), response, torch.ones_like(response, dtype=torch.bool))
    reward = torch.rand(n, generator=rng)
    start = time.perf_counter()
    pool.add(rollout, reward)
    return time.perf_counter() - start
