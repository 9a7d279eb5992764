"""The micro world: a synthetic forum with a known grammar, so that every estimator can be checked against ground truth."""
