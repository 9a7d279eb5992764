"""Running experiments: cells built from settings, their sessions, cost estimates and progress."""
