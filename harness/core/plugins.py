"""Checks of plug-in classes against their interfaces, and the file and line of a fault for error messages."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import BadData
from .types import Knob, Settings

EXPECTED = {
    "settings": "a class Settings derived from harness.api.Settings",
    "version": "a version that is an integer of at least 1",
    "constructor": "a constructor that takes only the settings and stores them as self.settings",
    "train": "a generator train(self, trial)",
    "yield": "a dict from names to numbers at each yield",
    "sees_judge": "sees_judge = True only in a control: family = 'controls', knob = None",
    "policy": "trial.policy and trial.reference to stay the same objects: train the weights of trial.policy in place",
    "reference": "a reference that stays as it is: train trial.policy, or trial.reference.copy()",
    "deployed": "a policy, or an object with a method sample, in trial.deploy",
    "cost": "trial.cost to be written by the harness only: finite numbers",
    "name": "a name that is not empty",
    "built": "a constructor like that of harness.api.TextTask: data, tokenizer, and by name reward, judge, decoding, ...",
    "like": "like = NAME, the task whose preset tables are used",
    "own": "settings = {...}, a table of task settings",
    "score": "a method score(prompts, responses)",
    "run": "a constructor that takes only the settings, and a generator run(self, probed)",
    "unit": "unit = WORD, of the points of its readings",
    "number": "number = 'mean' or 'worst', how its readings become one number",
}
TASK_METHODS = (
    "identity", "train_prompts", "documents", "clean_documents", "prompts", "texts", "reward", "judge", "text_metrics",
    "paper_metrics",
)  # fmt: skip
TASK_OPTIONS = ("reward", "judge", "fluency", "decoding", "context", "paper_tokens", "bos", "eos")
NUMBERS = ("mean", "worst")  # of the readings of a probe: over the range of its points, or the lowest
DATASET_METHODS = ("needs", "rows", "items")


def check_class(kind: Any, name: str) -> Any:
    """Return the class of a method unchanged; raises BadData if it violates the method interface."""
    found = _class_fault(kind)
    if found is not None:
        rule, what = found
        raise BadData(f"method {name}{at_file(kind, _first_line(kind))} {what}; expected {EXPECTED[rule]}")
    return kind


def _class_fault(kind: Any) -> tuple[str, str] | None:
    settings = getattr(kind, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        return "settings", "has no Settings" if settings is None else f"has as Settings {kind_of(settings)}"
    if fault := _version_fault(kind):
        return fault
    if not _takes(kind, None):
        return "constructor", "cannot be made from its settings"
    if not _takes(getattr(kind, "train", None), None, None):
        return "train", "has no train that takes a trial"
    return _judge_fault(kind)


def _judge_fault(kind: Any) -> tuple[str, str] | None:
    """No method proper may see the judge: it would be measured by what it was trained on."""
    family = getattr(kind, "family", "other")
    if not getattr(kind, "sees_judge", False) or (family == "controls" and getattr(kind, "knob", None) is None):
        return None
    return "sees_judge", f"sees the judge, with family {family!r:.40} and knob {getattr(kind, 'knob', None)!r:.60}"


def check_task(kind: Any, name: str) -> Any:
    """Return the class of a task unchanged; raises BadData if it violates the task interface."""
    found = _version_fault(kind) or _task_fault(kind)
    return _refused("task", kind, name, found) if found else kind


def _task_fault(kind: Any) -> tuple[str, str] | None:
    missing = [method for method in TASK_METHODS if not callable(getattr(kind, method, None))]
    if missing:
        return f"the methods {', '.join(TASK_METHODS)}", f"has no {', '.join(missing)}"
    named, like, own = (getattr(kind, word, None) for word in ("name", "like", "settings"))
    if not (isinstance(named, str) and named.strip()):
        return "name", f"has the name {named!r:.40}"
    if not (like is None or isinstance(like, str)):
        return "like", f"has as like {kind_of(like)}"
    if not (own is None or isinstance(own, dict)):
        return "own", f"has as settings {kind_of(own)}"
    return None if _takes(kind, None, None, **dict.fromkeys(TASK_OPTIONS)) else ("built", "cannot be made from its parts")


def check_scorer(kind: Any, name: str) -> Any:
    """Return the class of a scorer unchanged; raises BadData if it violates the scorer interface."""
    if not callable(kind) or not _takes(getattr(kind, "score", None), None, [], []):
        return _refused("scorer", kind, name, ("score", "has no score that takes prompts and responses"))
    return kind


def check_dataset(kind: Any, name: str) -> Any:
    """Return the class of a data set unchanged; raises BadData if it violates the data set interface."""
    missing = [method for method in DATASET_METHODS if not callable(getattr(kind, method, None))]
    if missing or not isinstance(kind, type):
        expected = f"a class with the methods {', '.join(DATASET_METHODS)}"
        return _refused("data set", kind, name, (expected, f"has no {', '.join(missing)}" if missing else "is no class"))
    return kind


def check_probe(kind: Any, name: str) -> Any:
    """Return the class of a probe unchanged; raises BadData if it violates the probe interface."""
    found = _probe_fault(kind)
    return _refused("probe", kind, name, found) if found else kind


def _probe_fault(kind: Any) -> tuple[str, str] | None:
    settings, unit = getattr(kind, "Settings", None), getattr(kind, "unit", None)
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        return "settings", "has no Settings" if settings is None else f"has as Settings {kind_of(settings)}"
    if fault := _version_fault(kind):
        return fault
    if not _takes(kind, None) or not _takes(getattr(kind, "run", None), None, None):
        return "run", "has no run that takes what is probed"
    if not (isinstance(unit, str) and unit.strip()):
        return "unit", f"has the unit {unit!r:.40}"
    number = getattr(kind, "number", None)
    return None if number in NUMBERS else ("number", f"has the number {number!r:.40}")


def _version_fault(kind: Any) -> tuple[str, str] | None:
    version = getattr(kind, "version", None)
    if type(version) is not int or version < 1:
        return "version", "has no version" if version is None else f"has the version {version!r:.40}"
    return None


def _refused(what: str, kind: Any, name: str, fault: tuple[str, str]) -> NoReturn:
    rule, found = fault
    line = _first_line(getattr(kind, "score" if what == "scorer" else "train", None)) or _first_line(kind)
    raise BadData(f"{what} {name}{at_file(kind, line)} {found}; expected {EXPECTED.get(rule, rule)}")


def _takes(what: Any, *arguments: Any, **named: Any) -> bool:
    try:
        inspect.signature(what).bind(*arguments, **named)
    except (TypeError, ValueError):
        return False
    return True


def line_in(error: BaseException, file: str) -> int | None:
    """The last line of a file in an error's traceback: the line that raised it or that led to it; None if there is none."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def at_file(method: Any, line: int | None = None) -> str:
    """The location of a plug-in, ` (mine.py:12)`; by default the line of `train`; empty if it has no file."""
    file = source_file(method)
    line = _first_line(getattr(method, "train", None)) if line is None else line
    return "" if file is None else f" ({shown_path(file)}{'' if line is None else f':{line}'})"


