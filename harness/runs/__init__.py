"""Making runs: from settings to a cell, its session, its cost, its progress."""
