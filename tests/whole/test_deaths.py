"""A run that is killed, or whose disk refuses, at each of its file operations: the same command ends in the same record."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_records import write_run
from four_weights import Four, OneStep, cell, content
from safetensors.torch import save_file

from harness.analysis.study import Study
from harness.cli import result, status
from harness.core.errors import CannotWrite, Unwritable
from harness.core.files import refused, replace, writing
from harness.measure.base_responses import Cache
from harness.records.read import read_run
from harness.records.write import RunStore
from harness.report.figures import pareto, style
from harness.runs import session


class Killed(BaseException):
    """What a kill is to the code: nothing catches it, and after it nothing reaches the disk."""


@pytest.fixture(autouse=True)
def quick_policies(monkeypatch):
    monkeypatch.setattr(session, "Policy", Four)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


WRITES = set("wax+")


class Disk:
    """Counts what is asked of the disk below a folder, and fails from the n-th on."""

    def __init__(self, top: Path, n: float, error: BaseException) -> None:
        self.top, self.n, self.error = str(top), n, error
        self.asked, self.armed = 0, True

    def look(self, path, dir_fd=None) -> None:
        if self.armed and (dir_fd is not None or str(path).startswith(self.top)):
            self.asked += 1
            if self.asked >= self.n:
                raise self.error


@contextmanager
def failing(monkeypatch, top: Path, n: float, error: BaseException):
    """Every opening for writing, and every making, naming and removing of a file or a folder below `top`, is counted."""
    disk = Disk(top, n, error)

    def guarded(whole):
        def call(path, *args, dir_fd=None, **kw):
            disk.look(path, dir_fd)
            return whole(path, *args, **(kw if dir_fd is None else kw | {"dir_fd": dir_fd}))

        return call

    def opened(file, mode="r", *args, **kw):
        if WRITES & set(mode):
            disk.look(file)
        return whole_open(file, mode, *args, **kw)

    whole_open = io.open
    with monkeypatch.context() as m:
        for name in ("replace", "rename", "remove", "unlink", "rmdir", "mkdir"):
            m.setattr(os, name, guarded(getattr(os, name)))
        m.setattr(io, "open", opened)
        m.setattr("builtins.open", opened)
        yield disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    session.run(cell(out))
    return content(cell(out).path)


def state(path: Path) -> tuple[str, list[str]]:
    """What `status` says of a run whose process is gone, and the commands that finish it."""
    (found,) = Study([read_run(path)], dead={path}).cells
    return found.state, status.commands(found, path)


def test_a_kill_at_any_operation_leaves_a_record_that_the_same_command_finishes(whole, tmp_path, monkeypatch):
    with failing(monkeypatch, tmp_path, float("inf"), Killed()) as disk:
        session.run(cell(tmp_path / "0"))
    assert disk.asked > 40 and content(cell(tmp_path / "0").path) == whole
    began = trained = False
    for n in range(1, disk.asked + 1):
        out, path = tmp_path / str(n), cell(tmp_path / str(n)).path
        with failing(monkeypatch, tmp_path, n, Killed()), pytest.raises(Killed):
            session.run(cell(out))
        began = began or (cell(out).path / "manifest.json").exists()
        kept = (path / "summary.json").exists() or any(path.glob("checkpoints/update-*"))
        assert kept or not trained, f"{n}: what was trained is lost"
        trained = trained or kept
        if began:
            seen, commands = state(cell(out).path)
            assert (seen == "partial" and "--fresh" not in commands[0]) or (seen == "done" and commands == []), n
        session.run(cell(out))
        assert content(cell(out).path) == whole, n
        assert RunStore(cell(out).path).record().summary is not None
        shutil.rmtree(out)


def test_a_disk_that_refuses_at_any_operation_is_one_line_and_the_same_command_goes_on(whole, tmp_path, monkeypatch):
    for n in range(1, 200):
        out, told = tmp_path / str(n), OSError(errno.ENOSPC, "No space left on device")
        with failing(monkeypatch, tmp_path, n, told) as disk, pytest.raises((CannotWrite, Unwritable)) as found:
            session.run(cell(out))
            disk.asked = 0
            raise CannotWrite("cannot write: it was written")  # none was refused
        text = str(found.value)
        assert "\n" not in text and ("cannot write" in text), n
        assert ("No space left on device" in text) or disk.asked == 0
        summary, _ = session.run(cell(out))
        assert content(cell(out).path) == whole and summary.status == "done", n
        if disk.asked == 0:
            break
        shutil.rmtree(out)
    assert n > 40


@pytest.mark.parametrize("after", ["samples", "prompts.json", "policy", "summary.json"])
def test_a_run_that_could_not_write_says_why_in_its_manifest_once_there_is_room(tmp_path, monkeypatch, after):
    """Where only one file is refused, the manifest has the reason; a run whose summary stands is done all the same."""
    whole_replace = os.replace

    def refusing(source, target):
        name = Path(target).relative_to(cell(tmp_path).path).as_posix()
        late = after == "summary.json" and name == "manifest.json" and (Path(target).parent / after).exists()
        if late or (after != "summary.json" and name.startswith(after)):
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(target))
        whole_replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(os, "replace", refusing)
        with pytest.raises(CannotWrite, match=r"cannot write .*: Disk quota exceeded; .*run the same command to resume"):
            session.run(cell(tmp_path))
    manifest, path = read_run(cell(tmp_path).path).manifest, cell(tmp_path).path
    if after == "summary.json":
        assert manifest.status == "running" and (path / after).exists()
    else:
        assert manifest.status == "failed" and manifest.error.type == "CannotWrite"
    session.run(cell(tmp_path))
    assert read_run(path).manifest.status == "done" and RunStore(path).record()


def test_a_disk_with_a_limit_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    """With the system's own refusal, and the libraries' own ways to say so: safetensors, torch, pyarrow."""
    monkeypatch.setattr(Four, "save", lambda policy, folder: save_file({"w": torch.zeros(9000)}, folder / "w.safetensors"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CannotWrite, match=r"cannot write .*checkpoints/unfinished: .*File too large .*the same command"):
            session.run(cell(tmp_path))
        monkeypatch.undo()
        monkeypatch.setattr(session, "Policy", Four)
        state = {"trial": {"cost": {"updates": 1}}, "weights": torch.zeros(9000)}
        with pytest.raises(CannotWrite, match=r"checkpoints/unfinished: the file could not be written whole; "):
            RunStore(cell(tmp_path).path).save_checkpoint(Four(), state)
        row = {"prompt_id": 0, "kind": "calm", "prompt": "", "response": "", "judge": 0.5}
        rows = [row | {"reward": x} for x in np.random.default_rng(0).random(9000)]
        with pytest.raises(CannotWrite, match=r"samples/final.parquet: .*File too large"):
            RunStore(cell(tmp_path).path).write_samples("final", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert session.run(cell(tmp_path))[0].status == "done"


def test_a_file_of_a_record_is_never_written_in_place(tmp_path):
    """A kill in the middle of it would leave half of the new one and nothing of the old."""
    path = tmp_path / "manifest.json"
    path.write_bytes(b"old")
    os.link(path, tmp_path / "as it was")
    replace(path, b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "as it was").read_bytes() == b"old"


def test_a_fault_of_the_code_is_not_taken_for_the_disks(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    assert refused(RuntimeError("the sizes do not match")) is None


def test_base_responses_that_the_disk_refuses_leave_nothing_behind(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    with monkeypatch.context() as m, pytest.raises(CannotWrite, match=r"cannot write .*responses-\w+\.npz: No space left"):
        m.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        cache.put("responses", {"a": 1}, x=np.zeros(3))
    assert not list(tmp_path.iterdir()) and cache.get("responses", {"a": 1}) is None


@pytest.mark.parametrize("again", [False, True], ids=["removed", "removed and made again"])
def test_a_folder_removed_while_its_run_is_at_work_is_one_line_and_is_not_made_again(whole, tmp_path, again):
    path = cell(tmp_path).path

    class Removes(OneStep):
        def train(self, trial):
            for n, scalars in enumerate(super().train(trial)):
                if n == 1:
                    path.rename(tmp_path / "elsewhere")
                    if again:
                        path.mkdir()
                yield scalars

    with pytest.raises(CannotWrite, match="was removed during the run; run the same command to start it again"):
        session.run(cell(tmp_path, Removes))
    assert not (list(path.iterdir()) if again else path.exists())
    session.run(cell(tmp_path))
    assert content(path) == whole


def test_a_folder_removed_in_the_middle_of_a_write_is_said_to_be_gone(tmp_path):
    store = RunStore(tmp_path / "run")
    store.open()
    with pytest.raises(CannotWrite, match="was removed during the run"), store._writing("summary.json") as path:
        shutil.rmtree(store.path)
        path.write_text("{}")
    store.close()


def test_a_kill_while_an_unfinished_run_is_cleared_leaves_what_the_same_command_finishes(whole, tmp_path, monkeypatch):
    class Stops(OneStep):
        def train(self, trial):
            yield next(super().train(trial))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.run(cell(tmp_path / "begun", Stops))
    for n in range(1, 100):
        out = tmp_path / str(n)
        shutil.copytree(tmp_path / "begun", out)
        store = RunStore(cell(out).path)
        store.open()
        with failing(monkeypatch, out, n, Killed()) as disk, suppress(Killed):
            store.clear()
        store.close()
        session.run(cell(out))
        assert content(cell(out).path) == whole, n
        if disk.asked < n:
            break
    assert n > 10


class Figure:
    """In place of a picture: the record that it is of."""

    def __init__(self, of: Path) -> None:
        self.of = of

    def __str__(self) -> str:
        return str(self.of)

    def set_layout_engine(self, name: str) -> None:
        """A picture takes it."""


@pytest.mark.pictures
def test_a_picture_that_was_not_drawn_is_drawn_when_asked_again(tmp_path, monkeypatch):
    path = write_run(tmp_path, "quark", 0)
    monkeypatch.setattr(pareto, "run_picture", lambda run: Figure(run.dir))
    monkeypatch.setattr(style, "save", lambda figure, kind: f"{kind} of {figure}".encode())
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(Killed()))
        result.draw(path)
    assert not (path / "picture.png").exists()
    held = RunStore(path)
    held.open()
    result.draw(path)  # whoever holds the run draws it
    assert not (path / "picture.png").exists()
    held.close()
    assert result.draw(path).read_text() == f"png of {path}" and (path / "picture.svg").read_text() == f"svg of {path}"
    assert not list(path.glob("*.tmp"))
