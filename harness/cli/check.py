"""`harness check`: the conformance rules on one plug-in, a method, a task or a scorer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from harness.runs.progress import loading

TEXT = re.compile(r"\btext \d")
WHERE = "text N, with its prompt: `from harness.conformance.texts import texts; prompts, responses = texts(); responses[N]`"


def check_command(what: str, name: str, as_json: bool, overrides: Sequence[str] = ()) -> int:
    """Every rule on one plug-in, a line each; raises Mismatch where one does not hold.

    `overrides` are `option=value` of a scorer.
    """
    from harness.core import registry
    from harness.core.errors import Mismatch, UnknownKind, UsageError
    from harness.core.settings import parse_override

    if what not in registry.SCAFFOLDED:
        raise UnknownKind("cannot check", what, registry.SCAFFOLDED)
    if overrides and what != "scorer":
        raise UsageError(f"--set is for the options of a scorer; leave it out for a {what}")
    name = registry.given(what, name)
    loading(f"checking {name}")
    checks = _checks(what, name, dict(map(parse_override, overrides)))
    print(json.dumps({what: name, "checks": [c._asdict() for c in checks]}) if as_json else _check_table(checks))
    broken = [c.name for c in checks if c.held is False]
    if broken:
        raise Mismatch(f"{name} does not hold {len(broken)} of {len(checks)} rules: {', '.join(broken)}")
    return 0


def _checks(what: str, name: str, options: dict[str, Any]) -> list[Any]:
    from harness.conformance import rules, scorer_rules, task_rules

    if what == "method":
        return rules.check_method(name)
    return task_rules.check_task(name) if what == "task" else scorer_rules.check_scorer(name, options)


def _check_table(checks: list[Any]) -> str:
    words = {True: "holds", False: "FAILS", None: "-"}
    rows = [("", "rule", "expected", "found"), *((words[c.held], c.name, c.expected, c.found) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]]) for row in rows]
    where = ["", WHERE] if any(c.held is False and TEXT.search(c.found) for c in checks) else []
    return "\n".join([*lines, *where])
