.PHONY: check test test-all newest oldest architectures bench reference trials
RUNS ?= runs
WORKERS ?= 2
PYTHON ?= python3
ENVIRONMENTS ?= .environments

check:  ## style and types
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test:  ## offline, minutes
	pytest

test-all:  ## and the slow ones: simulations of whole studies, thousands of texts through every scorer
	pytest -m 'slow or not slow'

newest:  ## everything on the newest packages that pyproject.toml admits, in an environment of its own; keeps what passed
	rm -rf $(ENVIRONMENTS)/newest && $(PYTHON) -m venv $(ENVIRONMENTS)/newest
	$(ENVIRONMENTS)/newest/bin/pip install -q -e '.[test]'
	PATH="$(CURDIR)/$(ENVIRONMENTS)/newest/bin:$$PATH" pytest -m 'slow or not slow'
	$(ENVIRONMENTS)/newest/bin/python constraints/bounds.py tested > constraints/tested.txt

oldest:  ## the same on the lower bound of every dependency
	rm -rf $(ENVIRONMENTS)/oldest && $(PYTHON) -m venv $(ENVIRONMENTS)/oldest
	$(ENVIRONMENTS)/oldest/bin/pip install -q packaging
	$(ENVIRONMENTS)/oldest/bin/python constraints/bounds.py oldest > $(ENVIRONMENTS)/oldest.txt
	$(ENVIRONMENTS)/oldest/bin/pip install -q -e '.[test]' -c $(ENVIRONMENTS)/oldest.txt
	PATH="$(CURDIR)/$(ENVIRONMENTS)/oldest/bin:$$PATH" pytest -m 'slow or not slow'

architectures:  ## docs/architectures.md, from what each does now
	python tests/fixtures/architectures.py

bench:  ## speed, as ratios paired in one run
	pytest -n 0 benchmarks --benchmark-only -s

reference:  ## the committed records, tables and pages, from runs that take hours on two cores; goes on where it was
	harness sweep --file results/reference.toml --out $(RUNS)/reference --workers $(WORKERS)
	harness sweep --file results/reference.toml --out $(RUNS)/reference --workers $(WORKERS) --seeds 0 \
	    --methods base,best_of_n,quark,unlikelihood --tasks sentiment_negative,pii,pep8
	harness sweep --file results/shapes.toml --out $(RUNS)/shapes --workers $(WORKERS)
	harness sweep --file results/shapes.toml --out $(RUNS)/shapes --workers $(WORKERS) --methods quark \
	    --grid quark.num_quantiles=3 --grid quark.kl_coef=0.05,0.2,0.8
	harness sweep --file results/shapes.toml --out $(RUNS)/shapes --workers $(WORKERS) --methods quark --tasks sentiment
	harness sweep --file results/shapes.toml --out $(RUNS)/shapes --workers $(WORKERS) --methods grpo --tasks sentiment \
	    --grid grpo.scale=group,none --grid grpo.kl_coef=0.05,0.2
	python -m harness.records.archive $(RUNS)/reference results/reference --samples 8
	python -m harness.records.archive $(RUNS)/shapes results/shapes
	harness report $(addprefix results/reference/micro/,toxicity sentiment repetition) -o reports/micro
	harness report $(addprefix results/reference/micro/,sentiment_negative pii pep8) -o reports/micro-more
	python docs/tools/readme_tables.py README.md results/reference
	python docs/tools/readme_tables.py docs/tasks.md results/reference
	python docs/tools/methods_page.py docs/methods.md --finals results/reference --trials results/trials \
	    --shapes results/shapes --picture reports/micro/figures/pareto-micro-toxicity.png

trials:  ## the committed trials, from which the micro preset's settings were chosen
	harness sweep --file results/trials.toml --out $(RUNS)/trials --workers $(WORKERS)
	harness sweep --file results/trials.toml --out $(RUNS)/trials --workers $(WORKERS) --methods unlikelihood \
	    --set unlikelihood.source=samples --grid unlikelihood.alpha=1.0 --grid unlikelihood.lr=3e-5,1e-4 \
	    --grid unlikelihood.kl_coef=0.3,3.0
	python -m harness.records.archive $(RUNS)/trials results/trials
