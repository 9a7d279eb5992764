"""How time and memory of whole runs grow with the number of prompts, of responses to each, and with the budget."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import page
import pytest
from shapes import sized

from harness import tasks

PROMPTS = Path(tasks.__file__).parent / "micro" / "assets" / "prompts.jsonl.gz"
TIMES = sized((1, 4, 16), (1, 2))
QUICK = ["--set", "evaluation.points=1", "--set", "evaluation.paper_samples=0", "--set", "evaluation.base_samples=64"]
NOTE = (
    "Whole processes on the preset micro, imports included, 64 base responses to each prompt: `base` on a file of prompts, "
    "`base` with more responses to each prompt, and `quark` with more updates. Memory is the most that the process held."
)
UNITS = {"prompts": "prompt", "responses": "response a prompt", "budget": "update"}


def command(what: str, size: int, folder: Path) -> list[str]:
    """The run of one size: prompts, responses a prompt or updates."""
    method = "quark" if what == "budget" else "base"
    run = ["run", "--method", method, "--task", "toxicity", "--out", str(folder), *QUICK]
    return [*run, *{
        "prompts": ["--prompts", str(_file(folder)), "--set", f"task.data.held_out={size}"],
        "responses": ["--set", f"evaluation.samples={size}"],
        "budget": ["--set", "budget.flops=1e15", "--set", f"budget.updates={size}", "--set", "evaluation.samples=2"],
    }[what]]  # fmt: skip


SMALLEST = {"prompts": sized(30, 10), "responses": sized(4, 2), "budget": sized(25, 4)}


def _file(folder: Path) -> Path:
    """The prompts of the micro world as a user's file, each once."""
    rows = {row["text"]: row for row in map(json.loads, gzip.decompress(PROMPTS.read_bytes()).splitlines()) if row["text"]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


@pytest.mark.parametrize("what", SMALLEST)
def test_growth(what, benchmark, out, tmp_path, capsys):
    points = [_point(what, SMALLEST[what] * times, tmp_path / str(times)) for times in TIMES]
    benchmark.pedantic(lambda: None)
    results = page.read(out)
    growth = results.setdefault("growth", {"series": {}})
    growth |= {"note": NOTE, "units": UNITS}
    growth["series"][what] = points
    page.write(out, results)
    draw(growth, out / "growth.png")
    with capsys.disabled():
        print(f"\n{what}: " + ", ".join(f"{p['size']}: {p['seconds']:.1f} s, {p['mb']:.0f} MB" for p in points))


def _point(what: str, size: int, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "harness", *command(what, size, folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (what, size, process.returncode)
    seconds = round(time.perf_counter() - start, 2)
    return {"size": size, "seconds": seconds, "mb": round(usage.ru_maxrss / 1024), "measured": f"{datetime.date.today()}"}


def draw(growth: dict[str, Any], path: Path) -> None:
    """Time per unit and peak memory against size, relative to the smallest: flat lines are linear time and constant memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for marker, (what, points) in zip("os^", growth["series"].items(), strict=False):
        sizes = [p["size"] / points[0]["size"] for p in points]
        each = [p["seconds"] / p["size"] for p in points]
        left.plot(sizes, [x / each[0] for x in each], marker=marker, label=what)
        right.plot(sizes, [p["mb"] for p in points], marker=marker, label=what)
    left.axhline(1, color="grey", linewidth=0.8, linestyle="dashed")
    left.set(title="time per unit, smallest size = 1", ylim=(0, None))
    right.set(title="peak memory, MB", ylim=(0, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="size, smallest = 1", xticks=TIMES, xticklabels=[f"x {t}" for t in TIMES])
        axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
