# Everything a person or CI does, each a word: `make demo`, `make test`, `make help`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# `make env TORCH_BACKEND=cpu` leaves out CUDA, 4 GB: torch then comes from PyTorch's own index, which has to be reachable.
TORCH_BACKEND ?=
TORCH = $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))
BIN := $(VENV)/bin
CLI := $(BIN)/arxiv-embeddings
# The environment is made anew only when one of the files below it changes.
INSTALLED := $(VENV)/.installed
# uv where there is one (several times faster than pip), else it is installed inside the environment.
UV = $(shell command -v uv || echo $(BIN)/uv)

.PHONY: help env demo check test bench lint format figures readme docs lab constraints clean

help: ## What can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

env: $(INSTALLED) ## The virtual environment with everything in it

$(INSTALLED): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.10 to 3.12 is needed, $(PYTHON) is another: try make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x "$(UV)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing into $(VENV) ..."
	@$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt $(TORCH) --editable '.[all]'
	@$(BIN)/python tools/install_hooks.py
	@touch $@

demo: env ## The main job on the sample corpus: papers, vectors, index, exports, figures
	$(CLI) sample $(DEMO)
	$(CLI) embed $(DEMO)/papers.csv --out $(DEMO)/run
	$(CLI) describe $(DEMO)/run
	$(CLI) index $(DEMO)/run
	$(CLI) export $(DEMO)/run
	$(CLI) plot $(DEMO)/run
	$(CLI) map $(DEMO)/run
	$(CLI) evaluate $(DEMO)/run --relations $(DEMO)/relations.tsv
	$(CLI) similar $(DEMO)/run 0000.00001 -k 3
	@echo
	@echo "Written: $(abspath $(DEMO))/run with metadata.json, parts/, index/, export/, figures/ and map.html."
	@echo "Open $(DEMO)/run/map.html in a browser. Next, try:"
	@echo "  $(CLI) search $(DEMO)/run 'planets around other stars' -k 3"
	@echo "  $(CLI) similar $(DEMO)/run --row 100 --category cs.CV"
	@echo "  $(CLI) embed YOUR_PAPERS.csv --out YOUR_RUN"
	@echo "  make lab"

# Three processes with one thread each, since servers keep tests waiting; converted models are shared by all.
check test: export ARXIV_EMBEDDINGS_CACHE = $(abspath $(VENV))/converted-models
check test: export OMP_NUM_THREADS = 1
check test: export LOKY_MAX_CPU_COUNT = 1
# Servers and sessions of tests live for seconds: Java's quick compiler alone, and no threads to collect garbage.
check test: export JAVA_TOOL_OPTIONS = -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
check test: export PATH := $(abspath $(BIN)):$(PATH)
# What Spark's sessions load, in a file that Java maps instead; without it each takes two thirds more work to start.
SPARK_CLASSES := $(abspath $(VENV))/spark-classes.jsa
test: export SPARK_SUBMIT_OPTS = -XX:SharedArchiveFile=$(SPARK_CLASSES)
# A process that is lost ends the run: with another in its place pytest-xdist may wait forever.
PYTEST = $(BIN)/pytest --numprocesses 3 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

check: env lint ## What every commit needs, in three minutes: lint, notebooks and tests without slow parts and without Spark
	$(BIN)/nbdev_test --n_workers 2
	$(PYTEST) -m "not slow and not spark"

$(SPARK_CLASSES): $(INSTALLED)
	@rm -f $@
	$(BIN)/python -m tests.fakes.spark_classes $@

test: env $(SPARK_CLASSES) ## Every cell of every notebook, then every other test; models are converted anew
	rm -rf $(ARXIV_EMBEDDINGS_CACHE)
	@# a folder of its own for temporary files, Java's too: what killed processes leave goes with it
	@TMPDIR=$$(mktemp -d) && export TMPDIR && trap 'rm -rf "$$TMPDIR"' EXIT && \
	export JAVA_TOOL_OPTIONS="$$JAVA_TOOL_OPTIONS -Djava.io.tmpdir=$$TMPDIR" && \
	$(BIN)/nbdev_test --flags "slow spark" --n_workers 3 --timing && $(PYTEST)

# Peers need older libraries than the package does.
PEERS := .venv-peers
$(PEERS)/.installed: settings.ini | $(INSTALLED)
	@$(PYTHON) -m venv $(PEERS)
	@echo "installing into $(PEERS) ..."
	@$(UV) pip install --quiet --python $(PEERS)/bin/python $(TORCH) $$(sed -n 's/^peer_requirements = //p' settings.ini)
	@touch $@

bench: env $(PEERS)/.installed ## How fast, beside others, about an hour; written to benchmarks/results
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt \
	  $$(sed -n 's/^bench_requirements = //p' settings.ini)
	$(BIN)/python -m benchmarks.encode

lint: env ## Lint and format, checked; package, notebooks and README are checked by the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env ## Format notebooks and scripts, clean notebooks, export the package
	$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_clean
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_export

figures: env ## The figures on real data, four hours; written to benchmarks/results
	$(BIN)/python -m benchmarks.main_job
	$(BIN)/python -m benchmarks.precisions
	$(BIN)/python -m benchmarks.static
	$(BIN)/python -m benchmarks.corrections
	$(BIN)/python -m benchmarks.parity
	$(BIN)/python -m benchmarks.runs
	$(BIN)/python -m benchmarks.hybrid
	$(BIN)/python -m benchmarks.spark
	$(BIN)/python -m benchmarks.spark_frames
	$(BIN)/python -m benchmarks.spark_versions

readme: env ## README.md from nbs/index.ipynb, and the list of all pages on the welcome page
	$(BIN)/python tools/make_readme.py
	$(BIN)/python tools/make_contents.py

docs: env ## The documentation site in _docs/, built without a network; then open _docs/index.html
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lab: env ## JupyterLab on the welcome page
	$(BIN)/python tools/install_hooks.py
	JUPYTER_CONFIG_PATH="$(abspath tools/lab)" $(BIN)/jupyter lab

constraints: env ## Resolve every version anew
	$(BIN)/python tools/make_constraints.py $(UV)

clean: ## Remove what was built; the environment stays
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
