"""Sweeps over many cells: plan, worker processes and progress board."""
