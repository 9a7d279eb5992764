"""Time and memory of reading commands and of a plan at 100, 1,000 and 10,000 cells, from synthetic records.

python benchmarks/many_cells.py FOLDER [CELLS...]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
METHODS = ("quark", "ppo", "conditional", "unlikelihood", "base", "rloo", "dpo", "kto", "npo", "mle")
TASKS = ("toxicity", "sentiment")
MEASURED = """
import resource, sys, time
began = time.perf_counter()
from harness.cli import main
sys.argv = ["harness", *sys.argv[1:]]
try:
    main.main()
except SystemExit as e:
    code = e.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(f"{time.perf_counter() - began:.2f} {peak:.0f} {code}", file=sys.stderr)
"""


def generate(folder: Path, cells: int) -> None:
    """Write finished synthetic records of ten methods on two tasks, with as many seeds as that takes."""
    sys.path.insert(0, str(FIXTURES))
    import fake_records

    from harness.core.settings import resolve

    whole = {  # settings as large as real ones, in the manifest and in the summary
        (method, task): {"settings": resolve("micro", "quark", task).model_dump()} for method in METHODS for task in TASKS
    }
    for n in range(cells):
        method, task = METHODS[n % 10], TASKS[n // 10 % 2]
        if not (folder / "micro" / task / method / f"5e5e5e5e-s{n // 20}").exists():
            more = whole[method, task]
            fake_records.write_run(folder, method, n // 20, task=task, manifest=more, summary=more)


def measured(*words: str, cpu: bool = True) -> tuple[float, float, int]:
    """Run a command of the harness: -> CPU seconds, peak memory in MB, exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-P", "-c", MEASURED, *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, peak, code = done.stderr.splitlines()[-1].split()
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (seconds if cpu else float(wall)), float(peak), int(code)


def claims(folder: Path) -> float:
    """Seconds to claim and give up every record of a folder once."""
    from harness.core.files import Claim

    paths, began = [path.parent for path in folder.rglob("manifest.json")], time.perf_counter()
    for path in paths:
        claim = Claim(path)
        claim.take()
        claim.release()
    return time.perf_counter() - began


def main(folder: str, *sizes: str) -> None:
    for cells in map(int, sizes or ("100", "1000", "10000")):
        out = Path(folder) / str(cells)
        generate(out, cells)
        rows = {"claims": {"seconds": round(claims(out), 2)}}
        for name, words in {
            "status": ["status", str(out)],
            "status again": ["status", str(out)],
            "report": ["report", str(out), "--out", str(Path(folder) / "page")],
            "list runs": ["list", "runs", "--out", str(out)],
            "compare": ["compare", "quark:task=toxicity", "ppo:task=toxicity", "--out", str(out)],
            "plan": [
                "sweep", "--dry-run", "--methods", "base,quark", "--tasks", "toxicity", "--seeds", f"0-{cells // 2 - 1}",
                "--out", str(Path(folder) / "nothing"),
            ],
        }.items():  # fmt: skip
            if os.environ.get("ONLY", name) == name or name.startswith(os.environ.get("ONLY", name)):
                seconds, peak, code = measured(*words)
                rows[name] = {"cpu_seconds": round(seconds, 1), "peak_mb": peak, "code": code}
        if "report" in rows:
            rows["report"]["page_mb"] = round((Path(folder) / "page" / "index.html").stat().st_size / 1e6, 1)
        print(json.dumps({"cells": cells} | rows), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
