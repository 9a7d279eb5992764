"""NewMethod: the rules that every method must hold, and a step worked by hand."""

from pathlib import Path

import new_method
import torch

from harness.conformance.rules import check_method


def test_the_rules_of_every_method():
    checks = check_method(str(Path(new_method.__file__)))
    assert not [f"{c.name}: expected {c.expected}; found {c.found}" for c in checks if c.held is False]


def test_the_best_response_of_each_prompt():
    """Three prompts of two responses each; one response of the second could not be scored, and neither of the third's."""
    reward = torch.tensor([0.2, 0.9, torch.nan, 0.1, torch.nan, torch.nan])
    assert new_method.best_rows(reward, 2).tolist() == [1, 3]
