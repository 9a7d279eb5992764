"""Scorers trained on the user's own labelled texts: `harness train-scorer`."""
