"""Estimates of what a run takes, before anything is loaded: tokens, hours, memory, downloads; without torch."""
