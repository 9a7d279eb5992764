"""Evaluation of policies: metrics, the optimal frontier, the evaluator, the base policy's responses."""
