"""Scorers of text: rules, classifiers, code style and fluency, and the guard and the cache that wrap them."""
