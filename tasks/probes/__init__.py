"""Probes: what is done to a finished policy before it is measured again, to see whether the habit comes back."""
