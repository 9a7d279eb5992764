"""A new method of one's own: a working file and its test, from the templates beside this module."""

from __future__ import annotations

import os
import re
from importlib import resources
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

from harness.core import registry
from harness.core.errors import BadSetting, UnknownName, Unwritable

LONGEST = 60  # it names a class, two files and folders of records
FILES = ("new_method.py", "test_new_method.py")


def new_method(what: str, name: str, out: Path) -> str:
    """Write NAME.py and test_NAME.py into a folder, and say what to do next.

    Raises BadSetting on a name that cannot be one, Unwritable where a file is there already.
    """
    if what != "method":
        raise UnknownName("thing to start", what, ("method",))
    name = name.replace("-", "_")
    _check_name(name)
    targets = [out / file.replace("new_method", name) for file in FILES]
    there = next((target for target in targets if os.path.lexists(target)), None)
    if there is not None:
        raise Unwritable(f"{there} is there already; choose another name, or another folder with --out")
    _check_free(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, target in zip(FILES, targets):
            target.write_text(_filled(file, name), encoding="utf-8")
    except OSError as e:
        raise Unwritable(f"cannot write to {out}: {e.strerror}; choose another folder with --out") from None
    return _next_steps(*targets)


def _check_name(name: str) -> None:
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST - 1}}}", name) or iskeyword(name):
        rule = f"small letters, digits and underscores, a letter first, {LONGEST} at most"
        raise BadSetting(f"a method's name is {rule}; found {name[:80]!r}")


def _check_free(name: str) -> None:
    if name in registry.table("method") or find_spec(name) is not None:
        raise BadSetting(f"the name {name!r} is taken by a method or a module that is installed; choose another")


def _filled(file: str, name: str) -> str:
    text = (resources.files("harness.conformance") / "templates" / file).read_text(encoding="utf-8")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("NewMethod", camel).replace("new_method", name)


def _next_steps(method: Path, test: Path) -> str:
    where = method if method.is_absolute() else f"./{method}"
    return (
        f"wrote {method} and {test}; they work as they are. Next:\n"
        f"  harness check method {where}              # the rules that every method must hold\n"
        f"  pytest {test}\n"
        f"  harness run --method {where} --task toxicity\n"
        f"then make the algorithm in {method} your own; CONTRIBUTING.md says how to list it for everybody"
    )
