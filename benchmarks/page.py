"""benchmarks/README.md from results.json, which the benchmarks write: no measurement is made again.

python benchmarks/page.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Row = dict[str, Any]

HEAD = """# Speed

    make bench                        every workload, then this page
    make bench ONLY="sampler and 64"  some of them (words of `pytest -k`): only their rows change
    python benchmarks/page.py         this page again from `results.json`, without measuring
    BENCH_SMALL=1 make bench          everything with tiny sizes, into build/bench-small

Each workload is timed in turn with what a user would run instead, in one process: a machine that slows down slows both. The
ratio is the median over pairs of the peer's time over the suite's, with its quartiles: above 1 the suite is the faster. Both
sides have the same weights, prompts, decoding, number of new tokens, threads and float32. Nothing here is asserted by a test.

The floor is the larger of operations / matmul rate and bytes / bandwidth, which a program cannot go below:
[`counts.py`](counts.py) says what is counted, and [`machine.py`](machine.py) measures the two ceilings, in float32. The share
is the floor over the median time.
"""
TAIL = """
`harness run --profile` says where the time of a run goes.
"""
TABLE = (
    "| workload | time | floor | share of floor | against | ratio | quartiles | pairs | memory | measured |",
    "|---|---:|---:|---:|---|---:|---|---:|---|---|",
)
GPU = """
## On a GPU

`python benchmarks/bench_gpu.py 7` on one H200 (torch 2.11), 2026-11-26, as it printed; [`gpu.txt`](gpu.txt) holds it. Weights
are random, with a trained model's spread of the next-token distribution; the suite keeps float32 weights and computes in
bfloat16, `generate` has bfloat16 weights. The floor is the arithmetic of all tokens at the measured matrix rate. What lies
between: keys and values behind a mask (a third of a step), elementwise kernels, and the draw from a vocabulary of 50,257 in
float32.
"""
SECTIONS = {
    "sampling": "Sampling",
    "training": "Training",
    "pool": "The pool of responses",
    "commands": "Whole commands",
}
CEILINGS = ("matmul", "bandwidth")


def read(folder: Path) -> dict[str, Any]:
    """The results so far: rows by name, and growth."""
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.exists() else {"rows": {}}


def write(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(folder / "results.json")


def keep(folder: Path, name: str, row: Row) -> None:
    """Put one row in, at its place if it is there already; the others stay as they were measured."""
    results = read(folder)
    results["rows"][name] = row
    write(folder, results)


def render(results: dict[str, Any], gpu: str = "") -> str:
    """The page: machines, a table a section, notes, what `bench_gpu.py` printed, growth."""
    rows = results["rows"]
    machines = _machines(rows)
    parts = [HEAD, "## Machine\n", *(_machine(m, label if len(machines) > 1 else "") for label, m in machines)]
    for section, title in SECTIONS.items():
        own = {name: row for name, row in rows.items() if row["section"] == section}
        if own:
            parts += [f"\n## {title}\n", *TABLE, *(_row(name, row, machines) for name, row in own.items())]
            parts += ["", *(f"- {name}: {row['note']}" for name, row in own.items() if row["note"])]
    if gpu:
        parts += [GPU + "\n```text\n" + gpu.rstrip() + "\n```"]
    if "growth" in results:
        parts += ["\n## Growth\n", *_growth(results["growth"])]
    return "\n".join(parts).rstrip() + "\n" + TAIL


def line(name: str, row: Row) -> str:
    """One row in words, for the terminal."""
    told = ", ".join(f"{side} {_seconds(median(found))}" for side, found in row["seconds"].items())
    ratios = ratios_of(row)
    if not ratios:
        return f"{name}: {told}"
    low, high = quartiles(ratios)
    return f"{name}: {told}, ratio {median(ratios):.2f} ({low:.2f} to {high:.2f}, {len(ratios)} pairs)"


def ratios_of(row: Row) -> list[float]:
    """The peer's time over the suite's, a pair each; none without a peer."""
    sides = list(row["seconds"].values())
    return [b / a for a, b in zip(*sides, strict=True)] if len(sides) == 2 else []


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def floor_of(row: Row) -> float | None:
    """Seconds, by the ceilings of the machine and the threads that it was measured with."""
    if "operations" not in row:
        return None
    machine = row["machine"]
    return max(row["operations"] / machine["matmul"], row["bytes"] / machine["bandwidth"])


def _machines(rows: dict[str, Row]) -> list[tuple[str, Row]]:
    """The machines that rows were measured on, ceilings aside, each with its last row's ceilings and a letter."""
    found: dict[str, Row] = {}
    for row in sorted(rows.values(), key=lambda r: r["measured"]):
        found[_key(row)] = row["machine"]
    return list(zip("ABCDEFGH", found.values(), strict=False))


def _key(row: Row) -> str:
    return json.dumps({k: v for k, v in row["machine"].items() if k not in CEILINGS})


def _machine(m: Row, label: str) -> str:
    gpu = "a GPU, not used" if m["gpu"] else "no GPU"
    features = ", ".join(m["features"]) or "no vector extension of note"
    threads = f"{m['threads']} thread" + ("s" if m["threads"] > 1 else "")
    return (
        f"- {label + ': ' if label else ''}{m['processor']} ({features}), {m['cores']} cores, {gpu}; Python {m['python']}, "
        f"torch {m['torch']}, transformers {m['transformers']}; {threads}: matrix products {m['matmul'] / 1e9:.0f} G "
        f"operations/s, memory {m['bandwidth'] / 1e9:.1f} GB/s"
    )


def _row(name: str, row: Row, machines: list[tuple[str, Row]]) -> str:
    sides = list(row["seconds"])
    time, floor, ratios = median(row["seconds"][sides[0]]), floor_of(row), ratios_of(row)
    low, high = quartiles(ratios) if ratios else (0.0, 0.0)
    label = next(label for label, m in machines if _key({"machine": m}) == _key(row))
    cells = [
        name, _seconds(time),
        *(("", "") if floor is None else (_seconds(floor), f"{100 * floor / time:.0f} %")),
        sides[1] if ratios else "", f"**{median(ratios):.2f}**" if ratios else "",
        f"{low:.2f} to {high:.2f}" if ratios else "", str(len(ratios)) if ratios else "",
        ", ".join(f"{side} {mb:,.0f} MB" for side, mb in row.get("memory", {}).items()),
        row["measured"] + (f" {label}" if len(machines) > 1 else ""),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _seconds(s: float) -> str:
    return f"{s:.1f} s" if s >= 10 else f"{s:.2f} s" if s >= 1 else f"{1e3 * s:.0f} ms" if s >= 0.01 else f"{1e3 * s:.2g} ms"


def _growth(growth: dict[str, Any]) -> list[str]:
    """A table of whole runs as one of their sizes grows, below the picture of the same numbers."""
    lines = ["![Time per unit and peak memory as work grows](growth.png)\n", growth["note"], ""]
    lines += ["| what grows | size | time | time per unit | peak memory | measured |", "|---|---:|---:|---:|---:|---|"]
    for what, points in growth["series"].items():
        unit = growth["units"][what]
        for p in points:
            per = f"{1e3 * p['seconds'] / p['size']:.3g} ms per {unit}"
            lines.append(f"| {what} | {p['size']:,} | {_seconds(p['seconds'])} | {per} | {p['mb']:,.0f} MB | {p['measured']} |")
    return lines


def main(folder: Path) -> None:
    gpu = folder / "gpu.txt"
    (folder / "README.md").write_text(render(read(folder), gpu.read_text() if gpu.exists() else ""))
    print(folder / "README.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
