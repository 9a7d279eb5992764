"""Scorers of text: rules, classifiers, code style, fluency, and the guard and cache around them."""
