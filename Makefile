# make demo and make test set themselves up: they need python3 (3.10 or later), make and a package index.

PYTHON ?= python3
TORCH := $(shell sed -n 's/^torch==//p' requirements-dev.txt)
# Where the CPU build of torch is when the configured index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?= -n auto
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    judge the example evals"
	@echo "make test    lint, type check, tests"
	@echo "make lint    lint and type check only"
	@echo "make format  rewrite the code in the project's format"
	@echo "make bench   plain and watched runs, paired"
	@echo "make clean   remove the environment and all caches"

# A bare or unpinned torch would bring gigabytes of CUDA, so the CPU build comes first and alone.
$(READY): requirements-dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "causaltrace needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)+cpu" \
	  || $(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "torch==$(TORCH)" \
	  || $(BIN)/python -m pip install "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/causaltrace demo $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

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
