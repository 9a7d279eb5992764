"""One measurement of a policy: metrics, the optimal frontier, the evaluator, the base policy's responses."""