def shown_path(file: str) -> str:
    """A path relative to the working folder if it lies below it, else unchanged."""
    try:
        return str(Path(file).relative_to(os.getcwd()))
    except (ValueError, OSError):
        return file


def source_file(method: Any) -> str | None:
    kind = getattr(method, "func", method)  # functools.partial of a class and its settings
    kind = kind if isinstance(kind, type) else type(kind)
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


def _first_line(what: Any) -> int | None:
    try:
        return inspect.getsourcelines(what)[1]
    except (TypeError, OSError):
        return None


def kind_of(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__!r:.60}"


def constant(module: str, name: str, of: str | None = None) -> Any:
    """The literal or Knob assigned to a name in a module, or in its class `of` or a base there; None if none can be read."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    return _literal(body, name) if of is None else _of_class(body, of, name)


def _of_class(body: list[ast.stmt], of: str, name: str) -> Any:
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    node = classes.get(of)
    if node is None:
        return None
    own = _literal(node.body, name)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != of]
    return own if own is not None else next((v for b in bases if (v := _of_class(body, b, name)) is not None), None)


def _literal(body: list[ast.stmt], name: str) -> Any:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = getattr(node, "value", None)
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            if isinstance(value, ast.Constant):
                return value.value
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Knob":
                return _knob(value)
    return None


def _knob(call: ast.Call) -> Knob | None:
    """A knob written out in the source; None if its arguments are not literals."""
    with suppress(ValueError, TypeError):
        named = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
        return Knob(*map(ast.literal_eval, call.args), **named)
    return None


CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "method": check_class, "task": check_task, "scorer": check_scorer, "dataset": check_dataset, "probe": check_probe,
}  # fmt: skip
"""The check of each kind of plug-in: returns the class unchanged, or raises BadData."""
