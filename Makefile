# Two commands do everything on a machine with python3 (3.11 or later) and make:
#   make plan   what load one GPU holds for a real workload
#   make test   everything that is checked
PYTHON ?= python3
VENV ?= .venv
# test processes; each keeps a file's tests together, since files share what they compile
WORKERS ?= 2
BIN = $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: plan test test-all lint types clean

plan: $(VENV)/.installed
	$(BIN)/simkit plan experiments/quickstart/plan.yaml

test: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-all: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "simkit needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -e .
	touch $@

# torch first and by exact version: anything that merely asks for torch would pull several GB of CUDA libraries where a
# CPU wheel is at hand. Triton 3.6.0 is the version that current GPU images carry; it breaks with numpy 2.4.
$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q "triton==3.6.0" "numpy<2.4" -e ".[dev,serve]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
