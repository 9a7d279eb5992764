.PHONY: check test bench

check:  ## style and types
	ruff check .
	ruff format --check .
	mypy

test:  ## everything, offline
	pytest

bench:  ## speed, as ratios paired in one run
	pytest -n 0 benchmarks --benchmark-only -s
