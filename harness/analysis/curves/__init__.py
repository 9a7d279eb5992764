"""Curves of methods over the values of their knobs, and the numbers that are read along them."""
