"""The scaffold of a new method, task or scorer: a working file and its test, from the templates in this package."""

from __future__ import annotations

import os
import re
from importlib import resources
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

from harness.core import registry
from harness.core.errors import BadSetting, UnknownKind, Unwritable
from harness.core.files import whole

LONGEST = 60  # the name is used for a class, two files and folders of records
PROMPTS = "prompts of your own need no plug-in: --prompts FILE"


def new_plugin(what: str, name: str, out: Path) -> str:
    """Write NAME.py and test_NAME.py into a folder, and return a text with the next steps.

    Raises UnknownKind if `what` is not a kind of plug-in, BadSetting if the name is invalid or taken, Unwritable if a file
    exists or cannot be written.
    """
    if what not in registry.SCAFFOLDED:
        raise UnknownKind("cannot create", what, registry.SCAFFOLDED, PROMPTS if "data" in what or "prompt" in what else "")
    name = name.replace("-", "_")
    _check_name(what, name)
    files = (f"new_{what}.py", f"test_new_{what}.py")
    targets = [out / file.replace(f"new_{what}", name) for file in files]
    there = next((target for target in targets if os.path.lexists(target)), None)
    if there is not None:
        raise Unwritable(f"{there} already exists; choose another name, or another folder with --out")
    _check_free(what, name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, target in zip(files, targets, strict=True):
            with whole(target):
                target.write_text(_filled(what, file, name), encoding="utf-8")
    except OSError as e:
        raise Unwritable(f"cannot write to {out}: {e.strerror}; choose another folder with --out") from None
    return _next_steps(what, *targets)


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST - 1}}}", name) or iskeyword(name):
        rule = f"of lower-case letters, digits and underscores, a letter first, at most {LONGEST} characters"
        raise BadSetting(f"expected a {what} name {rule}; found {name[:80]!r}")


def _check_free(what: str, name: str) -> None:
    taken = {known.replace("-", "_") for known in registry.table(what)}
    if name in taken or find_spec(name) is not None:
        raise BadSetting(f"the name {name!r} is taken by an installed {what} or module; choose another")


def _filled(what: str, file: str, name: str) -> str:
    text = (resources.files("harness.conformance") / "templates" / file).read_text(encoding="utf-8")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return text.replace(f"New{what.capitalize()}", camel).replace(f"new_{what}", name)


def _next_steps(what: str, plugin: Path, test: Path) -> str:
    where = plugin if plugin.is_absolute() else f"./{plugin}"
    use = {
        "method": f"--method {where} --task toxicity",
        "task": f"--method quark --task {where}",
        "scorer": f"--method quark --task toxicity --set task.reward={where}",
    }[what]
    return (
        f"wrote {plugin} and {test}, a working {what} and its test. Next:\n"
        f"  harness check {what} {where}              # the conformance rules of a {what}\n"
        f"  pytest {test}\n"
        f"  harness run {use}\n"
        f"then replace the {'algorithm' if what == 'method' else what} in {plugin}; it needs no installation to be run"
    )
