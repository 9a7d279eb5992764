"""Records for other tools: experiment trackers, during a run or after it, lm-evaluation-harness's results, and LaTeX tables."""
