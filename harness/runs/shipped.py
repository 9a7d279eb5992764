"""Write what ships of the base policy's measurements on the micro world: `python -m harness.runs.shipped`.

These are the scores of its responses, its evaluation on test prompts, and the short one on validation prompts, of every
task as the preset `micro` has it. They are found by identity, so after a change of what they depend on they are not used
any more, and are written again.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.measure.kept import FULL, POINT

from .named import settings
from .progress import Progress

KINDS = ("scores", FULL, POINT)


def ship(tasks: Iterable[str], folder: Path) -> None:
    """Write the measurements of the base policy on tasks to a folder, which holds nothing else afterwards."""
    with TemporaryDirectory() as out:
        for task in tasks:
            measure(task, Path(out))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for kind in KINDS:
            for path in sorted(Path(out, ".cache").glob(f"{kind}-*.npz")):
                pack(path, folder / path.name)


def pack(path: Path, to: Path) -> None:
    """Copy a file of arrays with its members packed by LZMA, a third smaller; numpy reads it as before."""
    with zipfile.ZipFile(path) as found, zipfile.ZipFile(to, "w", zipfile.ZIP_LZMA) as packed:
        for name in found.namelist():
            member = zipfile.ZipInfo(name)  # with a fixed date
            member.compress_type = zipfile.ZIP_LZMA
            packed.writestr(member, found.read(name))


def measure(task: str, out: Path) -> None:
    """Measure the base policy on a task, with the measurements left in the cache of `out`."""
    from . import assemble

    chosen = settings("micro", "base", task, [])
    cell = assemble.cell(chosen, assemble.parts(chosen, task, out=out), "base", task, 0, out)
    progress = Progress(quiet=True)
    cell.make_evaluator(progress).base_evaluation()
    cell.make_evaluator(progress, "validation").base_point()


def main() -> None:
    """Write the measurements of all tasks into the package, and their hashes."""
    from harness.core.settings import read_preset
    from harness.tasks.micro import world
    from harness.tasks.micro.build import write_hashes

    tasks = [name for name, table in read_preset("micro")["tasks"].items() if table["prompts"] == "micro"]

    folder = world.folder() / "measured"
    shutil.rmtree(folder, ignore_errors=True)  # or they would be found, and not be written again
    write_hashes(world.folder())
    ship(tasks, folder)
    write_hashes(world.folder())


if __name__ == "__main__":
    main()
