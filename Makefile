# Everything a newcomer needs: `make demo`, `make test`, `make lint`.
# The first of them makes .venv; later runs reuse it until pyproject.toml or constraints.txt changes.
#
#   PYTHON=python3.12   the interpreter that makes .venv (3.11 or later)
#   TORCH='torch==2.11.0'   another torch; TORCH= keeps the one that the environment has
#   VENV=/path/to/env   an environment of yours
#   EXTRAS=eval,gguf   optional parts instead of the developer's (pyproject.toml lists them)
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test lint clean

install: $(STAMP)

# torch goes first, alone: pip then takes the build that this machine's index offers (CPU or CUDA)
# and the second step finds it satisfied.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet '$(TORCH)')
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
