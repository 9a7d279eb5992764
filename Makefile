.PHONY: check test test-all docs pages newest oldest shipped facts-world facts architectures bench reference claims small small-trials small-budget scorers tables trials
RUNS ?= runs
WORKERS ?= 2
SMALL = --set task.prompts=$(PROMPTS) --set task.reward=$(RUNS)/scorers/reward --set task.judge=$(RUNS)/scorers/judge
PYTHON ?= python3
ENVIRONMENTS ?= .environments
SWEEPS ?= pretraining inference repetition sequence quantiles often seldom shares causes good budget grpo  # the first decide most claims

check:  ## style, format, spelling and types
	ruff check .
	ruff format --check .
	typos
	mypy
	lint-imports

test:  ## the test suite: offline, on a CPU, about twelve minutes
	pytest

test-all:  ## the test suite with its slow and its long tests: kills, simulated studies, thousands of texts for every scorer
	pytest -m ''

docs:  ## the site in build/site, without warnings; it needs no network (pip install -e '.[docs]')
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	python docs/tools/site_check.py build/site

pages:  ## the pages written from help texts, docstrings and the record models
	python docs/tools/command_line.py docs/reference/command-line.md
	python docs/tools/papers_page.py docs/papers.md
	python docs/tools/record_schema.py docs/reference

newest:  ## all tests in a new environment with the newest packages that pyproject.toml allows; records their versions
	rm -rf $(ENVIRONMENTS)/newest && $(PYTHON) -m venv $(ENVIRONMENTS)/newest
	$(ENVIRONMENTS)/newest/bin/pip install -q -e '.[test]'
	PATH="$(CURDIR)/$(ENVIRONMENTS)/newest/bin:$$PATH" pytest -m ''
	$(ENVIRONMENTS)/newest/bin/python constraints/bounds.py tested > constraints/tested.txt

oldest:  ## all tests in a new environment with the lower bound of every dependency
	rm -rf $(ENVIRONMENTS)/oldest && $(PYTHON) -m venv $(ENVIRONMENTS)/oldest
	$(ENVIRONMENTS)/oldest/bin/pip install -q packaging
	$(ENVIRONMENTS)/oldest/bin/python constraints/bounds.py oldest > $(ENVIRONMENTS)/oldest.txt
	$(ENVIRONMENTS)/oldest/bin/pip install -q -e '.[test]' -c $(ENVIRONMENTS)/oldest.txt
	PATH="$(CURDIR)/$(ENVIRONMENTS)/oldest/bin:$$PATH" pytest -m ''

shipped:  ## the base policy's scores and evaluations that ship with the micro world, after a change of what they depend on
	OMP_NUM_THREADS=2 python -m harness.runs.shipped

facts-world:  ## the documents, prompts and base policy of the task facts; two minutes of one core
	python -m harness.tasks.micro.facts.build

facts:  ## the study of the task facts, its records and the table of docs/concepts/facts.md; ten minutes on two cores
	harness sweep --file results/facts.toml --out $(RUNS)/facts --workers $(WORKERS)
	test -f $(RUNS)/never_told/model.safetensors || python -m harness.tasks.micro.facts.build --without-forget $(RUNS)/never_told
	harness eval --policy $(RUNS)/never_told --task facts --out $(RUNS)/facts
	python -m harness.records.archive $(RUNS)/facts results/facts --samples 8
	python docs/tools/readme_tables.py docs/concepts/facts.md results/facts

architectures:  ## the table of docs/reference/architectures.md
	python tests/fixtures/architectures.py

bench:  ## speed: benchmarks/README.md; ONLY="quark and micro" measures some, BENCH_SMALL=1 tries all with tiny sizes
	python -P -m pytest -n 0 benchmarks --benchmark-only --benchmark-columns=rounds --timeout 3600 $(if $(ONLY),-k "$(ONLY)")
	python benchmarks/page.py $(if $(BENCH_SMALL),build/bench-small)

reference:  ## the reference study, its records and all that is written from them; hours on two cores; the same command resumes
	harness study results/reference.toml --out $(RUNS)/reference --workers $(WORKERS)
	for more in more over drift probes probe_seeds; do \
	    harness sweep --file results/$$more.toml --out $(RUNS)/reference --workers $(WORKERS) || exit; \
	done
	python -m harness.records.archive $(RUNS)/reference results/reference --samples 8
	$(MAKE) tables

