"""A language model as a policy: load it, sample from it, read its log-probabilities, save it."""
