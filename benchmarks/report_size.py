"""Time, memory and size of a report over many synthetic records: `python benchmarks/report_size.py [RUNS|curves...]`.

Each size is measured in a process of its own: processor seconds, the most memory it held, the page's bytes. The records
are invented (tests/fixtures/fake_records.py): 20 methods on 3 tasks, as many seeds as the number of runs asks for; `curves` is
a study of 21 methods on 3 tasks at five values of their knobs, 5 seeds at the middle one (tests/fixtures/fake_curves.py).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (100, 300, 1000)
METHODS, TASKS = 20, ("toxicity", "sentiment", "repetition")


def write(root: Path, runs: int) -> None:
    """Records of every method on every task, a seed after the other until there are enough."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fixtures"))
    import fake_records as fake

    from harness.methods import METHODS as NAMES

    names = sorted(NAMES)[:METHODS]
    for i, name in enumerate(names):
        fake.METHODS.setdefault(name, (0.1 + 0.8 * i / METHODS, 0.2 + 1.5 * (i * 7 % METHODS) / METHODS, 0.03, 5.5))
    cells = [(name, task) for name in names for task in TASKS]
    for i in range(runs):
        name, task = cells[i % len(cells)]
        fake.write_run(root, name, i // len(cells), task=task)


def write_curves(root: Path) -> None:
    """Records of a study with curves."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fixtures"))
    import fake_curves

    fake_curves.write_study(root, prompts=200)


def measure(root: Path, out: Path) -> dict[str, float]:
    """Read the records and build the page, in this process."""
    from harness.analysis.study import Study
    from harness.records.read import find_runs
    from harness.report.build import build

    start, cpu = time.monotonic(), time.process_time()
    runs, problems = find_runs([root])
    read = time.process_time() - cpu
    build(Study(runs, problems), out)
    return {
        "runs": len(runs), "seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu, "reading": read,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "page_mb": (out / "index.html").stat().st_size / 1e6,
    }  # fmt: skip


def main(sizes: list[int | None]) -> None:
    print("runs  wall s  CPU s  of which reading  memory MB  page MB")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "records"
            write_curves(root) if size is None else write(root, size)
            command = [sys.executable, __file__, "--one", str(root), str(Path(folder) / "report")]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        keys = ("runs", "seconds", "cpu_seconds", "reading", "memory_mb", "page_mb")
        print("{:4.0f}  {:6.1f}  {:5.1f}  {:16.1f}  {:9.0f}  {:7.2f}".format(*(found[key] for key in keys)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main([None if a == "curves" else int(a) for a in sys.argv[1:]] or [*SIZES, None])
