"""Conformance rules for methods, tasks and scorers, and the scaffold of a new plug-in."""
