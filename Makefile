# make demo and make test set themselves up: they need python3 (3.10 or later), make and a package index.

PYTHON ?= python3
PYTEST_ARGS ?= -n auto
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-full lint format bench clean

help:
	@echo "make demo    judge the example evals"
	@echo "make test    lint, type check, tests"
	@echo "make test-full  the tests, the rules over all of PyTorch's test database, all models of transformers"
	@echo "make lint    lint and type check only"
	@echo "make format  rewrite the code in the project's format"
	@echo "make bench   plain and watched runs, paired"
	@echo "make clean   remove the environment and all caches"

$(READY): requirements-dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "causaltrace needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-full: test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.opdb --jobs 2
	if $(BIN)/python -c 'import transformers' 2>/dev/null; \
	then OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo --jobs 2; \
	else echo "no transformers here (Python 3.10): their models are not judged"; fi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
