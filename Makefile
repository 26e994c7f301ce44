# Everything a person or CI does, each a word: `make demo`, `make test`, `make help`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The environment is made anew only when one of these changes.
INSTALLED := $(VENV)/.installed
DEMO ?= demo
# uv where there is one (several times faster), else it is installed inside the environment.
UV = $(shell command -v uv || echo $(BIN)/uv)
REQUIREMENTS = spark int8 explore dev
NOTEBOOK_SOURCES = nbs tests setup.py

.PHONY: help env demo test lint figures lab readme constraints clean

help: ## What can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

env: $(INSTALLED) ## The virtual environment with everything in it

$(INSTALLED): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Python 3.10 to 3.12 is needed; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: env ## The main job on the sample corpus, from papers to figures
	$(BIN)/python -m arxiv_embeddings.demo $(DEMO)

test: env ## Every cell of every notebook, then pytest
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_test --flags 'slow spark' --n_workers 0
	$(BIN)/pytest

lint: env ## Format and lint; notebooks clean, package and README those of the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_generated.py

figures: env ## The figures on real data (ARXIV_EMBEDDINGS_DATA, else ../shared/data); about 15 minutes
	$(BIN)/python benchmarks/figures.py

readme: env ## README.md from nbs/index.ipynb
	$(BIN)/python tests/check_generated.py --write

lab: env ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

constraints: env ## Resolve every version anew
	$(BIN)/python tests/make_constraints.py $(UV)

clean: ## Remove what was built (the environment stays)
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
