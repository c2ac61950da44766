# Every target makes .venv by itself; nothing but Python 3.11 or newer, its pip and make has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What only the benchmark needs.
BENCH_READY := $(VENV)/.bench-ready
# MLflow's server, which tests start. It brings eighty packages along, so it has an environment of its own.
MLFLOW_VENV := .venv-mlflow
MLFLOW_READY := $(MLFLOW_VENV)/.ready

# Ask nobody whether there are newer versions of the tools.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# ASYNC127 rejects httpx by its name, in favour of a fork. httpx is what users bring a client of (OTLPExporter's
# client=), so it stays. ASYNC9xx, off by default in flake8 as well, want a checkpoint on every path through every async
# function, tests and private ones included; where it is promised, tests assert it.
ASYNC_DISABLED := ASYNC127,ASYNC9
# Functions that are to be started with nursery.start, and call task_status.started().
ASYNC_STARTABLE := _supervise,_supervise_work,watch

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help demo test test-all test-matrix about-test about-test-all about-environment cancel-everywhere simulate soak bench check size docs format clean

help:
	@echo "make demo    an agent program, a server that fails for a while, a cancel half-way: nothing is lost"
	@echo "make test    the tests without the long ones, in about two minutes; ARGS=... is given to pytest"
	@echo "make test-all   all tests, with branch coverage"
	@echo "make test-matrix   make test on every CPython from 3.11 on that is found, in .venv-3.12 and so on"
	@echo "make cancel-everywhere   a cancel at every step of small programs, through the whole HTTP path"
	@echo "make simulate SEEDS=100000   seeded runs of the whole system on the mock clock; SEED=... replays one"
	@echo "make soak MINUTES=10   real clock, real sockets, faults of all kinds: memory, tasks, sockets and lanes stay flat"
	@echo "make bench   CPU time, event loop, memory and more beside OpenTelemetry and MLflow; QUICK=1 only looks for lost spans"
	@echo "make check   formatting, lint, types, documentation"
	@echo "make size    lines of code by part of the package, each with its budget"
	@echo "make docs    the documentation as HTML, in docs/_build/html"
	@echo "make format  let ruff format and mend what it can"
	@echo "make clean   remove everything that was made"

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (once; again when pyproject.toml or constraints.txt change)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[cli,databricks,opentelemetry]' --group dev
	@touch $@

$(BENCH_READY): $(READY)
	@echo "adding to $(VENV) what the benchmark compares with (once)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	@touch $@

$(MLFLOW_READY): constraints-mlflow.txt
	@echo "making $(MLFLOW_VENV) (once; again when constraints-mlflow.txt changes)"
	@test -x $(MLFLOW_VENV)/bin/python || $(PYTHON) -m venv $(MLFLOW_VENV)
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet --upgrade --constraint $< pip
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet --constraint $< mlflow
	@touch $@

demo: $(READY)
	@$(BIN)/trio-spanbatch demo

about-environment:
	@test -e $(READY) || echo "first: installing trio-spanbatch and what its tests need in $(VENV), about 100 packages: a minute or two"

about-test: about-environment
	@echo "make test: about 6,200 tests in a process for each core, in about two minutes on two idle cores; the tests that"
	@echo "start programs and servers of their own, others that take long, and more examples of properties are in make test-all"

about-test-all: about-environment
	@test -e $(MLFLOW_READY) || echo "first: installing MLflow's server in $(MLFLOW_VENV), about 80 packages: a minute or two"
	@echo "make test-all: all tests, about 6,500, with branch coverage, in a process for each core; about ten minutes on two"
	@echo "idle cores"

test: about-test $(READY)
	$(PYTEST) -m "not long" $(ARGS)

test-all: about-test-all $(READY) $(MLFLOW_READY)
	$(PYTEST) --cov --cov-report=term-missing $(ARGS)

test-matrix:
	@$(PYTHON) -m tests.support.matrix "$(MAKE)" "$(ARGS)"

cancel-everywhere: $(READY)
	@$(BIN)/python -m tests.cancellation --http $(ARGS)

# SEEDS fresh ones over all cores, or one SEED again with a trace of its events.
SEEDS ?= 2000
simulate: $(READY)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

soak: $(READY)
	@$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(ARGS)

# All cases in full, and docs/benchmarks.md; with QUICK=1 once and small; with CASES="encoding memory" only those.
bench: $(BENCH_READY)
	@$(BIN)/python -m bench $(if $(QUICK),--quick,$(if $(CASES),,--docs docs)) $(CASES)

check: $(READY) size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable $(ASYNC_DISABLED) --startable-in-context-manager $(ASYNC_STARTABLE) \
		$$(find trio_spanbatch tests bench docs -name '*.py')
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/mypy --no-explicit-package-bases docs/examples
	$(BIN)/mypy --package bench
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes trio_spanbatch --ignoreexternal
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

size: $(READY)
	@$(BIN)/python -m tests.support.size

docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-3.* $(MLFLOW_VENV) docs/_build build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
