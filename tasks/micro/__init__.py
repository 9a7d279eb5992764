"""The micro world: a small forum whose language is fully known, so that every estimator can be checked against truth."""
