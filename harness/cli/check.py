"""`harness check`: the conformance rules on one plug-in."""

from __future__ import annotations

import json
from typing import Any

from harness.runs.progress import loading


def check_command(what: str, name: str, as_json: bool) -> int:
    """Every rule on one method, a line each; raises Mismatch where one does not hold."""
    from harness.core import registry
    from harness.core.errors import Mismatch, UnknownName

    if what != "method":
        raise UnknownName("thing to check", what, ("method",))
    if not name.endswith(".py"):
        name = registry.canonical("method", name)
    loading(f"checking {name}")
    from harness.conformance.rules import check_method

    checks = check_method(name)
    print(json.dumps({"method": name, "checks": [c._asdict() for c in checks]}) if as_json else _check_table(checks))
    broken = [c.name for c in checks if c.held is False]
    if broken:
        raise Mismatch(f"{name} does not hold {len(broken)} of {len(checks)} rules: {', '.join(broken)}")
    return 0


def _check_table(checks: list[Any]) -> str:
    words = {True: "holds", False: "FAILS", None: "-"}
    rows = [("", "rule", "expected", "found"), *((words[c.held], c.name, c.expected, c.found) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[3]]) for row in rows)
