.PHONY: check test bench

check:  ## style and types
	ruff check .
	ruff format --check .
	mypy

test:  ## everything, offline
	pytest

bench:  ## speed, as ratios paired in one run
	pytest benchmarks --benchmark-only -s
