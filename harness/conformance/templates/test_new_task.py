"""NewTask: the rules that every task must hold, and a value worked by hand."""

from pathlib import Path

import new_task

from harness.conformance.task_rules import check_task


def test_the_rules_of_every_task():
    checks = check_task(str(Path(new_task.__file__)))
    assert not [f"{c.name}: expected {c.expected}; found {c.found}" for c in checks if c.held is False]


def test_what_is_counted():
    assert [new_task.shouted(text) for text in ("Hey! ", "Hey", "")] == [1, 0, 0]
