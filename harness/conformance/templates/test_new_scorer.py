"""NewScorer: the rules that every scorer must hold, and scores worked by hand."""

from pathlib import Path

import new_scorer
import numpy as np

from harness.conformance.scorer_rules import check_scorer


def test_the_rules_of_every_scorer():
    checks = check_scorer(str(Path(new_scorer.__file__)))
    assert not [f"{c.name}: expected {c.expected}; found {c.found}" for c in checks if c.held is False]


def test_scores_by_hand():
    found = new_scorer.NewScorer(tolerated=0.0).score([""] * 4, ["quiet", "LOUD", "...", " "])
    np.testing.assert_allclose(found, [1.0, 0.0, 1.0, np.nan])