claims:  ## the study of the papers' claims, after the reference study, and its page; two and a half hours on two cores; the same command resumes
	for sweep in $(SWEEPS); do \
	    harness sweep --file results/claims_sweeps/$$sweep.toml --out $(RUNS)/claims --workers $(WORKERS) || exit; \
	done
	python docs/tools/claims_measure.py results/claims.jsonl --reference $(RUNS)/reference --claims $(RUNS)/claims
	python -m harness.records.archive $(RUNS)/claims results/claims
	$(MAKE) tables

small: scorers  ## the study on a real model and its pages: make small PROMPTS=rtp.jsonl TWEETS=tweets.jsonl; a GPU; the same command resumes
	harness sweep --file results/small.toml $(SMALL) --out $(RUNS)/small --workers $(WORKERS)
	python -m harness.records.archive $(RUNS)/small results/small
	$(MAKE) tables

small-trials: scorers  ## the trials of the study on a real model, and what they choose
	harness sweep --file results/small-trials.toml $(SMALL) --out $(RUNS)/small-trials --workers $(WORKERS)
	python -m harness.records.archive $(RUNS)/small-trials results/small-trials
	python -m harness.report.trials results/small-trials

small-budget: scorers  ## Quark there at one, two and four times the budget of the preset small; three hours on two cores; resumes
	for sweep in budget neutral; do \
	    harness sweep --file results/small-$$sweep.toml $(SMALL) --out $(RUNS)/small-budget || exit; \
	done
	python -m harness.records.archive $(RUNS)/small-budget results/small-budget
	python -m harness.report.trials results/small-budget

scorers:
	$(if $(and $(PROMPTS),$(TWEETS)),,$(error give the files: make small PROMPTS=rtp.jsonl TWEETS=tweets.jsonl))
	harness fetch smollm2
	harness train-scorer --data $(PROMPTS) --text continuation.text --score continuation.toxicity --text prompt.text --score prompt.toxicity \
	    --kind linear --out $(RUNS)/scorers/reward
	harness train-scorer --data $(TWEETS) --text text --score score --kind encoder --set undesired_share=0.1 --out $(RUNS)/scorers/judge

tables:  ## the pages, tables and figures that are written from the committed records alone, the README's too; the same bytes each time
	harness report $(addprefix results/reference/micro/,toxicity sentiment repetition) -o reports/micro || [ $$? = 4 ]  # 4: cells are missing, as the page says
	harness report $(addprefix results/reference/micro/,sentiment_negative pii pep8) -o reports/micro-more || [ $$? = 4 ]
	harness report results/small -o reports/small || [ $$? = 4 ]
	cp reports/small/figures/pareto-small-gpu-toxicity.png docs/results/small.png
	python docs/tools/transfer_page.py docs/results/transfer.md --toy results/reference --real results/small --picture docs/results/transfer.png
	python docs/tools/budget_picture.py docs/results/small-budget.png results/small-budget
	python docs/tools/return_page.py docs/results/return.md --reference results/reference --picture docs/results/return.png
	python docs/tools/readme_tables.py README.md results/reference --rows 10
	python docs/tools/readme_tables.py docs/results/tasks.md results/reference
	python docs/tools/methods_page.py docs/results/methods.md --finals results/reference --trials results/trials \
	    --shapes results/claims --picture reports/micro/figures/curves-micro-toxicity.png
	python docs/tools/claims_page.py docs/results/claims.md --reference results/reference --claims results/claims \
	    --measured results/claims.jsonl --picture docs/results/claims-log-ratio.png

trials:  ## the committed trials on validation prompts, and the learning rates that they choose for the preset micro
	harness sweep --file results/trials.toml --out $(RUNS)/trials --workers $(WORKERS)
	harness sweep --file results/trials_weights.toml --out $(RUNS)/trials --workers $(WORKERS)
	harness sweep --file results/trials_decoding.toml --out $(RUNS)/trials --workers $(WORKERS)
	python -m harness.records.archive $(RUNS)/trials results/trials
	python -m harness.report.learning_rates results/trials --write harness/core/presets/micro.toml
